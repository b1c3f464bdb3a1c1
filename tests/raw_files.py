"""Raw files as cameras write them: DNGs of a known scene, made from nothing."""

import numpy as np
import tifffile


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
