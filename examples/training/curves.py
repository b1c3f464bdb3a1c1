#!/usr/bin/env python
"""Draw what trainings have logged: the loss, and the PSNR on the validation pairs.

    python examples/training/curves.py my-gdd another-gdd -o curves.png

A colour is a training. The loss is the mean over each hundredth of the steps.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator


LINES = {"improved": "-", "origin": "--"}
MARKERS = "so^Dv<>ph*"  # by number of steps


def read_log(folder: str) -> list[dict]:
    file = Path(folder) / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        raise ValueError(f"{file} is empty: {folder} has not done a step.")
    return lines


def draw_loss(axes, lines: list[dict], color: str, label: str):
    points = np.array([(line["step"], line["loss"]) for line in lines if "loss" in line])
    parts = np.array_split(points, min(100, len(points)))
    axes.plot(*np.array([part.mean(0) for part in parts]).T, color=color, label=label)


def draw_psnr(axes, lines: list[dict], color: str, set_name: str) -> dict[str, Line2D]:
    """Draw one training's scores on one set, on all pairs if it has no name; return what the legend needs."""
    entries = {}
    for key in lines[-1]:
        match = re.fullmatch(r"psnr/([a-z]+)_?(\d*)/?(.*)", key)
        if match is None or match[3] != set_name or match.groups()[:2] == ("origin", "1"):  # that of improved
            continue
        rule, number = match[1], match[2]
        steps, scores = zip(*((line["step"], line[key]) for line in lines if key in line), strict=True)
        if rule == "noisy":
            label, style = "noisy", {"linestyle": ":"}
            axes.axhline(scores[-1], color="gray", **style)
        else:
            label = f"{rule}, {number} step{'s' * (number != '1')}"
            style = {"linestyle": LINES[rule], "marker": MARKERS[int(number) % len(MARKERS)], "markersize": 5}
            axes.plot(steps, scores, color=color, **style)
        entries[label] = Line2D([], [], color="gray", label=label, **style)
    return entries


def main(folders: list[str], output: str):
    logs = {folder: read_log(folder) for folder in folders}
    scores = {folder: [line for line in lines if "psnr/noisy" in line] for folder, lines in logs.items()}
    keys = dict.fromkeys(key for lines in scores.values() for line in lines for key in line)
    sets = [key.split("/")[2] for key in keys if key.startswith("psnr/noisy/")] or [""]

    figure, axes = plt.subplots(1, 1 + len(sets), figsize=(6 + 5 * len(sets), 4.5), layout="constrained")
    entries = [{} for _ in sets]
    for i, folder in enumerate(folders):
        draw_loss(axes[0], logs[folder], f"C{i}", Path(folder).resolve().name)
        for j, set_name in enumerate(sets):
            if scores[folder]:
                entries[j] |= draw_psnr(axes[1 + j], scores[folder], f"C{i}", set_name)
    axes[0].set(title="training loss", xlabel="step", yscale="log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].minorticks_off()
    axes[0].legend()
    for panel, set_name, labels in zip(axes[1:], sets, entries, strict=True):
        panel.set(title=f"validation, {set_name}" if set_name else "validation", xlabel="step", ylabel="PSNR, dB")
        if labels:
            panel.legend(handles=list(labels.values()))
            # A new network begins far below where it ends; shown in full, the rest would be pressed flat.
            lowest = min(line.get_ydata()[-1] for line in panel.lines)
            panel.set_ylim(bottom=max(panel.get_ylim()[0], lowest - 2))
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="Output folder of a training.")
    parser.add_argument("-o", "--output", default="curves.png", help="A picture, of any type that matplotlib writes.")
    args = parser.parse_args()
    try:
        main(args.folders, args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"curves.py: {error}")
