#!/usr/bin/env python
"""Write the model card of a trained model from what you know and have measured, then publish it.

    python examples/publish.py my-gdd org/my-gdd --card card.toml --results results.json --picture noisy.jpg

card.toml holds what only you can know, in Markdown: `license`, `introduction`, `recipe`, `training_data`, `limits`,
and the lists `datasets` (on the Hub) and `commands` (that measured the results). Without --card, the folder's own card
is published; `gdd publish` does just that.
"""

import argparse
import json
import logging
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.comparison import compare, stack
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.files import for_display, read_image
from gdd_diffusers.hub import Result, model_card, publish
from gdd_diffusers.metrics import psnr
from gdd_diffusers.pipeline_real_denoise import BUNDLED


CARD_KEYS = {"license", "introduction", "recipe", "training_data", "limits", "datasets", "commands"}
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The model, as train.py writes it.")
    parser.add_argument("repo_id", help="ORG/NAME on the Hub.")
    parser.add_argument("--card", type=Path, help="Write the folder's card anew, with what this TOML file says.")
    parser.add_argument("--results", type=Path, nargs="+", help="results.json of evaluate.py, for the card.")
    parser.add_argument(
        "--picture",
        nargs="+",
        metavar="FILE[@PRESET:ISO]",
        help="Noisy photographs, for the card to show before and after; @phone:1600 or @camera:6400 put noise on a "
        "clean one.",
    )
    parser.add_argument("--card_only", action="store_true", help="Write the card, and publish nothing.")
    parser.add_argument("--private", action="store_true", help="Make a new repo private.")
    parser.add_argument("--overwrite_card", action="store_true", help="Even if somebody changed it on the Hub.")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}.")
    if not args.card and (args.results or args.picture or args.card_only):
        parser.error("--results, --picture and --card_only need --card, to write the folder's card anew.")
    return args


def read_results(files: list[Path], folder: Path) -> list[Result]:
    """What evaluate.py has measured of the model in this folder."""
    results = []
    models = [folder.resolve()]
    if folder.resolve() == BUNDLED.resolve():
        models.append(Path(BUNDLED.name).resolve())  # its name where no --model is given
    for part in [part for file in files for part in json.loads(file.read_text(encoding="utf-8"))]:
        dataset = f"{part['name']}, {len(part['pictures'])} pictures"
        figures = {method["name"]: method.get("figures", {}) for method in part["methods"]}
        noisy = figures.get("noisy input", {})  # which clean pictures have not
        for method in part["methods"]:
            if method["model"] and Path(method["model"]).resolve() in models:
                denoised = figures[method["name"]]
                for key in [key for key in METRICS if key in denoised]:
                    results.append(Result(dataset, METRICS[key], noisy.get(key), denoised[key], method["variant"]))
    if not results:
        raise ValueError(f"{' and '.join(map(str, files))} has no figures of the model {folder}.")
    return results


def write_picture(file: Path, specs: list[str], folder: Path):
    """Noisy and denoised photographs, and the truth where it is known, below each other."""
    pipe = RealDenoisePipeline.from_pretrained(folder)
    rows = []
    for spec in specs:
        source, preset, iso = re.fullmatch(r"(.*?)(?:@(phone|camera):(\d+))?", spec).groups()
        picture = Image.fromarray(for_display(read_image(source).pixels))
        noisy = to_tensor(picture.convert("RGB"))
        if preset:
            generator = torch.Generator().manual_seed(2)  # which is well exposed
            clean, noisy = CameraNoise(preset)(noisy, generator, float(iso))
        denoised = pipe(noisy, output_type="pt").images
        if preset:
            row = {f"simulated {preset}, ISO {iso}": noisy, "denoised": denoised}
            row = {f"{name}: {psnr(x, clean).item():.1f} dB": x for name, x in row.items()} | {"clean": clean}
        else:
            row = {"noisy": noisy, "denoised": denoised}
        box = (picture.width * 2 // 5, picture.height * 2 // 5)  # the middle, whatever it shows
        rows.append(compare({name: to_pil(x) for name, x in row.items()}, width=900, box=box))
    stack(rows).save(file, quality=90)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None] / 255


def to_pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture[0].movedim(0, -1) * 255).round().byte().numpy())


def main(args):
    if args.card:
        try:
            known = tomllib.loads(args.card.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{args.card}: {error}") from None
        unknown = sorted(set(known) - CARD_KEYS)
        if unknown:
            raise ValueError(f"{args.card} may hold {', '.join(sorted(CARD_KEYS))}, not {', '.join(unknown)}.")
        if args.results:
            known["results"] = read_results(args.results, args.folder)
        if args.picture:
            known["picture"] = "before_after.jpg"
            write_picture(args.folder / known["picture"], args.picture, args.folder)
        model_card(args.repo_id, **known).save(args.folder / "README.md")
        print(f"Wrote {args.folder / 'README.md'}")
    if not args.card_only:
        commit = publish(args.folder, args.repo_id, private=args.private or None, overwrite_card=args.overwrite_card)
        print(f"Published {commit.commit_url}")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        main(parse_args())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"publish.py: {error}")
