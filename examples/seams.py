#!/usr/bin/env python
"""Compare the result in tiles, or in the bands of a LocalUNet2DModel, with that of the whole image.

    python examples/seams.py                     # the bundled weights on a 2-megapixel noisy image

Prints, for each tile size and overlap (bands have none), the PSNR against the whole in dB (of the float images; "inf"
is equal bits), the largest difference of a single value in steps of 1/255, and the pixels computed for each one kept.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.hub import markdown_table
from gdd_diffusers.tiling import plan_tiles


SAMPLE = Path(__file__).parent / "assets" / "coffee_noisy.png"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub repo; the bundled weights by default.")
    parser.add_argument("--picture", help="A noisy image; by default, the sample mirrored to 1800x1200.")
    parser.add_argument("--tile_sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[48, 64, 96, 128, 160, 192, 224, 240])
    args = parser.parse_args()

    image = np.asarray(Image.open(args.picture or SAMPLE).convert("RGB"))
    if not args.picture:
        image = np.pad(image, [(image.shape[0],) * 2, (image.shape[1],) * 2, (0, 0)], mode="symmetric")
    pipe = RealDenoisePipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.disable_tiling()
    whole = pipe(image, num_inference_steps=1, output_type="np").images

    in_bands = hasattr(pipe.unet, "forward_bands")
    rows = []
    for size in args.tile_sizes:
        for overlap in [0] if in_bands else args.overlaps:
            if size < 2 * overlap:
                continue
            pipe.enable_tiling(size, overlap)
            error = pipe(image, num_inference_steps=1, output_type="np").images - whole
            with np.errstate(divide="ignore"):
                decibels = -10 * np.log10(np.square(error, dtype=np.float64).mean())
            computed, multiple = 1.0, pipe.spatial_multiple
            for side in image.shape[:2] if not in_bands else ():
                tile, starts = plan_tiles(-(-side // multiple) * multiple, size, overlap, multiple)
                computed *= tile * len(starts) / side
            largest = 255 * np.abs(error).max()
            rows.append([str(size), str(overlap), f"{decibels:.1f} dB", f"{largest:.3f}", f"{computed:.2f}"])
    header = ["tile", "overlap", "against whole", "largest difference", "pixels computed"]
    print(f"\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"seams.py: {error}")
