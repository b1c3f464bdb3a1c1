#!/usr/bin/env python
"""Measure what the pipeline adds to the cost of the network, and the time and memory of the `gdd` command.

    python examples/benchmark.py                  # the bundled weights; about ten minutes on two cores
    python examples/benchmark.py --megapixels 12  # without the 100-megapixel image

Prints tables. Times are medians of interleaved runs, with the smallest and the largest in parentheses.
"""

import argparse
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

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.hub import markdown_table
from gdd_diffusers.memory import keep_freed_memory


GDD = str(Path(sys.executable).parent / "gdd")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub repo; the bundled weights by default.")
    parser.add_argument("--megapixels", type=int, nargs="+", default=[12, 100], help="Image sizes for the command.")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
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
def pipeline_against_network(pipe, image: np.ndarray, runs: int):
    """Time whole calls of the pipeline against calls of the network alone, on a tile."""
    megapixels = image.shape[0] * image.shape[1] / 1e6
    side = pipe.config.tile_size or 512
    tile = F.pixel_unshuffle(torch.rand(1, 3, side, side), pipe.config.pixel_unshuffle)
    tile = tile.to(pipe.unet.dtype, memory_format=torch.channels_last)  # and memory kept, as in the pipeline
    network, whole = [], []
    for _ in range(runs):
        start = time.perf_counter()
        with keep_freed_memory():
            for _ in range(4):
                pipe.unet(tile, torch.tensor(1000.0))
        network.append((time.perf_counter() - start) / (4 * side**2 / 1e6))
        start = time.perf_counter()
        pipe(image, num_inference_steps=1, output_type="np")
        whole.append((time.perf_counter() - start) / megapixels)
    print(f"\n## One step on {megapixels:.0f} Mpx, tile_size {side}, {pipe.unet.dtype}\n")
    times = {"network alone": network, "pipeline": whole}
    rows = [[name, spread(values), f"{1 / statistics.median(values):.2f}"] for name, values in times.items()]
    print(markdown_table(["", "seconds per Mpx", "Mpx/s"], rows))
    print(f"\npipeline / network {spread([a / b for a, b in zip(whole, network, strict=True)])}")


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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in args.megapixels:
            file = Path(folder) / (f"{megapixels}.jpg" if megapixels <= 50 else f"{megapixels}.tif")
            Image.fromarray(noisy_photograph(megapixels)).save(file, quality=95)
            command = [GDD, "denoise", str(file), "-o", str(file.with_stem("out")), "--steps", "1", "--overwrite"]
            command += ["--dtype", args.dtype] + (["--model", args.model] if args.model else [])
            seconds, _, memory = run(command)
            name = f"{megapixels} Mpx {file.suffix}"
            rows.append([name, f"{seconds:.1f}", f"{seconds / megapixels:.3f}", f"{memory:.0f}"])
    header = ["image", "seconds", "seconds per Mpx", "peak resident MB"]
    print(f"\n## `gdd denoise --steps 1`\n\n{markdown_table(header, rows)}")


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
    threads = f"{torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {threads}")
    pipe = RealDenoisePipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    pipe.set_progress_bar_config(disable=True)
    start_up(args.runs)
    pipeline_against_network(pipe, noisy_photograph(min(args.megapixels)), args.runs)
    denoise_command(args)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")
