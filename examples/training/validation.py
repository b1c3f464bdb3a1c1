"""Validation on held-out pairs, and the model card that reports it, for train.py."""

import math
import os
import shlex
from pathlib import Path

from diffusers.utils import make_image_grid
from huggingface_hub import ModelCard
from PIL import Image
from training.data import describe

from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
from gdd_diffusers.hub import markdown_table, model_card
from gdd_diffusers.image_processor import tensor_to_pixels
from gdd_diffusers.metrics import psnr, ssim


RECIPE = """{step} of {max_train_steps} steps of

```bash
{command}
```

Mean PSNR in dB on {pairs} of at most 256 px while training, by rule and number of steps{of_sets}:

{table}"""


def validate(pipeline: RealDenoisePipeline, sets: dict, inference_steps: list[int], image_file: Path):
    """
    Return the mean PSNR and SSIM of both step rules, over the (noisy, clean) pairs of all sets and, if there are
    several, of each set. Save the noisy, denoised and clean images side by side, one pair in each row.
    """
    pipelines = {}
    for rule in ("improved", "origin"):
        scheduler = InterpolationScheduler.from_config(pipeline.scheduler.config, step_rule=rule)
        config = {key: pipeline.config[key] for key in ("pixel_unshuffle", "min_size")}
        pipelines[rule] = RealDenoisePipeline(pipeline.unet, scheduler, **config)
        pipelines[rule].set_progress_bar_config(disable=True)

    scores, grid = {}, []
    for set_name, pairs in sets.items():
        for noisy, clean in pairs:
            outputs = {"noisy": noisy}
            for rule, pipe in pipelines.items():
                for n in inference_steps:
                    outputs[f"{rule}_{n}"] = pipe(noisy, num_inference_steps=n, output_type="pt").images.cpu()
            for name, output in outputs.items():
                # Images that differ by rounding alone have 59 dB, equal ones would have infinitely many.
                values = {"psnr": psnr(output, clean).clamp(max=60).item(), "ssim": ssim(output, clean).item()}
                for metric, value in values.items():
                    scores.setdefault(f"{metric}/{name}", []).append(value)
                    if len(sets) > 1:
                        scores.setdefault(f"{metric}/{name}/{set_name}", []).append(value)
            grid += [noisy, outputs[f"improved_{inference_steps[0]}"], clean]
    image_file.parent.mkdir(exist_ok=True)
    images = [Image.fromarray(tensor_to_pixels(image[0])) for image in grid]
    make_image_grid(images, rows=len(images) // 3, cols=3, resize=256).save(image_file)
    return {key: sum(values) / len(values) for key, values in scores.items()}


def format_scores(scores: dict[str, float]) -> str:
    """Format the scores of `validate` for the console, those of each set on a line of their own."""
    lines = {}
    for key, score in scores.items():
        metric, name, *set_name = key.split("/")
        lines.setdefault("".join(set_name), []).append(f"{metric}/{name} {score:.3f}")
    return "\n".join(f"  {name}: {', '.join(line)}" if name else ", ".join(line) for name, line in lines.items())


def training_card(args, num_processes: int, folder: Path, step: int, sources, sets, validations) -> ModelCard:
    """Write the model card: usage, training data, license, the command to train the model again, and its scores."""
    launch = ["accelerate", "launch", "--num_processes", str(num_processes)] if num_processes > 1 else ["python"]
    # Of paths on this machine, only the names
    words = ["=".join(Path(p).name if os.path.exists(p) else p for p in word.split("=")) for word in args.command]
    if not any(word.startswith("--mixed_precision") for word in words):  # or another machine may choose another
        words += ["--mixed_precision", args.mixed_precision]

    of_each_set = ("psnr/noisy/", f"psnr/improved_{args.validation_inference_steps[0]}/")
    keys = [key for key in (validations[-1] if validations else {}) if key.startswith("psnr/")]
    columns = [key for key in keys if key.count("/") == 1 or key.startswith(of_each_set)]
    columns.sort(key=lambda key: key.split("/")[2:])  # the means over all sets first
    names = [key.removeprefix("psnr/").replace("_", " ").replace("/", ", ") for key in columns]
    every = max(1, math.ceil(len(validations) / 20))
    shown = validations[::-1][::every][::-1]  # at most 20, including the last
    rows = [[str(line["step"]), *(f"{line[key]:.2f}" if key in line else "" for key in columns)] for line in shown]
    num_pairs = sum(map(len, sets.values()))
    recipe = RECIPE.format(
        step=step,
        max_train_steps=args.max_train_steps,
        command=shlex.join([*launch, "examples/train.py", *words]),
        pairs=f"{num_pairs} held-out pair{'s' * (num_pairs != 1)}",
        of_sets=f", of all and of {', '.join(sets)}" if len(sets) > 1 else "",
        table=markdown_table(["step", *names], rows),
    )
    name = args.hub_model_id or str(folder.relative_to(Path(args.output_dir).parent))
    return model_card(name, license=args.license, recipe=recipe, training_data=describe(sources, args))
