"""Write the figures that evaluate.py has measured into the card of a model."""

import math
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from gdd_diffusers.hub import Result, model_card
from gdd_diffusers.pipeline_real_denoise import BUNDLED


METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ssim_matlab": "SSIM (MATLAB)"}
# the section of a card, down to the end of the table if there is one such as `model_card` makes
RESULTS = re.compile(r"^## Results *(?:\n+(?:Not measured\.|\|[^|\n]*\| *\|.*(?:\n\|.*)*))?", re.MULTILINE)


def model_results(data: list[dict], folder: Path) -> list[Result]:
    """Select the newest results of the model in `folder` on each test set from the data that `results.json` holds."""
    models = [folder.resolve()]
    if folder.resolve() in BUNDLED.values():
        models.append(Path(folder.name).resolve())  # where the name was given as --model, or none
    newest = {}
    for part in data:
        count = len(part["pictures"])
        dataset = f"{part['name']}, {count} image{'s' * (count != 1)}"
        noisy = next((m["figures"] for m in part["methods"] if m["name"] == "noisy input" and "figures" in m), {})
        results = [
            Result(dataset, metric, noisy.get(key), method["figures"][key], method["variant"])
            for method in part["methods"]
            if method["model"] and Path(method["model"]).resolve() in models
            for key, metric in METRICS.items()
            if math.isfinite(method.get("figures", {}).get(key, math.nan))
        ]
        if results:
            newest[part["name"]] = results
    return [result for results in newest.values() for result in results]


def load_card(folder: Path) -> ModelCard:
    """Load the card of the model in `folder`, or make one; a card that cannot be parsed is a `ValueError`."""
    file = folder / "README.md"
    if not file.exists():
        return model_card(folder.resolve().name)
    try:
        return ModelCard.load(file)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"The figures cannot be written into {file}, which is not a valid card: {reason}") from error


def write_card(folder: Path, data: list[dict]):
    """
    Write the results of the model in `folder` into the metadata and the section "Results" of its card.

    They replace those of the same test sets, whatever the number of images; those of other test sets stay.
    """
    card, name, results = load_card(folder), folder.resolve().name, model_results(data, folder)
    if not results:
        return
    measured = {_test_set(result.dataset) for result in results}
    older = [old for old in card.data.eval_results or [] if _test_set(old.dataset_name) not in measured]
    card.data.model_name = card.data.model_name or name
    card.data.eval_results = older + model_card(name, results=results).data.eval_results

    noisy, listed = _noisy_values(card.text), []
    for old in older:
        metric, _, setting = (old.metric_name or "").partition(", ")
        if setting:  # or else it is not written here
            value = noisy.get((old.dataset_name, metric))
            listed.append(Result(old.dataset_name, metric, value, old.metric_value, setting))
    section = RESULTS.search(model_card(name, results=listed + results).text)[0]
    if RESULTS.search(card.text):
        card.text = RESULTS.sub(lambda _: section, card.text, count=1)
    else:
        card.text = f"{card.text.rstrip()}\n\n{section}\n"
    card.save(folder / "README.md")
    print(f"Wrote {folder / 'README.md'}")


def _test_set(dataset: str) -> str:
    return re.sub(r", \d+ (image|picture)s?$", "", dataset)


def _noisy_values(text: str) -> dict[tuple[str, str], float]:
    """Read the values of the noisy images by test set and metric, which only the table of a card holds."""
    found = RESULTS.search(text)
    lines = found[0].splitlines() if found else []
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {
        (row[0], metric): float(value)
        for row in rows
        if row[1:2] == ["noisy"]
        for metric, value in zip(rows[0][2:], row[2:], strict=False)
        if re.fullmatch(r"\d+(\.\d+)?", value)
    }
