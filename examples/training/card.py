"""The model card of a training, for train.py."""

import math
import os
import shlex
from pathlib import Path

from huggingface_hub import ModelCard

from gdd_diffusers.hub import model_card


RECIPE = """{done} of {total} steps of

```bash
{command}
```

Mean PSNR in dB on {num_pairs} held-out pairs of at most 256 px while training, by rule and number of steps:

{table}"""


def training_card(args, step: int, data: str, num_pairs: int, validations: list[dict]) -> ModelCard:
    """Usage, data, licence, the command that trains the model again, and its curve."""
    words = ["=".join(Path(p).name if os.path.exists(p) else p for p in word.split("=")) for word in args.command]
    columns = ["step"] + [key for key in (validations[-1] if validations else {}) if key.startswith("psnr/")]
    every = max(1, math.ceil(len(validations) / 20))
    shown = validations[::-1][::every][::-1]  # at most 20, the last among them
    rows = [[f"{line[key]:.2f}" if "/" in key else str(line[key]) for key in columns] for line in shown]
    lines = [[key.removeprefix("psnr/").replace("_", " ") for key in columns], ["---"] * len(columns), *rows]
    recipe = RECIPE.format(
        done=step,
        total=args.max_train_steps,
        command=shlex.join(["accelerate", "launch", "examples/train.py", *words]),
        num_pairs=num_pairs,
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
    )
    name = args.hub_model_id or Path(args.output_dir).name
    return model_card(name, license=args.license, recipe=recipe, training_data=data)
