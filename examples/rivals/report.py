#!/usr/bin/env python
"""Print what the trained rivals cost beside what evaluate.py measured of them, and plot PSNR against time and steps.

python examples/rivals/report.py --rivals_dir rivals --results out/rivals/results.json --plot out/rivals.png
"""

import argparse
import inspect
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))  # to import as the other examples do

import numpy as np
from evaluation.peers import rival_options
from matplotlib.figure import Figure
from options import HelpFormatter

from gdd_diffusers.hub import markdown_table
from rivals import RIVALS, load


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--rivals_dir", type=Path, required=True, help="Folder that train.py wrote.")
    add("--results", type=Path, help="results.json of evaluate.py --compare rival:FOLDER ...")
    add("--plot", type=Path, help="File for the curves.")
    return parser.parse_args(argv)


def cost_table(folders: list[Path]) -> str:
    """Return what each rival is, and what it was trained with."""
    rows = []
    for folder in folders:
        training = json.loads((folder / "training.json").read_text())
        cells = [training["parameters"] / 1e3, load(folder).flops_per_pixel() / 1e3, training["seconds"]]
        cells += [training["steps"], training["pixels"] / 1e6, training["psnr"]]
        formats = ["{:.0f}", "{:.0f}", "{:.0f}", "{:d}", "{:.0f}", "{:.2f}"]
        rows.append([folder.name, *(text.format(cell) for text, cell in zip(formats, cells, strict=True))])
    header = ["", "parameters, thousands", "kFLOP a pixel", "seconds", "steps", "Mpx seen", "validation, dB"]
    return markdown_table(header, rows)


def quality_table(parts: list[dict]) -> str:
    """Return the PSNR and SSIM of every method on every set, and its speed on the first."""
    names = list(dict.fromkeys(method["name"] for part in parts for method in part["methods"]))
    rows = []
    for name in names:
        figures = [m.get("figures", {}) for part in parts for m in part["methods"] if m["name"] == name]
        cells = [f"{f['psnr']:.2f} / {f['ssim']:.3f}" if f else "" for f in figures]
        speed = figures[0].get("mpx_per_second")
        rows.append([name, *cells, f"{speed:.2g}" if speed else ""])
    return markdown_table(["PSNR, dB / SSIM", *(part["name"] for part in parts), "Mpx/s"], rows)


def plot(folders: list[Path], parts: list[dict], file: Path):
    """Plot the PSNR on the validation images against the time of training, and on the test sets against steps."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    of_time, of_steps = figure.subplots(1, 2)
    for i, folder in enumerate(folders):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        points = [(line["seconds"], line["psnr"]) for line in lines if "psnr" in line]
        style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
        of_time.plot(*zip(*points, strict=True), marker=".", label=folder.name, **style)
    of_time.set(xlabel="seconds of training", ylabel="PSNR on held-out images, dB")

    signatures = {folder.name: inspect.signature(load(folder).denoise).parameters for folder in folders}
    defaults = {name: arguments["steps"].default for name, arguments in signatures.items() if "steps" in arguments}
    curves = {}
    for name in dict.fromkeys(method["name"] for part in parts for method in part["methods"]):
        label, options = name.partition(" (")[0], rival_options(name.partition(" (")[2].rstrip(")"))
        if label in defaults:
            rows = [m for part in parts for m in part["methods"] if m["name"] == name and "figures" in m]
            steps = options.pop("steps", defaults[label])
            label = " ".join([label, *(f"{key}={value}" for key, value in options.items())])
            curves.setdefault(label, []).append((steps, np.mean([m["figures"]["psnr"] for m in rows])))
    for label, points in curves.items():
        of_steps.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    of_steps.set(xlabel="steps", ylabel="PSNR, mean of the test sets, dB", xscale="log")
    of_steps.xaxis.set_major_formatter("{x:g}")
    of_steps.xaxis.set_minor_formatter("")
    for axes in (of_time, of_steps):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)


def main(args: argparse.Namespace):
    folders = [args.rivals_dir / name for name in RIVALS if (args.rivals_dir / name / "training.json").exists()]
    parts = json.loads(args.results.read_text()) if args.results else []
    print(cost_table(folders))
    if parts:
        print(f"\n{quality_table(parts)}")
    if args.plot:
        plot(folders, parts, args.plot)


if __name__ == "__main__":
    main(parse_args())
