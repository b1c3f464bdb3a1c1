"""Tables, plots, sheets of crops and model cards, made of what `evaluate.py` has measured.

A data set is a dictionary of its `name`, the names of its `pictures`, `of` how many they were chosen, the `machine`,
and its `methods`. Each of these is a dictionary of what [`Method`] says of it, and of either its `figures` or the
`error` for which there are none.
"""

import math
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

from .results import NOISY_INPUT, slug


# title of the column, and how its numbers are written
COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "gain": ("gain", "+.2f"),
    "worst_gain": ("worst gain", "+.2f"),
    "ssim": ("SSIM", ".4f"),
    "ssim_matlab": ("SSIM (MATLAB)", ".4f"),
    "mpx_per_second": ("Mpx/s", ".3g"),
    "memory_mb": ("memory, MB", ".0f"),
    "gpu_memory_mb": ("GPU memory, MB", ".0f"),
    "dtype": ("computes in", ""),
    "worst_picture": ("worst gain on", ""),
}
CARD_NAMES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ssim_matlab": "SSIM (MATLAB)"}
NOTES = """PSNR over RGB of pictures rounded to 8 bits, mean of the pictures' values; gain: over the noisy input, and
the worst of a single picture. SSIM: Gaussian window, per channel, as scikit-image; SSIM (MATLAB): the 3-D one of the
literature on SIDD. Of clean pictures, what is compared is the result with the input.

One step is the same under every rule, and measured once. Blind: told the noise level that is estimated from the
picture, which the time includes; true sigma: told the level that was put on; best sigma: told the level that is best
for each picture, which takes the clean one to know, and so an upper bound.

Mpx/s: median of the pictures, one after another, each by all methods in turn, in one process that may use the threads
named; each method has run once before the first is timed. Memory: the peak of that process while it denoises a
picture, which the kernel keeps and lets be reset, beyond what it held before, such as weights; median of the pictures.
BM3D is free for non-commercial use only."""
SHEET_PICTURES, SHEET_ROWS, SHEET_CROP, SHEET_ZOOM = 3, 3, 112, 2


def figures(rows: list[dict], noisy_rows: list[dict] | None, metrics: list[str]) -> dict:
    """
    The figures of one method on one data set.

    Args:
        rows (`list[dict]`): What was measured, one for each picture.
        noisy_rows (`list[dict]`, *optional*): The same for the noisy input, where there is any noise.
        metrics (`list[str]`): What to average; nothing where the clean pictures are not known.
    """
    result = {name: float(np.mean([row[name] for row in rows])) for name in metrics}
    if rows == noisy_rows:
        return result
    result["mpx_per_second"] = float(np.median([row["megapixels"] / row["seconds"] for row in rows]))
    for name in ("memory_mb", "gpu_memory_mb"):
        if rows[0][name] is not None:
            result[name] = float(np.median([row[name] for row in rows]))
    if "psnr" in metrics and noisy_rows:
        # of those with noise: what equals its clean picture can gain nothing
        pairs = [(row, noisy) for row, noisy in zip(rows, noisy_rows, strict=True) if math.isfinite(noisy["psnr"])]
        gains = [row["psnr"] - noisy["psnr"] for row, noisy in pairs]
        if pairs:
            worst = int(np.argmin(gains))
            picture = pairs[worst][0]["picture"]
            result |= {"gain": float(np.mean(gains)), "worst_gain": gains[worst], "worst_picture": picture}
    return result


def without_infinity(data):
    """For JSON, which has no number for the PSNR of equal pictures: without it."""
    if isinstance(data, dict):
        return {k: without_infinity(v) for k, v in data.items() if not isinstance(v, float) or math.isfinite(v)}
    return [without_infinity(value) for value in data] if isinstance(data, list) else data


def table(methods: list[dict]) -> str:
    """The methods of one data set as a Markdown table."""
    rows = [method.get("figures", {}) | {"dtype": method["dtype"]} for method in methods]
    found = {key: None for row in rows for key, value in row.items() if value is not None}
    columns = [key for key in found if key not in COLUMNS] + [key for key in COLUMNS if key in found]
    lines = [["method", *(COLUMNS.get(key, (key, ""))[0] for key in columns)]]
    for method, row in zip(methods, rows, strict=True):
        if "error" in method:
            cells = [f"failed: {method['error']}", *[""] * (len(columns) - 1)]
        else:
            texts = {k: format(v, COLUMNS.get(k, ("", ".4f"))[1]) for k, v in row.items() if v is not None}
            cells = [texts.get(key, "") for key in columns]
        lines.append([method["name"], *cells])
    return _aligned(lines)


def summary(data: list[dict]) -> str:
    """
    One Markdown table of all data sets: the mean PSNR of every method on each, and its speed on the first.

    The best of each column is bold, but for those told a noise level that no user knows.
    """
    methods, psnr, speed = [], {}, {}
    for part in data:
        place = 0
        for method in part["methods"]:
            name, figures = method["name"], method.get("figures", {})
            if name in methods:
                place = methods.index(name)
            else:  # after the one before it here, and not at the end
                methods.insert(place, name)
            place += 1
            psnr[name, part["name"]] = figures.get("psnr")
            speed.setdefault(name, figures.get("mpx_per_second"))

    columns = {}
    for part in data:
        known = {name: psnr[name, part["name"]] for name in methods if psnr.get((name, part["name"])) is not None}
        contenders = [value for name, value in known.items() if not name.endswith((", true sigma", ", best sigma"))]
        if known:
            best = max(contenders, default=None)
            columns[part["name"]] = {k: f"**{v:.2f}**" if v == best else f"{v:.2f}" for k, v in known.items()}
    lines = [["", *columns, "Mpx/s"]]
    for name in methods:
        cells = [column.get(name, "") for column in columns.values()]
        lines.append([name, *cells, f"{speed[name]:.3g}" if speed[name] else ""])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    """Cells to the lines of a Markdown table, the first of them its head."""
    lines = [lines[0], ["---"] + ["---:"] * (len(lines[0]) - 1), *lines[1:]]
    # the reason of a failure may be longer than its column
    lengths = [[0 if cell.startswith("failed: ") else len(cell) for cell in line] for line in lines]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def markdown(data: list[dict], command: str) -> str:
    """All tables, and what a reader has to know to compare them with others."""
    parts = ["# Denoisers compared", f"```bash\n{command}\n```"]
    parts += ["## PSNR in dB", summary(data), "## Notes", NOTES]
    for part in data:
        count = len(part["pictures"])
        chosen = "" if count == part["of"] else f" of {part['of']}: {', '.join(part['pictures'])}"
        pictures = f"{count} picture{'s' * (count > 1)}{chosen}. {part['machine']}."
        parts.append(f"## {part['name']}\n\n{pictures}\n\n{table(part['methods'])}")
    return "\n\n".join(parts) + "\n"


def plot_steps(data: list[dict], file: Path):
    """PSNR against the number of steps, for each data set, model and rule."""
    figure, panels = _panels(data)
    for axes, methods in panels:
        for walk, style in _walks(methods):
            axes.plot([method["steps"] for method in walk], [method["figures"]["psnr"] for method in walk], **style)
        axes.set_xticks(sorted({method["steps"] for method in methods if method["model"]}))
        axes.set(xlabel="steps", ylabel="PSNR, dB")
    _finish(figure, panels, file)


def plot_time(data: list[dict], file: Path):
    """PSNR against the time for a megapixel, for each data set and everything compared; numbers are steps."""

    def place(method):
        return 1 / method["figures"]["mpx_per_second"], method["figures"]["psnr"]

    figure, panels = _panels(data)
    peers = {}  # each the same colour in all panels
    for axes, methods in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        for walk, style in _walks(methods):
            axes.plot(*zip(*map(place, walk), strict=True), **style)
        for method in methods:
            if method["model"]:
                axes.annotate(method["steps"], place(method), fontsize=7, xytext=(3, 3), textcoords="offset points")
            elif method["name"] != NOISY_INPUT.name:
                peer, _, way = method["name"].partition(", ")
                color = peers.setdefault(peer, f"C{9 - len(peers) % 10}")
                marker = {"": "D", "blind": "D", "true sigma": "x", "best sigma": "^"}[way]
                axes.plot(*place(method), marker, color=color, label=method["name"])
        axes.set(xlabel="seconds per megapixel (numbers: steps)", ylabel="PSNR, dB")
    _finish(figure, panels, file)


def _walks(methods: list[dict]) -> list[tuple[list[dict], dict]]:
    """Rows that differ in the number of steps only, in its order, and how to draw the line through them."""
    ours = [method for method in methods if method["model"]]
    colors = {kind: f"C{i}" for i, kind in enumerate(dict.fromkeys(method["kind"] for method in ours))}
    styles = {
        "improved": {"marker": "o", "linestyle": "-"},
        "origin": {"marker": "s", "linestyle": "--"},
        None: {"marker": "o", "linestyle": ""},
    }
    result = []
    for kind, color in colors.items():
        own = [method for method in ours if method["kind"] == kind]
        for rule in sorted({method["rule"] for method in own} - {None}) or [None]:
            walk = sorted((m for m in own if m["rule"] in (rule, None)), key=lambda method: method["steps"])
            result.append((walk, styles[rule] | {"color": color, "label": f"{kind}, {rule}" if rule else kind}))
    return result


def _panels(data: list[dict]) -> tuple[Figure, list]:
    """A figure with a panel for each data set whose clean pictures are known, and the methods that worked there."""
    parts = []
    for part in data:
        methods = [
            method for method in part["methods"] if math.isfinite(method.get("figures", {}).get("psnr", math.nan))
        ]
        if methods:
            parts.append((part, methods))
    columns = min(len(parts), 3) or 1
    rows = -(-len(parts) // columns) or 1
    figure = Figure(figsize=(4.5 * columns, 3.6 * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(parts) :]:
        axes.set_axis_off()
    for axes, (part, methods) in zip(panels, parts, strict=False):
        # in words, for a line that far below would leave the others little room
        noisy = [f", noisy {m['figures']['psnr']:.2f} dB" for m in methods if m["name"] == NOISY_INPUT.name]
        axes.set_title(f"{part['name']}, {len(part['pictures'])} pictures" + "".join(noisy), fontsize="medium")
    return figure, [(axes, methods) for axes, (_, methods) in zip(panels, parts, strict=False)]


def _finish(figure: Figure, panels: list, file: Path):
    """One legend for all panels, below them."""
    entries = {}
    for axes, _ in panels:
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if entries:
        columns = max(1, int(figure.get_figwidth() / 2.4))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize="small")
    figure.savefig(file, dpi=120)


def sheet(pictures: dict[str, dict[str, np.ndarray]], file: Path):
    """
    Crops of the pictures: noisy, each method's and clean, where the methods disagree most.

    Args:
        pictures (`dict[str, dict[str, np.ndarray]]`): For each picture its versions by name, uint8 [H, W, 3], the
            noisy one first and the clean one last.
        file (`Path`): A picture file to write.
    """
    blocks = []
    for picture, versions in pictures.items():
        spread, crop = most_different(list(versions.values())[1:-1], SHEET_CROP)
        blocks.append((spread, picture, {name: version[crop] for name, version in versions.items()}))
    blocks = sorted(blocks, key=lambda block: -block[0])[:SHEET_PICTURES]

    side, gap, line = SHEET_CROP * SHEET_ZOOM, 8, 17
    count = len(blocks[0][2])
    columns = min(count, max(6, -(-count // SHEET_ROWS)))
    rows = -(-count // columns)
    height = line + gap + rows * (side + 2 * line + gap)
    image = Image.new("RGB", (columns * (side + gap) + gap, len(blocks) * height + gap), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    for i, (_, picture, versions) in enumerate(blocks):
        draw.text(
            (gap, i * height + gap), f"{picture}, {SHEET_ZOOM}:1", fill="black", font=ImageFont.load_default(size=14)
        )
        for j, (name, version) in enumerate(versions.items()):
            x = gap + j % columns * (side + gap)
            y = i * height + line + 2 * gap + j // columns * (side + 2 * line + gap)
            label, _, variant = name.partition(", ")
            draw.text((x, y), f"{label}\n{variant}", fill="black", font=font)
            crop = Image.fromarray(version)
            crop = crop.resize((crop.width * SHEET_ZOOM, crop.height * SHEET_ZOOM), Image.Resampling.NEAREST)
            image.paste(crop, (x, y + 2 * line))
    image.save(file)


def most_different(results: list[np.ndarray], size: int) -> tuple[float, tuple[slice, slice]]:
    """How much results [H, W, 3] differ, in the square block where they differ most, and which one it is."""
    spread = np.std(results, axis=0).mean(axis=-1)
    size = min(size, *spread.shape)
    down, across = (side // size for side in spread.shape)
    blocks = spread[: down * size, : across * size].reshape(down, size, across, size).mean(axis=(1, 3))
    i, j = divmod(int(blocks.argmax()), across)
    return float(blocks[i, j]), (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))


def write_card(folder: Path, model: str, data: list[dict]):
    """Puts the figures of a model into the `model-index` of its folder's README.md, in place of older ones."""
    file = folder / "README.md"
    if file.exists():
        card = ModelCard.load(file)
    else:
        card = ModelCard(f"---\n{ModelCardData(library_name='diffusers').to_yaml()}\n---\n\n# {folder.name}\n")
    results = []
    for part in data:
        dataset = f"{part['name']}, {len(part['pictures'])} pictures"
        for method in part["methods"]:
            if method["model"] != model or "figures" not in method:
                continue
            for metric in [name for name in CARD_NAMES if math.isfinite(method["figures"].get(name, math.inf))]:
                results.append(
                    EvalResult(
                        task_type="image-to-image",
                        task_name="Image denoising",
                        dataset_type=slug(dataset).lower(),
                        dataset_name=dataset,
                        metric_type=metric.removesuffix("_matlab"),
                        metric_name=f"{CARD_NAMES[metric]}, {method['variant']}",
                        metric_value=round(method["figures"][metric], 4),
                    )
                )
    older = [old for old in card.data.eval_results or [] if not any(old.is_equal_except_value(new) for new in results)]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = older + results
    card.save(file)
