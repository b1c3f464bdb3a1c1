#!/usr/bin/env python
"""Denoise the sample photograph and print the gain in PSNR; this is what `make demo` runs."""

from pathlib import Path

import numpy as np
from PIL import Image

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.comparison import compare
from gdd_diffusers.image_processor import pixels_to_tensor
from gdd_diffusers.metrics import psnr


ASSETS = Path(__file__).parent / "assets"


def main(output_dir: str | Path = "out"):
    noisy, clean = (Image.open(ASSETS / f"coffee_{name}.png") for name in ("noisy", "clean"))

    pipe = RealDenoisePipeline.from_pretrained()
    denoised = pipe(noisy).images[0]

    def decibels(image):
        return psnr(*(pixels_to_tensor(np.asarray(x))[None] for x in (image, clean))).item()

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    denoised.save(output_dir / "coffee_denoised.png")
    compare({"noisy": noisy, "denoised": denoised, "clean": clean}).save(output_dir / "coffee_compared.png")
    print(f"PSNR {decibels(noisy):.2f} dB noisy, {decibels(denoised):.2f} dB denoised")
    print(f"The result is {output_dir / 'coffee_denoised.png'}; side by side in {output_dir / 'coffee_compared.png'}")


if __name__ == "__main__":
    main()
