#!/usr/bin/env python
"""Measure the network against the processor, the pipeline against the network, the `gdd` command, and its peers.

    python examples/benchmark.py                  # the bundled weights; a few minutes on two cores
    python examples/benchmark.py --parts network --model gdd-small gdd-fast --dtype float32 bfloat16
    python examples/benchmark.py --parts sizes --megapixels 1 4 12 50 100 400
    python examples/benchmark.py --parts peers --results out/evaluate/results.json

Prints a table for each part:

    start    CPU seconds until `gdd` answers
    network  the network next to a matrix product, and the pipeline next to the network
    sizes    `gdd denoise` by size of the image: time per pixel and peak memory
    folder   `gdd denoise` on many images of about a megapixel, and on one of as many pixels
    peers    the models next to other denoisers; --results adds the quality that evaluate.py has measured, and a plot

Times are medians of interleaved runs, with the smallest and the largest in parentheses; those of `gdd denoise` are of
one run, without its start. It uses a CUDA GPU if there is one. Run it on an idle machine.
"""

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peak_memory import peak_memory
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.app.denoising import choose_device
from gdd_diffusers.hub import markdown_table
from gdd_diffusers.image_processor import pixels_to_tensor
from gdd_diffusers.memory import keep_freed_memory
from gdd_diffusers.pipeline_real_denoise import DEFAULT_MODEL


GDD = str(Path(sys.executable).parent / "gdd")
PARTS = ("start", "network", "sizes", "folder", "peers")
MATRIX_SIZE = {"cuda": 16384, "cpu": 4096}
DENOISED_MEGAPIXELS = 12  # at least, of small images; the first one takes longer


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS[:-1], choices=PARTS, help="All but peers by default.")
    parser.add_argument("--model", nargs="+", default=[DEFAULT_MODEL], help="Names, folders or Hub repos.")
    dtypes = ["auto", "float32", "bfloat16"]
    parser.add_argument("--dtype", nargs="+", default=["auto"], choices=dtypes, help="auto: as `gdd denoise`.")
    parser.add_argument("--megapixels", type=int, nargs="+", default=[12], help="Image sizes, of network and sizes.")
    parser.add_argument("--num_images", type=int, default=24, help="In the folder.")
    parser.add_argument("--compare", nargs="+", default=["ffdnet", "wavelet", "nlm"], help="Peers, as in evaluate.py.")
    parser.add_argument("--results", type=Path, help="The results.json of evaluate.py with these models and peers.")
    parser.add_argument("--plot", type=Path, default="quality_against_speed.png", help="The plot to write.")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def noisy_photograph(megapixels: float) -> np.ndarray:
    """Draw smooth shapes with noise, [H, W, 3] uint8 in a ratio of 4 to 3, in bands to keep memory low."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    noise = np.random.default_rng(0).normal(0, 15, (512, width, 3)).astype(np.float32)  # of all bands
    image = np.empty((height, width, 3), np.uint8)
    columns = 128 + 60 * np.sin(np.arange(width, dtype=np.float32)[:, None] / np.float32([97, 131, 173]))
    for top in range(0, height, 512):
        band = image[top : top + 512]
        rows = np.arange(top, top + len(band), dtype=np.float32)[:, None, None]
        band[:] = (columns + 40 * np.sin(rows / 111) + noise[: len(band)]).clip(0, 255)
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
                matrix = torch.rand(*[MATRIX_SIZE[device.type]] * 2, dtype=pipe.unet.dtype, device=device)
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


def run(command: list[str]) -> tuple[float, float, str]:
    """Return the CPU seconds, the peak resident megabytes and the output of a command."""
    peak, pid = 0.0, 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while not pid:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.02)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        output.seek(0)
        said = output.read()
    if status:
        raise OSError(f"{' '.join(command)} failed: {said}")
    return usage.ru_utime + usage.ru_stime, peak, said


def denoise(inputs: Path, model: str, dtype: str) -> tuple[float, float]:
    """Return the seconds that `gdd denoise` takes after its start for a folder, and its peak memory in MB."""
    with tempfile.TemporaryDirectory(dir=inputs.parent) as out:
        command = [GDD, "denoise", str(inputs), "-o", out, "--max-pixels", "1000000000", "--steps", "1"]
        _, memory, said = run([*command, "--model", model, "--dtype", dtype])
    return float(re.search(r"; ([\d.]+) s, ", said)[1]), memory


def save_images(folder: Path, sizes: list[float]):
    folder.mkdir()
    for i, megapixels in enumerate(sizes):
        Image.fromarray(noisy_photograph(megapixels)).save(folder / f"{i}.jpg", quality=95)


def image_sizes(args):
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for megapixels in args.megapixels:
            count = max(1, DENOISED_MEGAPIXELS // megapixels)
            save_images(Path(name, str(megapixels)), [megapixels] * count)
        for model, dtype, megapixels in itertools.product(args.model, args.dtype, args.megapixels):
            count = max(1, DENOISED_MEGAPIXELS // megapixels)
            seconds, memory = denoise(Path(name, str(megapixels)), model, dtype)
            per_megapixel = f"{seconds / (count * megapixels):.3f}"
            rows.append([f"{model}, {dtype}", f"{megapixels}", f"{count}", per_megapixel, f"{memory:.0f}"])
    header = ["", "image, Mpx", "images", "seconds per Mpx", "peak memory, MB"]
    print(f"\n## `gdd denoise` by size\n\n{markdown_table(header, rows, 1)}")


def folder_of_images(args):
    rows = []
    sizes = np.linspace(0.5, 1.5, args.num_images)  # no two the same
    inputs = {f"{len(sizes)} images of 0.5 to 1.5 Mpx": sizes, f"one image of {sizes.sum():.0f} Mpx": [sizes.sum()]}
    with tempfile.TemporaryDirectory() as name:
        for title, megapixels in inputs.items():
            save_images(Path(name, title), megapixels)
        for model, dtype in itertools.product(args.model, args.dtype):
            for title in inputs:
                seconds, memory = denoise(Path(name, title), model, dtype)
                rows.append([f"{model}, {dtype}", title, f"{seconds / sizes.sum():.3f}", f"{memory:.0f}"])
    header = ["", "input", "seconds per Mpx", "peak memory, MB"]
    print(f"\n## `gdd denoise` on a folder\n\n{markdown_table(header, rows, 2)}")


def start_up(runs: int):
    imports = ["import diffusers, torch", "import gdd_diffusers", "from gdd_diffusers import RealDenoisePipeline"]
    commands = {code: [sys.executable, "-c", code] for code in imports}
    commands |= {f"gdd {option}": [GDD, option] for option in ("--version", "--help")}
    times = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(run(command)[0])
    rows = [[f"`{name}`", spread(values)] for name, values in times.items()]
    print(f"\n## Start\n\n{markdown_table(['', 'CPU seconds'], rows)}")


def against_peers(pipes: dict[str, RealDenoisePipeline], args):
    """Time models and their peers, blind, on one image in turn, beside the quality that evaluate.py has measured."""
    from evaluation.peers import blind_sigma, load_peer, short_name  # of the extra [eval]

    parts = json.loads(args.results.read_text()) if args.results else []
    psnr = mean_psnr(parts)
    image = pixels_to_tensor(noisy_photograph(1)).movedim(0, -1).numpy()
    calls = {
        name: lambda pipe=pipe: pipe(image, num_inference_steps=1, output_type="np") for name, pipe in pipes.items()
    }
    for peer in args.compare:
        denoise_image, takes_sigma = load_peer(peer, next(iter(pipes.values())).device)
        calls[short_name(peer)] = lambda function=denoise_image, takes_sigma=takes_sigma: (
            function(image, blind_sigma(image)) if takes_sigma else function(image)
        )
    times = {name: [] for name in calls}
    for i in range(args.runs + 1):
        for name, call in calls.items():
            taken = seconds(call)
            if i > 0:  # the first call compiles, or chooses an algorithm
                times[name].append(taken)
    rows, points = [], []
    for name, taken in times.items():
        speed = image.shape[0] * image.shape[1] / 1e6 / statistics.median(taken)
        title = Path(name.split(", ")[0]).name if name in pipes else name  # in results.json
        suffixes = {None: "", "blind": ", blind", "best": ", best sigma"}
        known = {suffixes[sigma]: psnr[title, sigma] for sigma in suffixes if (title, sigma) in psnr}
        rows.append([name, f"{speed:.3g}", "; ".join(f"{value:.2f}{suffix}" for suffix, value in known.items())])
        points += [(name + suffix, speed, value) for suffix, value in known.items()]
    print(f"\n## Peers, on an image of a megapixel\n\n{markdown_table(['', 'Mpx/s', 'PSNR, dB'], rows)}")
    if points:
        plot_quality(points, " and ".join(part["name"] for part in parts), args.plot)


def mean_psnr(parts: list[dict]) -> dict[tuple[str, str | None], float]:
    """Return the mean PSNR over all test sets in results.json, of models that of one step, by denoiser and sigma."""
    found = defaultdict(list)
    for method in itertools.chain.from_iterable(part["methods"] for part in parts):
        if method["steps"] in (None, 1) and "psnr" in method.get("figures", {}):
            found[method["kind"], method["sigma"]].append(method["figures"]["psnr"])
    return {name: statistics.fmean(values) for name, values in found.items() if len(values) == len(parts)}


def plot_quality(points: list[tuple[str, float, float]], test_sets: str, file: Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, speed, psnr in points:
        axes.plot(speed, psnr, "^" if name.endswith(", best sigma") else "o")
        axes.annotate(name, (speed, psnr), (4, 4), textcoords="offset points", fontsize="small")
    axes.set(xscale="log", xlabel="megapixels per second", ylabel=f"PSNR in dB, mean of {test_sets}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.25, 0.2)  # room for the names
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    print(f"\nWrote {file}")


def main(args):
    on_gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    args.dtype = [str(choose_device(dtype=name)[1]).removeprefix("torch.") for name in args.dtype]
    pipes = {}
    for model, dtype in itertools.product(args.model, args.dtype):
        pipe = RealDenoisePipeline.from_pretrained(model, dtype=getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)
        pipes[f"{model}, {dtype}"] = pipe.to("cuda" if on_gpu else "cpu")
    functions = {
        "start": lambda: start_up(args.runs),
        "network": lambda: pipeline_against_network(pipes, args.megapixels, args.runs),
        "sizes": lambda: image_sizes(args),
        "folder": lambda: folder_of_images(args),
        "peers": lambda: against_peers(pipes, args),
    }
    for part in args.parts:
        functions[part]()


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")
    except ImportError as error:  # of the peers
        sys.exit(f"benchmark.py: {error}; install the extra: pip install 'gdd-diffusers[eval]'")
