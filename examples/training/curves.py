#!/usr/bin/env python
"""Draw what trainings have logged: the loss, and the PSNR on the validation pairs.

    python examples/training/curves.py my-gdd another-gdd -o curves.png

The loss is the mean over each hundredth of the steps.
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


STYLES = {"noisy": {"linestyle": ":"}, "improved": {"marker": "."}, "origin": {"linestyle": "--", "marker": "."}}


def read_log(folder: str) -> list[dict]:
    file = Path(folder) / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        raise ValueError(f"{file} is empty: {folder} has not done a step.")
    return lines


def draw_loss(axes, lines: list[dict], name: str):
    points = np.array([(line["step"], line["loss"]) for line in lines if "loss" in line])
    parts = np.array_split(points, min(100, len(points)))
    axes.plot(*np.array([part.mean(0) for part in parts]).T, label=name)


def draw_psnr(axes, lines: list[dict], name: str, set_name: str):
    """Draw the scores of a training on one validation set, or on all pairs if `set_name` is empty."""
    for key in dict.fromkeys(key for line in lines for key in line):
        match = re.fullmatch(r"psnr/([a-z]+)_?(\d*)/?(.*)", key)
        # In one step, both rules are the same
        if match and match[3] == set_name and match.groups()[:2] != ("origin", "1"):
            points = [(line["step"], line[key]) for line in lines if key in line]
            label = f"{name}, {match[1]} {match[2]}".strip()
            axes.plot(*zip(*points, strict=True), label=label, **STYLES[match[1]])


def mark_points_below(axes):
    """Mark the points below the frame by triangles at its edge."""
    bottom, label = axes.get_ylim()[0], "below the frame"
    for line in list(axes.lines):
        steps, scores = map(np.asarray, line.get_data())
        below = steps[scores < bottom]
        if len(below):
            style = {"linestyle": "", "marker": "v", "color": line.get_color(), "clip_on": False}
            axes.plot(below, np.full(len(below), bottom), label=label, **style)
            label = None  # once in the legend


def main(folders: list[str], output: str):
    logs = {folder: read_log(folder) for folder in folders}
    keys = dict.fromkeys(key for lines in logs.values() for line in lines for key in line)
    sets = [key.split("/")[2] for key in keys if key.startswith("psnr/noisy/")] or [""]

    figure, axes = plt.subplots(1, 1 + len(sets), figsize=(6 + 5 * len(sets), 4.5), layout="constrained")
    axes[0].set(title="training loss", yscale="log")
    for name, lines in logs.items():
        draw_loss(axes[0], lines, name)
        for panel, set_name in zip(axes[1:], sets, strict=True):
            panel.set(title=f"validation {set_name}", ylabel="PSNR (dB)")
            draw_psnr(panel, lines, name, set_name)
    for panel in axes[1:]:
        if panel.lines:  # a new network starts far below where it ends, which would flatten the rest
            lowest = min(line.get_ydata()[-1] for line in panel.lines)
            panel.set_ylim(bottom=max(panel.get_ylim()[0], lowest - 2))
            mark_points_below(panel)
    for panel in axes:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="Output folder of a training.")
    parser.add_argument("-o", "--output", default="curves.png", help="An image of any type that matplotlib writes.")
    args = parser.parse_args()
    try:
        main(args.folders, args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"curves.py: {error}")
