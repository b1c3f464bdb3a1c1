#!/usr/bin/env python
"""Measure the network against the processor, the pipeline against the network, and the `gdd` command.

    python examples/benchmark.py                  # the bundled weights; about ten minutes on two cores
    python examples/benchmark.py --megapixels 12  # without the 100-megapixel image
    python examples/benchmark.py --model gdd-small gdd-fast --dtype float32 bfloat16

Prints tables. Times are medians of interleaved runs, with the smallest and the largest in parentheses. It uses a CUDA
GPU if there is one, and leaves the command out where it is not installed.
"""

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.hub import markdown_table
from gdd_diffusers.memory import keep_freed_memory
from gdd_diffusers.pipeline_real_denoise import DEFAULT_MODEL


GDD = str(Path(sys.executable).parent / "gdd")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[None], help="Names, folders or Hub repos.")
    parser.add_argument("--megapixels", type=int, nargs="+", default=[12, 100], help="Image sizes for the command.")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--num_images", type=int, default=24, help="Of a folder of small images, for the command.")
    return parser.parse_args()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def noisy_photograph(megapixels: float) -> np.ndarray:
    """Draw smooth shapes with noise, [H, W, 3] uint8 in a ratio of 4 to 3, in bands to keep memory low."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    generator = np.random.default_rng(0)
    image = np.empty((height, width, 3), np.uint8)
    columns = 128 + 60 * np.sin(np.arange(width)[:, None] / np.array([97, 131, 173]))
    for top in range(0, height, 512):
        rows = np.arange(top, min(top + 512, height))[:, None, None]
        band = columns + 40 * np.sin(rows / 111) + generator.normal(0, 15, (len(rows), width, 3))
        image[top : top + 512] = band.clip(0, 255)
    return image


@torch.no_grad()
def pipeline_against_network(pipes: dict[str, RealDenoisePipeline], sizes: list[int], runs: int):
    """Time whole calls of the pipelines, calls of their networks alone, on a tile, and a matrix product."""
    device = next(iter(pipes.values())).device
    on_gpu = device.type == "cuda"
    images = {megapixels: noisy_photograph(megapixels) for megapixels in sizes}
    timestep = torch.tensor(1000.0, device=device)
    tiles, flops, times = {}, {}, {}
    memory = dict.fromkeys(itertools.product(pipes, sizes), 0.0)
    for name, pipe in pipes.items():
        side = 4096 if on_gpu else pipe.config.tile_size or 512
        tile = F.pixel_unshuffle(torch.rand(1, 3, side, side, device=device), pipe.config.pixel_unshuffle)
        tiles[name] = tile.to(pipe.unet.dtype, memory_format=torch.channels_last)  # as in the pipeline
        with FlopCounterMode(display=False) as counter:
            pipe.unet(tiles[name], timestep)
        flops[name] = counter.get_total_flops() / side**2
        times[name] = {key: [] for key in ("product", "network", *sizes)}
    for _ in range(runs):
        for name, pipe in pipes.items():
            tile = tiles[name]
            with keep_freed_memory():  # as the pipeline does
                matrix = torch.rand(*[16384 if on_gpu else 4096] * 2, dtype=pipe.unet.dtype, device=device)
                product = seconds(lambda m=matrix: m @ m, repeat=4) / (2 * len(matrix) ** 3)
                network = seconds(lambda pipe=pipe, tile=tile: pipe.unet(tile, timestep), repeat=4)
            times[name]["product"].append(product)
            times[name]["network"].append(network / (tile.numel() / 3e6))
            for megapixels, image in images.items():
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                whole = seconds(lambda pipe=pipe, image=image: pipe(image, num_inference_steps=1, output_type="np"))
                times[name][megapixels].append(whole / megapixels)
                if on_gpu:
                    memory[name, megapixels] = torch.cuda.max_memory_allocated() / 1e6
    rows = []
    for (name, megapixels), peak in memory.items():
        product, network, pipeline = (times[name][key] for key in ("product", "network", megapixels))
        rate, network_rate = (1 / statistics.median(values) for values in (product, network))
        row = [name, f"{flops[name] / 1e3:.0f}", f"{rate / 1e9:.0f}", f"{network_rate:.2f}"]
        row += [f"{flops[name] * 1e6 * network_rate / rate:.0%}", f"{megapixels}"]
        overhead = [a / b for a, b in zip(pipeline, network, strict=True)]
        row += [f"{1 / statistics.median(pipeline):.2f}", spread(overhead)]
        rows.append(row + [f"{peak:.0f}"] * on_gpu)
    header = ["", "kFLOP per pixel", "matrix product, GFLOP/s", "network, Mpx/s", "of the product's rate"]
    header += ["image, Mpx", "pipeline, Mpx/s", "pipeline / network, time"] + ["peak GPU MB"] * on_gpu
    print(f"\n## One step\n\n{markdown_table(header, rows)}")


def seconds(function, repeat: int = 1) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat


def run(command: list[str]) -> tuple[float, float, float]:
    """Return the wall-clock seconds, CPU seconds and peak resident megabytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise OSError(f"{' '.join(command)} failed: {errors.decode()}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def denoise_command(args):
    """Time `gdd denoise` on single images, and on a folder of small ones beside one with as many pixels."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = {}
        for megapixels in args.megapixels:
            file = folder / f"{megapixels}.{'jpg' if megapixels <= 50 else 'tif'}"
            Image.fromarray(noisy_photograph(megapixels)).save(file, quality=95)
            inputs[f"{megapixels} Mpx {file.suffix}"] = megapixels, file
        if args.num_images:
            (folder / "small").mkdir()
            sizes = np.linspace(0.5, 1.5, args.num_images)  # no two the same
            for i, megapixels in enumerate(sizes):
                Image.fromarray(noisy_photograph(megapixels)).save(folder / "small" / f"{i}.jpg", quality=95)
            inputs[f"{args.num_images} images of 0.5 to 1.5 Mpx"] = sizes.sum(), folder / "small"
            Image.fromarray(noisy_photograph(sizes.sum())).save(folder / "whole.jpg", quality=95)
            inputs[f"one image of {sizes.sum():.0f} Mpx"] = sizes.sum(), folder / "whole.jpg"
        for model, dtype in itertools.product(args.model, args.dtype):
            for name, (megapixels, path) in inputs.items():
                command = [GDD, "denoise", str(path), "-o", str(folder / "out" / path.name), "--overwrite"]
                command += ["--max-pixels", "1000000000"]
                command += ["--steps", "1", "--dtype", dtype] + (["--model", model] if model else [])
                wall, _, memory = run(command)
                rate = f"{megapixels / wall:.2f}"
                rows.append([f"{model or DEFAULT_MODEL}, {dtype}", name, f"{wall:.1f}", rate, f"{memory:.0f}"])
    header = ["model", "input", "seconds, with start", "Mpx/s", "peak resident MB"]
    print(f"\n## `gdd denoise --steps 1`\n\n{markdown_table(header, rows, 2)}")


def start_up(runs: int):
    imports = ["import diffusers, torch", "import gdd_diffusers", "from gdd_diffusers import RealDenoisePipeline"]
    commands = {code: [sys.executable, "-c", code] for code in imports}
    commands |= {f"gdd {option}": [GDD, option] for option in ("--version", "--help")}
    times = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(run(command)[1])
    rows = [[f"`{name}`", spread(values)] for name, values in times.items()]
    print(f"\n## Start\n\n{markdown_table(['', 'CPU seconds'], rows)}")


def main(args):
    on_gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if Path(GDD).exists():
        start_up(args.runs)
        denoise_command(args)  # before this process takes much memory, which is counted with that of the commands
    pipes = {}
    for model, dtype in itertools.product(args.model, args.dtype):
        pipe = RealDenoisePipeline.from_pretrained(model, dtype=getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)
        pipes[f"{model or DEFAULT_MODEL}, {dtype}"] = pipe.to("cuda" if on_gpu else "cpu")
    sizes = args.megapixels if on_gpu else [min(args.megapixels)]
    pipeline_against_network(pipes, sizes, args.runs)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")
