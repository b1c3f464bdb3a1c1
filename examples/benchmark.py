#!/usr/bin/env python
"""Measure what the pipeline costs beside the bare network, and the memory and start of the `gdd` command.

    python examples/benchmark.py                  # the bundled weights; about ten minutes on two cores
    python examples/benchmark.py --megapixels 12  # without the 100-megapixel picture

Prints tables. Every time is a median of interleaved runs, with the smallest and the largest behind it.
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
from gdd_diffusers.tiling import plan_tiles


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub repo; the bundled weights if not given.")
    parser.add_argument("--megapixels", type=int, nargs="+", default=[12, 100], help="Sizes for the command.")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def noisy_photograph(megapixels: float) -> np.ndarray:
    """Smooth shapes with noise on them, [H, W, 3] uint8 in a ratio of 4 to 3; made in bands, to need little memory."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    generator = np.random.default_rng(0)
    picture = np.empty((height, width, 3), np.uint8)
    columns = 128 + 60 * np.sin(np.arange(width)[:, None] / np.array([97, 131, 173]))
    for top in range(0, height, 512):
        rows = np.arange(top, min(top + 512, height))[:, None, None]
        band = columns + 40 * np.sin(rows / 111) + generator.normal(0, 15, (len(rows), width, 3))
        picture[top : top + 512] = band.clip(0, 255)
    return picture


@torch.no_grad()
def pipeline_against_network(pipe, picture: np.ndarray, runs: int):
    """The whole call beside the same number of network calls on ready-made tiles of the same shapes."""
    overlap, multiple, factor = pipe.config.tile_overlap, pipe.spatial_multiple, pipe.config.pixel_unshuffle
    tile_size = pipe.config.tile_size
    padded = [-(-side // multiple) * multiple for side in picture.shape[:2]]
    (height, tops), (width, lefts) = (plan_tiles(side, tile_size, overlap, multiple) for side in padded)
    # as apply_tiled_ batches them: up to a megapixel, from one row of tiles at a time
    batch_size = max(1, 2**20 // (height * width))
    batches = [min(batch_size, len(lefts) - i) for i in range(0, len(lefts), batch_size)] * len(tops)
    tiles = F.pixel_unshuffle(torch.rand(batch_size, 3, height, width), factor).to(pipe.unet.dtype)
    t = torch.tensor(1000.0)

    network, whole = [], []
    for _ in range(runs):
        start = time.perf_counter()
        for n in batches:
            pipe.unet(tiles[:n], t)
        network.append(time.perf_counter() - start)
        start = time.perf_counter()
        pipe(picture, num_inference_steps=1, output_type="np")
        whole.append(time.perf_counter() - start)
    pixels = picture.shape[0] * picture.shape[1]
    computed = len(tops) * len(lefts) * height * width
    tiles = f"{len(tops)}x{len(lefts)} tiles of {height}x{width}"
    print(f"\n## One step on {pixels / 1e6:.0f} Mpx, {tiles}, {pipe.unet.dtype}\n")
    print("| | seconds | Mpx/s |\n| --- | --- | --- |")
    print(f"| bare network calls | {spread(network)} | {pixels / 1e6 / statistics.median(network):.2f} |")
    print(f"| pipeline | {spread(whole)} | {pixels / 1e6 / statistics.median(whole):.2f} |")
    ratios = [a / b for a, b in zip(whole, network, strict=True)]
    print(f"\npipeline / network {spread(ratios)}; discarded margins cost {computed / pixels - 1:.1%} of the pixels")


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds on the clock, seconds of CPU and peak resident megabytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {errors.decode()}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def command(args):
    gdd = str(Path(sys.executable).parent / "gdd")
    print("\n## `gdd denoise --steps 1`\n\n| picture | seconds | seconds a Mpx | peak resident MB |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in args.megapixels:
            file = Path(folder) / (f"{megapixels}.jpg" if megapixels <= 50 else f"{megapixels}.tif")
            Image.fromarray(noisy_photograph(megapixels)).save(file, quality=95)
            options = ["--steps", "1", "--overwrite", "--dtype", args.dtype]
            options += ["--model", args.model] if args.model else []
            results = [run([gdd, "denoise", str(file), "-o", str(file.with_stem("out")), *options])]
            seconds, _, memory = results[0]
            print(f"| {megapixels} Mpx {file.suffix} | {seconds:.1f} | {seconds / megapixels:.3f} | {memory:.0f} |")


def start_up(runs: int):
    gdd = str(Path(sys.executable).parent / "gdd")
    commands = {
        "`import diffusers, torch`": [sys.executable, "-c", "import diffusers, torch"],
        "`import gdd_diffusers`": [sys.executable, "-c", "import gdd_diffusers"],
        "`from gdd_diffusers import RealDenoisePipeline`": [
            sys.executable,
            "-c",
            "from gdd_diffusers import RealDenoisePipeline",
        ],
        "`gdd --version`": [gdd, "--version"],
        "`gdd --help`": [gdd, "--help"],
    }
    times = {name: [] for name in commands}
    for _ in range(runs):
        for name, arguments in commands.items():
            times[name].append(run(arguments)[1])
    print("\n## Start\n\n| | CPU seconds |\n| --- | --- |")
    for name, values in times.items():
        print(f"| {name} | {spread(values)} |")


def main():
    args = parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    pipe = RealDenoisePipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    pipe.set_progress_bar_config(disable=True)
    start_up(args.runs)
    pipeline_against_network(pipe, noisy_photograph(min(args.megapixels)), args.runs)
    command(args)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")
