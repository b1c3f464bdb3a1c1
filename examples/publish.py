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

from evaluation.card import model_results
from PIL import Image

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.app.denoising import denoise_pixels, simulate_pixels
from gdd_diffusers.comparison import compare, stack
from gdd_diffusers.files import for_display, read_image
from gdd_diffusers.hub import model_card, publish
from gdd_diffusers.image_processor import pixels_to_tensor
from gdd_diffusers.metrics import psnr


CARD_KEYS = {"license", "introduction", "recipe", "training_data", "limits", "datasets", "commands"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The model, as train.py writes it.")
    parser.add_argument("repo_id", help="ORG/NAME on the Hub.")
    parser.add_argument("--card", type=Path, help="Rewrite the folder's card with the content of this TOML file.")
    parser.add_argument("--results", type=Path, nargs="+", help="results.json of evaluate.py, for the card.")
    parser.add_argument(
        "--picture",
        nargs="+",
        metavar="FILE[@PRESET:ISO]",
        help="Noisy photographs, for the card to show before and after; @phone:1600 or @camera:6400 add noise to a "
        "clean one.",
    )
    parser.add_argument("--card_only", action="store_true", help="Write the card without publishing.")
    parser.add_argument("--private", action="store_true", help="Make a new repo private.")
    parser.add_argument("--overwrite_card", action="store_true", help="Replace a card that was edited on the Hub.")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}.")
    if not args.card and (args.results or args.picture or args.card_only):
        parser.error("--results, --picture and --card_only need --card, to rewrite the folder's card.")
    return args


def write_card(args):
    try:
        content = tomllib.loads(args.card.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{args.card}: {error}") from None
    if unknown := sorted(set(content) - CARD_KEYS):
        raise ValueError(f"{args.card} may hold {', '.join(sorted(CARD_KEYS))}, not {', '.join(unknown)}.")
    if args.results:
        data = [part for file in args.results for part in json.loads(file.read_text(encoding="utf-8"))]
        content["results"] = model_results(data, args.folder)
        if not content["results"]:
            raise ValueError(f"{' and '.join(map(str, args.results))} has no figures of the model {args.folder}.")
    if args.picture:
        content["picture"] = "before_after.jpg"
        pipe = RealDenoisePipeline.from_pretrained(args.folder)
        rows = [before_and_after(pipe, spec) for spec in args.picture]
        stack(rows).save(args.folder / content["picture"], quality=90)
    model_card(args.repo_id, **content).save(args.folder / "README.md")
    print(f"Wrote {args.folder / 'README.md'}")


def before_and_after(pipe: RealDenoisePipeline, spec: str) -> Image.Image:
    """Show a photograph noisy and denoised and, if its noise is simulated, clean, with an enlarged crop of each."""
    source, preset, iso = re.fullmatch(r"(.*?)(?:@(phone|camera):(\d+))?", spec).groups()
    name, noisy = "noisy", read_image(source).pixels
    if preset:
        clean, noisy = simulate_pixels(noisy, preset, float(iso), seed=2)  # a well exposed draw
        name = f"simulated {preset}, ISO {iso}"
    versions = {name: noisy, "denoised": denoise_pixels(pipe, [noisy])[0]}
    if preset:
        truth = pixels_to_tensor(clean[None])
        versions = {
            f"{name}: {psnr(pixels_to_tensor(x[None]), truth).item():.1f} dB": x for name, x in versions.items()
        }
        versions["clean"] = clean
    images = {name: Image.fromarray(for_display(x)) for name, x in versions.items()}
    height, width = noisy.shape[:2]
    return compare(images, width=900, box=(width * 2 // 5, height * 2 // 5))  # the middle


def main(args):
    if args.card:
        write_card(args)
    if not args.card_only:
        commit = publish(args.folder, args.repo_id, private=args.private or None, overwrite_card=args.overwrite_card)
        print(f"Published {commit.commit_url}")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        main(parse_args())
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"publish.py: {error}")
