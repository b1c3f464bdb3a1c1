#!/usr/bin/env python
"""Measure how much tiling shows: the tiled picture against the whole one, by tile size and overlap.

    python examples/seams.py                     # the bundled weights on a 2-megapixel noisy picture

Prints, for each tile size and overlap: the PSNR of tiled against whole in dB (of the float pictures; "inf" is equal
bits), the largest difference of a single value in steps of 1/255, and the pixels computed for each that is kept.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.tiling import plan_tiles


SAMPLE = Path(__file__).parent / "assets" / "coffee_noisy.png"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub repo; the bundled weights if not given.")
    parser.add_argument("--picture", help="A noisy picture; the sample, mirrored to 1800x1200, if not given.")
    parser.add_argument("--tile_sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[48, 64, 96, 128, 160, 192, 224, 240])
    args = parser.parse_args(argv)

    if args.picture:
        picture = np.asarray(Image.open(args.picture).convert("RGB"))
    else:
        picture = np.asarray(Image.open(SAMPLE))
        picture = np.pad(picture, [(picture.shape[0],) * 2, (picture.shape[1],) * 2, (0, 0)], mode="symmetric")

    pipe = RealDenoisePipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.disable_tiling()
    whole = torch.from_numpy(pipe(picture, num_inference_steps=1, output_type="np").images)

    overlaps = list(args.overlaps)
    if pipe.receptive_field:
        # twice of it, in whole multiples of what tiles are made of
        overlaps.append(-(-2 * (pipe.receptive_field + 1) // pipe.spatial_multiple) * pipe.spatial_multiple)
        print(f"{type(pipe.unet).__name__}, sees {pipe.receptive_field} px to each side; the last overlap is exact")
    print("\n| tile | overlap | tiled against whole | largest difference | pixels computed |")
    print("| --- | --- | --- | --- | --- |")
    for tile_size in args.tile_sizes:
        for overlap in overlaps:
            # a tile that is too small for the overlap grows to twice of it, the least that the pipeline takes
            size = max(tile_size, 2 * overlap)
            if size > tile_size and overlap != overlaps[-1]:
                continue
            pipe.enable_tiling(size, overlap)
            tiled = torch.from_numpy(pipe(picture, num_inference_steps=1, output_type="np").images)
            error = tiled - whole
            decibels = -10 * torch.log10(error.double().square().mean())
            multiple = pipe.spatial_multiple
            computed = 1.0
            for side in picture.shape[:2]:
                tile, starts = plan_tiles(-(-side // multiple) * multiple, size, overlap, multiple)
                computed *= tile * len(starts) / side
            print(f"| {size} | {overlap} | {decibels:.1f} dB | {255 * error.abs().max():.3f} | {computed:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"seams.py: {error}")
