"""
Raw files as cameras write them: DNGs of a known scene, made from nothing.

    python tests/raw_files.py CLEAN PAIRS

takes the photographs in CLEAN with phones' sensors, as `CameraNoise("phone")` draws them, and develops the files to
PAIRS/noisy and PAIRS/clean, for `examples/noise_statistics.py`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from gdd_diffusers.data.cameras import Draw
from gdd_diffusers.data.development import XYZ_TO_CAMERA
from gdd_diffusers.files import for_display, list_images, read_image


BAYER = np.array([[0, 1], [1, 2]])
XTRANS = np.array(
    [
        [1, 2, 1, 1, 0, 1],
        [0, 1, 0, 2, 1, 2],
        [1, 2, 1, 1, 0, 1],
        [1, 0, 1, 1, 2, 1],
        [2, 1, 2, 0, 1, 0],
        [1, 0, 1, 1, 2, 1],
    ]
)
NEUTRAL = np.array([0.5, 1.0, 0.6])  # what this sensor sees of white
BLACK, WHITE = 256, 4095
# the colours of the sensor: XYZ of its red, green and blue
XYZ_FROM_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ_FROM_P3 = np.array(
    [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]]
)


def scene(height, width):
    """Smooth colours in linear sRGB, [H, W, 3] in [0.05, 0.65]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x, y, 1 - x], axis=-1) * 0.6 + 0.05


def expose(linear, pattern=BAYER, noise=None):
    """What the sensor records of a scene, [H, W] uint16; `noise` is (shot, read): its variance is shot x + read."""
    height, width = linear.shape[:2]
    repeats = [-(-side // period) for side, period in zip((height, width), pattern.shape, strict=True)]
    colours = np.tile(pattern, repeats)[:height, :width]
    light = np.take_along_axis(linear * NEUTRAL, colours[..., None], axis=-1)[..., 0]
    if noise:
        light = light + np.random.default_rng(0).normal(size=light.shape) * np.sqrt(noise[0] * light + noise[1])
    return (light * (WHITE - BLACK) + BLACK).round().clip(0, WHITE).astype(np.uint16)


def write_dng(path, recorded, pattern=BAYER, orientation=1, colours=XYZ_FROM_SRGB, tags=()):
    """Write a DNG; `tags` as tifffile takes them."""

    def rationals(values):
        return [number for value in np.ravel(values) for number in (round(value * 10_000), 10_000)]

    camera = [
        (271, 2, 0, "Maker", True),
        (272, 2, 0, "Model 1", True),
        (274, 3, 1, orientation, True),
        (33421, 3, 2, pattern.shape, True),
        (33422, 1, pattern.size, pattern.astype(np.uint8).tobytes(), True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True),
        (50708, 2, 0, "Maker Model 1", True),
        (50714, 3, 1, BLACK, True),
        (50717, 4, 1, WHITE, True),
        (50721, 10, 9, rationals(np.linalg.inv(colours)), True),
        (50728, 5, 3, rationals(NEUTRAL), True),
        (50778, 3, 1, 21, True),  # daylight
    ]
    tifffile.imwrite(path, recorded, photometric=32803, extratags=[*camera, *tags], metadata=None, software=False)


def main(photos, pairs):
    generator = torch.Generator().manual_seed(0)
    xyz_to_camera = XYZ_TO_CAMERA.mean(0).double().numpy()
    to_camera = xyz_to_camera @ XYZ_FROM_SRGB
    to_camera /= to_camera.sum(1, keepdims=True)  # grey stays grey
    for side in ("noisy", "clean"):
        Path(pairs, side).mkdir(parents=True, exist_ok=True)
    for photo in list_images([photos]):
        camera = {name: value.item() for name, value in Draw(1, generator, "cpu").camera(["phone"]).items()}
        shot = camera["iso"] * camera["shot_per_iso"]
        read = camera["read_factor"] * shot ** camera["read_power"]
        pixels = np.asarray(Image.open(photo).convert("RGB"), dtype=float)[:512, :512] / 255
        light = camera["exposure"] * np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
        with tempfile.TemporaryDirectory() as folder:
            for side, noise in (("noisy", (shot, read)), ("clean", None)):
                recorded = expose(light @ to_camera.T, noise=noise)
                write_dng(Path(folder, "a.dng"), recorded, colours=np.linalg.inv(xyz_to_camera))
                developed = read_image(Path(folder, "a.dng")).pixels
                Image.fromarray(for_display(developed)).save(Path(pairs, side, f"{photo.stem}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
