"""The model card of a training, for train.py."""

import math
import os
import shlex
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


CARD = """# {name}

A general denoising diffusion model that takes the noise off photographs.

```py
from gdd_diffusers import RealDenoisePipeline
from PIL import Image

pipe = RealDenoisePipeline.from_pretrained("{name}")
pipe(Image.open("noisy.jpg")).images[0].save("clean.png")
```

## Training

Data: {data}. Licence of the weights: {license}.

```bash
{command}
```

{done} of {total} steps. Mean PSNR in dB on {num_pairs} held-out pairs of at most 256 px, by rule and number of steps:

{table}
"""


def write_card(file: Path, args, step: int, data: str, num_pairs: int, validations: list[dict]):
    """A model card with usage, data, the command that trained the model and its curve."""
    words = ["=".join(Path(p).name if os.path.exists(p) else p for p in word.split("=")) for word in args.command]
    columns = ["step"] + [key for key in (validations[-1] if validations else {}) if key.startswith("psnr/")]
    every = max(1, math.ceil(len(validations) / 20))
    shown = validations[::-1][::every][::-1]  # at most 20, the last among them
    rows = [[f"{line[key]:.2f}" if "/" in key else str(line[key]) for key in columns] for line in shown]
    lines = [[key.removeprefix("psnr/").replace("_", " ") for key in columns], ["---"] * len(columns), *rows]
    text = CARD.format(
        name=args.hub_model_id or Path(args.output_dir).name,
        data=data,
        license=args.license,
        command=shlex.join(["accelerate", "launch", "examples/train.py", *words]),
        done=step,
        total=args.max_train_steps,
        num_pairs=num_pairs,
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
    )
    yaml = ModelCardData(
        license=args.license, library_name="diffusers", pipeline_tag="image-to-image", tags=["image-denoising"]
    )
    ModelCard(f"---\n{yaml.to_yaml()}\n---\n\n{text}").save(file)
