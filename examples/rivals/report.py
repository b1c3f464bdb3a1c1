#!/usr/bin/env python
"""Print what the trained rivals cost and how well they denoise, and plot it against training time and steps.

    python examples/rivals/report.py --rivals_dir rivals --output_dir out/rivals

measure.py calls it in the end. Rivals whose training is not finished are left out.
"""

import argparse
import inspect
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))  # to import as the other examples do

try:
    from evaluation.peers import rival_options
    from matplotlib.figure import Figure
except ImportError as error:
    sys.exit(f"report.py: {error}; install the extra: pip install 'gdd-diffusers[eval]'")
from options import HelpFormatter
from PIL import Image

from gdd_diffusers.comparison import stack
from gdd_diffusers.hub import markdown_table
from rivals import RIVALS, load


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--rivals_dir", type=Path, required=True, help="Folder that train.py wrote.")
    add("--output_dir", type=Path, help="Folder that measure.py wrote, and for the plots; cost alone without it.")
    return parser.parse_args(argv)


def trained(rivals_dir: Path) -> dict[str, dict]:
    """
    Return the summary of each finished training, and say which are not finished.

    Raises:
        ValueError: If none is.
    """
    summaries = {}
    for name in RIVALS:
        file = rivals_dir / name / "training.json"
        if file.exists():
            summaries[name] = json.loads(file.read_text())
        else:
            state = "not finished" if (rivals_dir / name).exists() else "not begun"
            print(f"{name} is left out: its training is {state}.", file=sys.stderr)
    if not summaries:
        raise ValueError(f"{rivals_dir} holds no trained rival; train.py trains them.")
    return summaries


def split_name(name: str) -> tuple[str, dict[str, int | str]]:
    """Return the rival and the options of a row such as `ddpm (steps=5,sampler=ddpm)`."""
    rival, _, options = name.partition(" (")
    return rival, rival_options(options.rstrip(")"))


def cost_table(rivals_dir: Path, summaries: dict[str, dict]) -> str:
    """Return what each rival is, and what it was trained with."""
    rows = []
    for name, training in summaries.items():
        cells = [training["parameters"] / 1e3, load(rivals_dir / name).flops_per_pixel() / 1e3]
        cells += [training["seconds"] / 60, training["steps"], training["pixels"] / 1e6, training["psnr"]]
        formats = ["{:.0f}", "{:.0f}", "{:.3g}", "{:d}", "{:.0f}", "{:.2f}"]
        rows.append([name, *(text.format(cell) for text, cell in zip(formats, cells, strict=True))])
    header = ["", "parameters, thousands", "kFLOP a pixel", "minutes", "steps", "Mpx seen", "validation, dB"]
    return markdown_table(header, rows)


def quality_table(parts: list[dict], rivals_dir: Path, summaries: dict[str, dict]) -> str:
    """Return the PSNR and SSIM of every method on every test set, its speed on the first, and what it costs."""
    rows = []
    for name in dict.fromkeys(method["name"] for part in parts for method in part["methods"]):
        figures = [{m["name"]: m.get("figures", {}) for m in part["methods"]}.get(name, {}) for part in parts]
        cells = [f"{f['psnr']:.2f} / {f['ssim']:.3f}" if f else "" for f in figures]
        speed = next((f["mpx_per_second"] for f in figures if "mpx_per_second" in f), None)
        cells.append(f"{speed:.2g}" if speed else "")
        rival, options = split_name(name)
        cost = ["", ""]
        if rival in summaries:
            flops = load(rivals_dir / rival).flops_per_pixel(**options)
            cost = [f"{summaries[rival]['parameters'] / 1e3:.0f}", f"{flops / 1e3:.0f}"]
        rows.append([name, *cells, *cost])
    counts = [len(part["pictures"]) for part in parts]
    sets = [f"{part['name']}, {n} image{'s' * (n > 1)}" for part, n in zip(parts, counts, strict=True)]
    header = ["PSNR, dB / SSIM", *sets, "Mpx/s", "parameters, thousands", "kFLOP a pixel"]
    return markdown_table(header, rows)


def plot_training(rivals_dir: Path, summaries: dict[str, dict], file: Path):
    """Plot the PSNR on the validation images against the minutes of training, the best rival first in the legend."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(sorted(summaries, key=lambda name: -summaries[name]["psnr"])):
        lines = [json.loads(line) for line in (rivals_dir / name / "log.jsonl").read_text().splitlines()]
        points = [(line["seconds"] / 60, line["psnr"]) for line in lines if "psnr" in line]
        style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "marker": ".os^vD*"[i % 7]}
        axes.plot(*zip(*points, strict=True), label=f"{summaries[name]['psnr']:.2f} {name}", markersize=5, **style)
    axes.set(xlabel="minutes of training", ylabel="PSNR on held-out images, dB")
    # all ends are visible; the beginnings of some are far below
    axes.set_ylim(bottom=min(training["psnr"] for training in summaries.values()) - 1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", title="PSNR at the end, dB")
    figure.savefig(file, dpi=110)


def plot_steps(parts: list[dict], rivals_dir: Path, summaries: dict[str, dict], file: Path):
    """Plot the PSNR on each test set against the number of steps of the rivals that have steps."""
    signatures = {name: inspect.signature(load(rivals_dir / name).denoise).parameters for name in summaries}
    figure = Figure(figsize=(4.5 * len(parts), 4.5), layout="constrained")
    legend = {}
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        curves = {}
        for method in part["methods"]:
            name, options = split_name(method["name"])
            if "figures" in method and "steps" in signatures.get(name, {}):
                # an option that is not given has the default of the rival's denoise
                values = {key: options.get(key, p.default) for key, p in signatures[name].items() if key != "noisy"}
                steps = values.pop("steps")
                label = ", ".join([name, *(f"{value}" for key, value in values.items() if key in ("rule", "sampler"))])
                if values.get("samples", 1) > 1:
                    label += f", mean of {values['samples']}"
                curves.setdefault(label, []).append((steps, method["figures"]["psnr"]))
        for label, points in curves.items():
            (legend[label],) = axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        ticks = sorted({steps for points in curves.values() for steps, _ in points})
        axes.set(title=part["name"], xlabel="steps", ylabel="PSNR, dB", xscale="log")
        axes.set_xticks(ticks, [str(steps) for steps in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    if legend:
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(file, dpi=110)


def main(args: argparse.Namespace):
    summaries = trained(args.rivals_dir)
    print(cost_table(args.rivals_dir, summaries))
    if not args.output_dir:
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    plot_training(args.rivals_dir, summaries, args.output_dir / "training.png")
    files = {file.parent.name: file for file in args.output_dir.glob("*/results.json")}
    parts = {name: json.loads(file.read_text()) for name, file in files.items()}
    rows, steps = parts.get("images", []) + parts.get("small", []), parts.get("steps", [])
    for table in (rows, steps):
        if table:
            print(f"\n{quality_table(table, args.rivals_dir, summaries)}")
    if rows:
        crops = [args.output_dir / name / "crops.png" for name in ("images", "small") if name in parts]
        stack([Image.open(file) for file in crops]).save(args.output_dir / "crops.png")
    if steps:
        plot_steps(steps, args.rivals_dir, summaries, args.output_dir / "steps.png")


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: {error}")
