"""Write the model card of a pipeline: usage, recipe, training data, results, limits."""

import re
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData


CARD = """# {name}

Removes noise from photographs by general denoising diffusion
([Real-World Denoising via Diffusion Model](https://arxiv.org/abs/2305.04457), re-implemented from its description).
{introduction}{picture}
## Usage

With the package gdd-diffusers, which runs no code from this repo:

```py
from gdd_diffusers import RealDenoisePipeline
from PIL import Image

pipe = RealDenoisePipeline.from_pretrained("{name}")
pipe(Image.open("noisy.jpg")).images[0].save("clean.png")
```

```bash
gdd denoise noisy.jpg --model {name}
```

Without it, after `pip install torch diffusers accelerate`. This runs the Python files of this repo; read them first,
and pin the `revision` that you have read:

```py
from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)
pipe(Image.open("noisy.jpg")).images[0].save("clean.png")
```

`variant="fp16"` downloads half as much. Where there is no network, load the folder that
`hf download {name} --local-dir gdd` has made.

## Recipe

{recipe}

## Training data

{training_data}

Licence of these weights: {license}.

## Results

{results}

## Limits

{limits}

## Citation

```bibtex
@article{{yang2023realworld,
  title   = {{Real-World Denoising via Diffusion Model}},
  author  = {{Yang, Cheng and Liang, Lijing and Su, Zhixun}},
  journal = {{arXiv preprint arXiv:2305.04457}},
  year    = {{2023}}
}}
```
"""


@dataclass
class Result:
    """
    The mean of a metric over a dataset, before and after denoising.

    Args:
        dataset (`str`): The images and their noise.
        metric (`str`): Its name, with the unit in brackets if it has one: `"PSNR (dB)"`.
        noisy (`float`, *optional*): Of the noisy images; `None` for clean ones, which the model should leave alone.
        denoised (`float`): Of the denoised images.
        setting (`str`, defaults to `"denoised"`): Name of the row, for several settings: `"origin, 10 steps"`.
    """

    dataset: str
    metric: str
    noisy: float | None
    denoised: float
    setting: str = "denoised"


def model_card(
    name: str,
    *,
    license: str = "unknown",
    introduction: str = "",
    recipe: str = "Not stated.",
    training_data: str = "Not stated.",
    datasets: list[str] | None = None,
    results: list[Result] | None = None,
    commands: list[str] | None = None,
    limits: str = "Trained on photographs. Its effect on other images has not been measured.",
    picture: str | None = None,
) -> ModelCard:
    """
    Write the model card of a pipeline. Texts are Markdown.

    Args:
        name: Repo id, or the folder's name, which publishing replaces by the repo id.
        license: License of the weights, as the Hub spells it: `"apache-2.0"`.
        introduction: What to know before using the model.
        recipe: The network, how it was trained and by which command.
        training_data: The images, their authors and licenses.
        datasets: Datasets on the Hub that the model was trained on.
        results: For the table and for `model-index`.
        commands: The commands that measured the results.
        limits: What the model does to images that it was not trained for.
        picture: Path of a before/after image, relative to the card.

    Example:
        ```py
        >>> from gdd_diffusers.hub import Result, model_card

        >>> card = model_card("my-gdd", license="apache-2.0", results=[Result("kitchen", "PSNR (dB)", 22.5, 30.25)])
        >>> card.data.eval_results[0].metric_value
        30.25

        ```
    """
    results = results or []
    evaluations = [
        EvalResult(
            task_type="image-to-image",
            task_name="Image denoising",
            dataset_type=_slug(result.dataset),
            dataset_name=result.dataset,
            metric_type=_slug(result.metric.partition(" (")[0]),
            metric_name=f"{result.metric}, {result.setting}",
            metric_value=float(_number(result.denoised)),
        )
        for result in results
    ]
    measured = _table(results) if results else "Not measured."
    if commands:
        measured += "\n\n```bash\n" + "\n".join(commands) + "\n```"
    data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["image-denoising", "image-restoration", "gdd-diffusers", "arxiv:2305.04457"],
        datasets=datasets,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )
    text = CARD.format(
        name=name,
        introduction=f"\n{introduction.strip()}\n" if introduction else "",
        picture=f"\n![Noisy and denoised]({picture})\n" if picture else "",
        recipe=recipe.strip(),
        training_data=training_data.strip(),
        license=license,
        results=measured,
        limits=limits.strip(),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _table(results: list[Result]) -> str:
    """Format a row for the noisy images of each dataset and one for each setting, a column for each metric."""
    metrics = dict.fromkeys(result.metric for result in results)
    data: dict[str, dict[str, dict]] = {}  # dataset: setting: metric: value
    for result in results:
        rows = data.setdefault(result.dataset, {})
        if result.noisy is not None:
            rows.setdefault("noisy", dict(metrics))[result.metric] = result.noisy
        rows.setdefault(result.setting, dict(metrics))[result.metric] = result.denoised
    lines = []
    for dataset, rows in data.items():
        for i, (setting, values) in enumerate(rows.items()):
            cells = ["" if value is None else _number(value) for value in values.values()]
            lines.append(["" if i else dataset, setting, *cells])
    return markdown_table(["images", "", *metrics], lines, num_text_columns=2)


def markdown_table(header: list[str], rows: list[list[str]], num_text_columns: int = 1) -> str:
    """Format rows of cells as a Markdown table; columns after the first `num_text_columns` are aligned right."""
    rule = ["---"] * num_text_columns + ["---:"] * (len(header) - num_text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
