#!/usr/bin/env python
"""Time one step of a model by PyTorch and by everything else that can run its network.

    python examples/engines.py

Prints a table. Times are medians of interleaved runs, with the smallest and the largest in parentheses. All engines
use as many threads as PyTorch, a number that OMP_NUM_THREADS sets.
"""

import argparse
import os
import platform
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from benchmark import spread

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.hub import markdown_table
from gdd_diffusers.hub.export import export_pipeline
from gdd_diffusers.memory import keep_freed_memory


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Name, folder or Hub repo; the bundled weights by default.")
    parser.add_argument("--tile_size", type=int, default=512, help="Side of the image.")
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def torch_calls(model: str | None, image: torch.Tensor, dtype: torch.dtype) -> dict:
    """Return the calls of the network by name: as it is and compiled, in channels_last, as in the pipeline."""
    pipe = RealDenoisePipeline.from_pretrained(model, dtype=dtype)
    sample = F.pixel_unshuffle(image, pipe.config.pixel_unshuffle).to(dtype, memory_format=torch.channels_last)
    options = {"config": openvino_config(dtype)}
    networks = {
        "PyTorch": pipe.unet,
        "torch.compile": torch.compile(pipe.unet),
        'torch.compile, backend="openvino"': torch.compile(pipe.unet, backend="openvino", options=options),
    }
    return {name: lambda network=network: network(sample, torch.tensor(1000.0)) for name, network in networks.items()}


def exported_calls(model: str | None, image: torch.Tensor, dtype: torch.dtype) -> dict:
    """Return the calls of what `gdd export` writes, in float32; OpenVINO can compute in bfloat16 all the same."""
    import onnxruntime
    import openvino

    pipe = RealDenoisePipeline.from_pretrained(model)
    inputs = {"noisy": image.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        file = export_pipeline(pipe, folder, "onnx").file
        compiled = openvino.Core().compile_model(file, "CPU", openvino_config(dtype))
        calls = {"OpenVINO": lambda: compiled(inputs)}
        if dtype == torch.float32:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            calls["ONNX Runtime"] = lambda: session.run(None, inputs)
    return calls


def openvino_config(dtype: torch.dtype) -> dict:
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    return {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}


@torch.no_grad()
def main(args):
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    image = torch.rand(1, 3, args.tile_size, args.tile_size)
    megapixels = args.tile_size**2 / 1e6
    calls = {}
    for dtype in (torch.float32, torch.bfloat16):
        for make in (torch_calls, exported_calls):
            for name, call in make(args.model, image, dtype).items():
                calls[name, str(dtype).removeprefix("torch.")] = call
    seconds, cpu_seconds = ({key: [] for key in calls} for _ in range(2))
    with keep_freed_memory():  # as in the pipeline
        for run in range(args.runs + 1):
            for key, call in calls.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                call()
                if run > 0:  # the first one compiles
                    seconds[key].append((time.perf_counter() - start) / megapixels)
                    cpu_seconds[key].append((time.process_time() - cpu_start) / megapixels)
    rows = [[*key, spread(seconds[key]), spread(cpu_seconds[key])] for key in calls]
    print(markdown_table(["engine", "precision", "seconds per Mpx", "CPU seconds per Mpx"], rows))


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"engines.py: {error}")
