"""The model card of a training, for train.py."""

import math
import os
import shlex
from pathlib import Path

from huggingface_hub import ModelCard
from training.data import describe

from gdd_diffusers.hub import model_card


RECIPE = """{done} of {total} steps of

```bash
{command}
```

Mean PSNR in dB on {num_pairs} held-out {pairs} of at most 256 px while training, by rule and number of steps{of_sets}:

{table}"""


def training_card(args, accelerator, folder: Path, step: int, sources, sets, validations: list[dict]) -> ModelCard:
    """Usage, data, licence, the command that trains the model again, and its curve."""
    words = ["=".join(Path(p).name if os.path.exists(p) else p for p in word.split("=")) for word in args.command]
    launch = ["accelerate", "launch", "--mixed_precision", accelerator.mixed_precision]
    launch += ["--num_processes", str(accelerator.num_processes)] if accelerator.num_processes > 1 else []

    of_each_set = ("psnr/noisy/", f"psnr/improved_{args.validation_inference_steps[0]}/")
    keys = [key for key in (validations[-1] if validations else {}) if key.startswith("psnr/")]
    columns = [key for key in keys if key.count("/") == 1 or key.startswith(of_each_set)]
    columns.sort(key=lambda key: key.split("/")[2:])  # what is of all sets comes first
    every = max(1, math.ceil(len(validations) / 20))
    shown = validations[::-1][::every][::-1]  # at most 20, the last among them
    rows = [[str(line["step"]), *(f"{line[key]:.2f}" if key in line else "" for key in columns)] for line in shown]
    names = [key.removeprefix("psnr/").replace("_", " ").replace("/", ", ") for key in columns]
    num_pairs = sum(map(len, sets.values()))
    lines = [["step", *names], ["---"] * (1 + len(columns)), *rows]
    recipe = RECIPE.format(
        done=step,
        total=args.max_train_steps,
        command=shlex.join([*launch, "examples/train.py", *words]),
        num_pairs=num_pairs,
        pairs="pair" if num_pairs == 1 else "pairs",
        of_sets=f", of all and of {', '.join(sets)}" if len(sets) > 1 else "",
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
    )
    name = args.hub_model_id or str(folder.relative_to(Path(args.output_dir).parent))
    return model_card(name, license=args.license, recipe=recipe, training_data=describe(sources, args))
