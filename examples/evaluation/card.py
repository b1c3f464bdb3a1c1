"""The figures that evaluate.py has measured, for the card of a model."""

import math
from pathlib import Path

from huggingface_hub import ModelCard

from gdd_diffusers.hub import Result, model_card
from gdd_diffusers.pipeline_real_denoise import BUNDLED


METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ssim_matlab": "SSIM (MATLAB)"}


def model_results(data: list[dict], folder: Path, metrics: dict[str, str] = METRICS) -> list[Result]:
    """Select the results of the model in `folder` from the data that `results.json` holds."""
    models = [folder.resolve()]
    if folder.resolve() == BUNDLED.resolve():
        models.append(Path(BUNDLED.name).resolve())  # its name where no --model is given
    results = []
    for part in data:
        dataset = f"{part['name']}, {len(part['pictures'])} images"
        figures = {method["name"]: method.get("figures", {}) for method in part["methods"]}
        noisy = figures.get("noisy input", {})  # which clean images do not have
        for method in part["methods"]:
            if method["model"] and Path(method["model"]).resolve() in models:
                for key, metric in metrics.items():
                    value = figures[method["name"]].get(key, math.nan)
                    if math.isfinite(value):
                        results.append(Result(dataset, metric, noisy.get(key), value, method["variant"]))
    return results


def write_card(folder: Path, data: list[dict]):
    """Write the results of the model in `folder` into the `model-index` of its card, in place of older ones."""
    file, name = folder / "README.md", folder.resolve().name
    card = ModelCard.load(file) if file.exists() else model_card(name)
    new = model_card(name, results=model_results(data, folder)).data.eval_results or []
    older = [old for old in card.data.eval_results or [] if not any(old.is_equal_except_value(x) for x in new)]
    card.data.model_name = card.data.model_name or name
    card.data.eval_results = older + new
    card.save(file)
