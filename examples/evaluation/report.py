"""Tables, plots, sheets of crops and model cards, made of what `evaluate.py` has measured.

A data set is a dictionary of its `name`, the names of its `pictures`, `of` how many they were chosen, the `machine`,
and its `methods`. Each of these is a dictionary of the method's `name`, `model`, `rule`, `steps` and `variant`, and of
either its `figures` or the `error` for which there are none.
"""

import re
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator


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
    "worst_picture": ("worst gain on", ""),
}
CARD_NAMES = {
    "psnr": "PSNR (dB, RGB, rounded to 8 bits, mean of the pictures)",
    "ssim": "SSIM (per channel, as scikit-image)",
    "ssim_matlab": "SSIM (3-D, as MATLAB)",
}
SHEET_ROWS, SHEET_CROP = 3, 96


def figures(rows: list[dict], noisy_rows: list[dict] | None, metrics: list[str]) -> dict:
    """
    The figures of one method on one data set.

    Args:
        rows (`list[dict]`): What was measured, one for each picture.
        noisy_rows (`list[dict]`, *optional*): The same for the noisy input, if this is not the noisy input itself.
        metrics (`list[str]`): What to average; nothing where the clean pictures are not known.
    """
    result = {name: float(np.mean([row[name] for row in rows])) for name in metrics}
    if noisy_rows is None:
        return result
    # the median, so that the first picture, for which libraries warm up, does not count
    result["mpx_per_second"] = float(np.median([row["megapixels"] / row["seconds"] for row in rows]))
    result["memory_mb"] = max(row["memory_mb"] for row in rows)
    if rows[0]["gpu_memory_mb"] is not None:
        result["gpu_memory_mb"] = max(row["gpu_memory_mb"] for row in rows)
    if metrics:
        gains = [row["psnr"] - noisy["psnr"] for row, noisy in zip(rows, noisy_rows, strict=True)]
        worst = int(np.argmin(gains))
        result |= {"gain": float(np.mean(gains)), "worst_gain": gains[worst], "worst_picture": rows[worst]["picture"]}
    return result


def table(methods: list[dict]) -> str:
    """The methods of one data set as a Markdown table."""
    found = {key: None for method in methods for key in method.get("figures", {})}
    columns = [key for key in found if key not in COLUMNS] + [key for key in COLUMNS if key in found]
    lines = [["method", *(COLUMNS.get(key, (key, ""))[0] for key in columns)]]
    lines.append(["---"] + ["---:"] * len(columns))
    for method in methods:
        if "error" in method:
            lines.append([method["name"], f"failed: {method['error']}", *[""] * (len(columns) - 1)])
        else:
            cells = {key: format(value, COLUMNS.get(key, ("", ".4f"))[1]) for key, value in method["figures"].items()}
            lines.append([method["name"], *(cells.get(key, "") for key in columns)])
    # the reason of a failure may be longer than its column
    lengths = [[0 if cell.startswith("failed: ") else len(cell) for cell in line] for line in lines]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def markdown(data: list[dict], command: str) -> str:
    """All tables, and what a reader has to know to compare them with others."""
    parts = [
        "# Denoisers compared",
        f"    {command}",
        "PSNR over RGB of pictures rounded to 8 bits, mean of the pictures' values; gain: over the noisy input, and "
        "the worst of a single picture. SSIM: Gaussian window, per channel, as scikit-image; SSIM (MATLAB): the 3-D "
        "one of the literature on SIDD. Mpx/s: median of the pictures. Memory: the peak while denoising, beyond what "
        "the process held before. Blind: told the noise level that is estimated from the picture; best sigma: told "
        "the level that is best for each picture, which takes the clean one to know.",
    ]
    for part in data:
        count = len(part["pictures"])
        chosen = "" if count == part["of"] else f" of {part['of']}: {', '.join(part['pictures'])}"
        parts.append(f"## {part['name']}\n\n{count} pictures{chosen}. {part['machine']}.\n\n{table(part['methods'])}")
    return "\n\n".join(parts) + "\n"


def plot_steps(data: list[dict], file: Path):
    """PSNR against the number of steps, for each data set, model and rule."""
    figure, panels = _panels(data)
    for axes, part, methods in panels:
        for walk, style in _walks(methods):
            steps = [method["steps"] for method in walk]
            axes.plot(steps, [method["figures"]["psnr"] for method in walk], **style)
            axes.set_xticks(steps)
            axes.legend(fontsize="x-small")
        axes.set(title=f"{part['name']}, {len(part['pictures'])} pictures", xlabel="steps", ylabel="PSNR, dB")
    figure.savefig(file, dpi=120)


def plot_time(data: list[dict], file: Path):
    """PSNR against the time for a megapixel, for each data set and everything compared."""

    def place(method):
        return 1 / method["figures"]["mpx_per_second"], method["figures"]["psnr"]

    figure, panels = _panels(data)
    for axes, part, (noisy, *methods) in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axhline(noisy["figures"]["psnr"], color="grey", linestyle=":", label=noisy["name"])
        for walk, style in _walks(methods):
            axes.plot(*zip(*map(place, walk), strict=True), **style)
        for method in methods:
            if not method["model"]:
                axes.plot(*place(method), "kx")
            name = method["steps"] or method["name"]
            axes.annotate(name, place(method), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.set(title=f"{part['name']} (numbers: steps)", xlabel="seconds per megapixel", ylabel="PSNR, dB")
        axes.legend(fontsize="x-small")
    figure.savefig(file, dpi=120)


def _walks(methods: list[dict]) -> list[tuple[list[dict], dict]]:
    """Rows that differ in the number of steps only, in its order, and how to draw the line through them."""
    walks = {}
    for method in methods:
        if method["model"]:
            walks.setdefault(re.sub(r", \d+ steps?\b", "", method["name"]), []).append(method)
    kinds = {}
    result = []
    for label, walk in walks.items():
        rule = walk[0]["rule"]
        # a colour for what is the same but for the rule
        color = kinds.setdefault(label.replace(f", {rule}", ""), f"C{len(kinds)}")
        style = {"marker": "o", "linestyle": "-"} if rule == "improved" else {"marker": "s", "linestyle": "--"}
        result.append((sorted(walk, key=lambda method: method["steps"]), style | {"color": color, "label": label}))
    return result


def _panels(data: list[dict]):
    """A figure with a panel for each data set whose clean pictures are known, and the methods that worked there."""
    parts = []
    for part in data:
        methods = [method for method in part["methods"] if "psnr" in method.get("figures", {})]
        if methods:
            parts.append((part, methods))
    columns = min(len(parts), 4) or 1
    rows = -(-len(parts) // columns) or 1
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, [(axes, part, methods) for axes, (part, methods) in zip(panels, parts, strict=False)]


def sheet(pictures: list[dict[str, np.ndarray]], file: Path):
    """
    Crops of the pictures: noisy, each method's and clean, where the methods disagree most.

    Args:
        pictures (`list[dict[str, np.ndarray]]`): For each picture its versions by name, uint8 [H, W, 3], the noisy one
            first and the clean one last.
        file (`Path`): A picture file to write.
    """
    rows = []
    for versions in pictures:
        spread, crop = most_different(list(versions.values())[1:-1], SHEET_CROP)
        rows.append((spread, {name: version[crop] for name, version in versions.items()}))
    rows = sorted(rows, key=lambda row: -row[0])[:SHEET_ROWS]

    figure = Figure(figsize=(1.6 * len(rows[0][1]), 1.8 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0][1]), squeeze=False)
    for i, (_, versions) in enumerate(rows):
        for axes, (name, version) in zip(panels[i], versions.items(), strict=True):
            axes.imshow(version, interpolation="nearest")
            axes.set_axis_off()
            if i == 0:
                axes.set_title(name.replace(", ", "\n"), fontsize=6)
    figure.savefig(file, dpi=150)


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
        for method in part["methods"]:
            if method["model"] != model or "figures" not in method:
                continue
            for metric in [name for name in CARD_NAMES if name in method["figures"]]:
                results.append(
                    EvalResult(
                        task_type="image-to-image",
                        task_name="Image denoising",
                        dataset_type=part["name"],
                        dataset_name=f"{part['name']}, {len(part['pictures'])} pictures",
                        metric_type=metric.removesuffix("_matlab"),
                        metric_name=f"{CARD_NAMES[metric]}, {method['variant']}",
                        metric_value=round(method["figures"][metric], 4),
                    )
                )
    older = [old for old in card.data.eval_results or [] if not any(old.is_equal_except_value(new) for new in results)]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = older + results
    card.save(file)
