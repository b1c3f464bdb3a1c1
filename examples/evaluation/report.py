"""
Make tables, plots and sheets of crops from what `evaluate.py` has measured.

The data, also the content of `results.json`, is a list with a dictionary for each test set: its `name`, the names of
the measured `pictures`, `of` how many they were chosen, the `machine`, and the `methods`. Each of these is a
dictionary of fields of [`Method`] and of its `figures` or, if it failed, the `error`.
"""

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageOps

from gdd_diffusers.comparison import grid, most_different, stack
from gdd_diffusers.hub import markdown_table

from .results import NOISY_INPUT


# title of the column, and the format of its numbers
COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "gain": ("gain", "+.2f"),
    "worst_gain": ("worst gain", "+.2f"),
    "ssim": ("SSIM", ".4f"),
    "ssim_matlab": ("SSIM (MATLAB)", ".4f"),
    "psnr_fitted": ("PSNR, gain and offset fitted", ".2f"),
    "psnr_texture": ("PSNR, texture", ".2f"),
    "ssim_texture": ("SSIM, texture", ".4f"),
    "mpx_per_second": ("Mpx/s", ".3g"),
    "memory_mb": ("memory, MB", ".0f"),
    "gpu_memory_mb": ("GPU memory, MB", ".0f"),
    "dtype": ("computes in", ""),
    "worst_picture": ("worst gain on", ""),
}
NOTES = """PSNR: over RGB of images rounded to 8 bits, the mean of the images' values. Gain: over the noisy input, the
mean and the worst image. SSIM: Gaussian window, per channel, as in scikit-image. SSIM (MATLAB): the 3-D variant of the
literature on SIDD. Gain and offset fitted: those of each image that bring the result closest to the ground truth.
Texture: the tenth of 24 x 24 blocks whose neighbouring pixels differ most in the ground truth. For clean images, the
result is compared with the input.

One step is the same under every rule, and measured once. Blind: with the noise level that is estimated from the image,
which the time includes. True sigma: with the level of the simulated noise. Best sigma: with the level that is best for
each image, an upper bound, since only the ground truth tells it.

Mpx/s: the median over the images, processed one at a time, each by all methods in turn, in one process that may use
all the threads named; each method has run once before the first is timed. Memory: the peak of that process while it
denoises an image, beyond what it held before, such as weights; the median over the images. BM3D is free for
non-commercial use only."""
SHEET_IMAGES, SHEET_ROWS, SHEET_CROP, SHEET_ZOOM = 3, 3, 112, 2
LETTER_WIDTH = 9  # pixels, of the labels
STYLES = {
    "improved": {"marker": "o", "linestyle": "-"},
    "origin": {"marker": "s", "linestyle": "--"},
    None: {"marker": "o", "linestyle": ""},
}
MARKERS = {None: "D", "blind": "D", "true": "x", "best": "^"}


def figures(rows: list[dict], noisy_rows: list[dict] | None, metrics: list[str]) -> dict:
    """Summarize what was measured of a method, a row for each image, beside the rows of the noisy input, if any."""
    result = {name: float(np.mean([row[name] for row in rows])) for name in metrics}
    if rows == noisy_rows:
        return result
    result["mpx_per_second"] = float(np.median([row["megapixels"] / row["seconds"] for row in rows]))
    for name in ("memory_mb", "gpu_memory_mb"):
        if rows[0][name] is not None:
            result[name] = float(np.median([row[name] for row in rows]))
    if "psnr" in metrics and noisy_rows:
        # an image that equals its ground truth cannot gain anything
        pairs = [(row, noisy) for row, noisy in zip(rows, noisy_rows, strict=True) if math.isfinite(noisy["psnr"])]
        gains = {row["picture"]: row["psnr"] - noisy["psnr"] for row, noisy in pairs}
        if gains:
            worst = min(gains, key=gains.get)
            mean = float(np.mean(list(gains.values())))
            result |= {"gain": mean, "worst_gain": gains[worst], "worst_picture": worst}
    return result


def without_infinity(data):
    """Drop infinite numbers, such as the PSNR of equal images, for which JSON has no literal."""
    if isinstance(data, dict):
        return {k: without_infinity(v) for k, v in data.items() if not isinstance(v, float) or math.isfinite(v)}
    return [without_infinity(value) for value in data] if isinstance(data, list) else data


def table(methods: list[dict]) -> str:
    """Format the methods of one test set as a Markdown table."""
    rows = [method.get("figures", {}) | {"dtype": method["dtype"]} for method in methods]
    found = {key: None for row in rows for key, value in row.items() if value is not None}
    columns = [key for key in found if key not in COLUMNS] + [key for key in COLUMNS if key in found]
    lines = []
    for method, row in zip(methods, rows, strict=True):
        if "error" in method:
            cells = [f"failed: {method['error']}", *[""] * (len(columns) - 1)]
        else:
            cells = ["" if row.get(k) is None else format(row[k], COLUMNS.get(k, ("", ".4f"))[1]) for k in columns]
        lines.append([method["name"], *cells])
    return _aligned_table(["method", *(COLUMNS.get(key, (key,))[0] for key in columns)], lines)


def summary(data: list[dict], names: list[str]) -> str:
    """
    Format the mean PSNR of the methods `names` on every test set, and their speed on the first, as a Markdown table.

    The best of each column is bold, leaving out those that know the noise level.
    """
    columns, speeds = {}, {}
    for part in data:
        measured = {method["name"]: method["figures"] for method in part["methods"] if "figures" in method}
        psnr = {name: row["psnr"] for name, row in measured.items() if "psnr" in row}
        speeds = {name: row["mpx_per_second"] for name, row in measured.items() if "mpx_per_second" in row} | speeds
        if psnr:
            informed = {method["name"] for method in part["methods"] if method["sigma"] in ("true", "best")}
            best = max((value for name, value in psnr.items() if name not in informed), default=None)
            columns[part["name"]] = {k: f"**{v:.2f}**" if v == best else f"{v:.2f}" for k, v in psnr.items()}
    speed = {name: f"{value:.3g}" for name, value in speeds.items()}
    listed = {method["name"] for part in data for method in part["methods"]}
    lines = [
        [name, *(column.get(name, "") for column in columns.values()), speed.get(name, "")]
        for name in names
        if name in listed
    ]
    return _aligned_table(["", *columns, "Mpx/s"], lines)


def _aligned_table(header: list[str], rows: list[list[str]]) -> str:
    # the reason of a failure may be longer than its column
    lengths = [[0 if cell.startswith("failed: ") else len(cell) for cell in row] for row in [header, *rows]]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows]]
    return markdown_table(padded[0], padded[1:])


def markdown(data: list[dict], names: list[str], command: str) -> str:
    """Format all tables, with what a reader has to know to compare them with others."""
    parts = ["# Denoisers compared", f"```bash\n{command}\n```"]
    parts += ["## PSNR in dB", summary(data, names), "## Notes", NOTES]
    for part in data:
        count = len(part["pictures"])
        chosen = "" if count == part["of"] else f" of {part['of']}: {', '.join(part['pictures'])}"
        images = f"{count} image{'s' * (count > 1)}{chosen}. {part['machine']}."
        parts.append(f"## {part['name']}\n\n{images}\n\n{table(part['methods'])}")
    return "\n\n".join(parts) + "\n"


def plot(data: list[dict], against: str, file: Path):
    """Plot PSNR against the number of `"steps"` or the `"time"` for a megapixel, with a panel for each test set."""
    panels = []
    for part in data:
        methods = [m for m in part["methods"] if math.isfinite(m.get("figures", {}).get("psnr", math.nan))]
        panels += [(part, methods)] if methods else []
    num_columns = min(len(panels), 3) or 1
    num_rows = -(-len(panels) // num_columns) or 1
    figure = Figure(figsize=(4.5 * num_columns, 3.6 * num_rows + 1.2), layout="constrained")
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()

    entries, peers = {}, {}  # shared by all panels: the legend, and the colors of peers
    for axes, (part, methods) in zip(all_axes, panels, strict=False):
        # in the title, since a line that far below would squeeze the others together
        noisy = [f", noisy {m['figures']['psnr']:.2f} dB" for m in methods if m["name"] == NOISY_INPUT.name]
        axes.set_title(f"{part['name']}, {len(part['pictures'])} images" + "".join(noisy), fontsize="medium")
        axes.set(xlabel="steps" if against == "steps" else "seconds per megapixel (numbers: steps)", ylabel="PSNR, dB")
        axes.grid(alpha=0.3)

        def place(method):
            x = method["steps"] if against == "steps" else 1 / method["figures"]["mpx_per_second"]
            return x, method["figures"]["psnr"]

        for walk, style in _walks(methods):
            axes.plot(*zip(*map(place, walk), strict=True), **style)
        if against == "steps":
            axes.set_xticks(sorted({method["steps"] for method in methods if method["model"]}))
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            for method in methods:
                if method["model"]:
                    axes.annotate(method["steps"], place(method), (3, 3), textcoords="offset points", fontsize=7)
                elif method["name"] != NOISY_INPUT.name:
                    color = peers.setdefault(method["kind"], f"C{9 - len(peers) % 10}")
                    axes.plot(*place(method), MARKERS[method["sigma"]], color=color, label=method["name"])
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if entries:
        columns = max(1, int(figure.get_figwidth() / 2.4))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize="small")
    figure.savefig(file, dpi=120)


def _walks(methods: list[dict]) -> list[tuple[list[dict], dict]]:
    """Group rows that differ in the number of steps only, each group with the style of its line."""
    ours = [method for method in methods if method["model"]]
    result = []
    for i, kind in enumerate(dict.fromkeys(method["kind"] for method in ours)):
        own = [method for method in ours if method["kind"] == kind]
        for rule in sorted({method["rule"] for method in own} - {None}) or [None]:
            walk = sorted((m for m in own if m["rule"] in (rule, None)), key=lambda method: method["steps"])
            result.append((walk, STYLES[rule] | {"color": f"C{i}", "label": f"{kind}, {rule}" if rule else kind}))
    return result


def write_sheet(images: dict[str, dict[str, np.ndarray]], file: Path) -> tuple[str, dict[str, Image.Image]]:
    """
    Write crops of the images where the results differ most, and return the name and the crops of the first.

    `images` holds for each image its versions by name, uint8 [H, W, C]: noisy, each method's result, clean.
    """
    blocks = []
    for image, versions in images.items():
        pictures = {
            name: Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))) for name, pixels in versions.items()
        }
        _, *results, last = pictures.values()
        width, height = (min(SHEET_CROP, side) for side in last.size)
        (left, top), difference = most_different(results, width, height)
        crops = {name: p.crop((left, top, left + width, top + height)) for name, p in pictures.items()}
        blocks.append((difference, image, crops))
    blocks.sort(key=lambda block: -block[0])
    sheets = []
    for _, image, crops in blocks[:SHEET_IMAGES]:
        num_columns = min(len(crops), max(6, -(-len(crops) // SHEET_ROWS)))
        sheets.append(grid({f"{image}, {SHEET_ZOOM}:1": _labelled(crops, SHEET_ZOOM, num_columns)}, 1))
    stack(sheets).save(file)
    return blocks[0][1:]


def write_rows(rows: dict[str, dict[str, Image.Image]], file: Path):
    """Write crops of one image of each test set at 1:1, a row for each, with its title above."""
    stack([grid({title: _labelled(crops, 1, len(crops))}, 1) for title, crops in rows.items()]).save(file)


def _labelled(crops: dict[str, Image.Image], zoom: int, num_columns: int) -> Image.Image:
    cells = {}
    for name, crop in crops.items():
        crop = crop.resize((crop.width * zoom, crop.height * zoom), Image.Resampling.NEAREST)
        width = max(crop.width, SHEET_CROP)  # for the label of a small image
        crop = ImageOps.expand(crop, (0, 0, width - crop.width, 0), "white")
        cells[textwrap.fill(name, width // LETTER_WIDTH)] = crop
    return grid(cells, num_columns)
