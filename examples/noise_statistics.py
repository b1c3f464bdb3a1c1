#!/usr/bin/env python
"""Compare simulated camera noise with real noise: tables of statistics, and crops side by side.

    python examples/noise_statistics.py PAIRS CLEAN -o noise.png

PAIRS holds real photographs and their ground truth, under the same names in PAIRS/noisy and PAIRS/clean; CLEAN holds
clean photographs to simulate on. Statistics are those of noisy - clean in 0..255, of colour images: per image without
its mean, then averaged over images. The second table is the mean itself, the shift in brightness, which tells how the
ground truth was made. It is 0 for the mean of developed files, and positive in the dark for an exposure at low ISO.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.files import list_images
from gdd_diffusers.hub import markdown_table
from gdd_diffusers.image_processor import pixels_to_tensor, tensor_to_pixels


LAGS = (1, 2, 4, 8)
CHANNEL_PAIRS = ((0, 1), (0, 2), (1, 2))
# Measured once, in the same way, on SIDD's sample images (12 scenes, phones, uncompressed). They are not part of
# PAIRS, since in-camera JPEG files and uncompressed phone files have little in common.
SIDD_SAMPLES = {
    "standard deviation R G B": (21.0, 15.3, 22.9),
    "correlation RG RB GB": (0.23, 0.49, 0.23),
    "autocorrelation, lag 1": (0.49, 0.33, 0.49),
    "autocorrelation, lag 2": (0.08, 0.00, 0.09),
    "autocorrelation, lag 4": (0.01, 0.03, 0.02),
    "autocorrelation, lag 8": (0.01, 0.02, 0.01),
}
# {(range of the clean value, range of the noise's standard deviation in that channel of the image): for R, G and B,
# the shift of these pixels in SIDD's samples and their share of all pixels in %}
SIDD_SHIFT = {
    ((16, 32), (8, 16)): ((-2.3, 5), (-1.9, 13), (-1.6, 12)),
    ((16, 32), (16, 28)): ((-3.8, 3), (-5.7, 4), (-2.2, 8)),
    ((32, 64), (8, 16)): ((-1.5, 21), (-1.5, 21), (-1.2, 18)),
    ((32, 64), (16, 28)): ((-4.1, 11), (-6.0, 10), (-3.5, 12)),
    ((32, 64), (28, 50)): ((-7.8, 10), (-8.7, 2), (-9.0, 15)),
    ((64, 128), (8, 16)): ((-1.1, 24), (-1.3, 2), (-0.6, 1)),
    ((64, 128), (16, 28)): ((-3.8, 5), (-3.5, 9), (-3.7, 1)),
    ((64, 128), (28, 50)): ((-8.1, 13), (-8.2, 1), (-9.4, 12)),
}


def statistics(pairs):
    """Return the rows of the table, {name: three values}, for a list of (clean, noisy), [3, H, W] in [0, 1]."""
    rows, levels, squares = {}, [], []
    for clean, noisy in pairs:
        noise = (noisy - clean) * 255
        rows.setdefault("PSNR", []).append(20 * torch.log10(255 / noise.square().mean().sqrt()))
        noise = noise - noise.mean((1, 2), keepdim=True)
        variance = noise.square().mean((1, 2)).clamp(min=1e-12)
        rows.setdefault("standard deviation R G B", []).append(variance.sqrt())
        correlation = [(noise[a] * noise[b]).mean() / (variance[a] * variance[b]).sqrt() for a, b in CHANNEL_PAIRS]
        rows.setdefault("correlation RG RB GB", []).append(torch.stack(correlation))
        for lag in LAGS:
            product = (noise[:, :, :-lag] * noise[:, :, lag:]).mean((1, 2))
            rows.setdefault(f"autocorrelation, lag {lag}", []).append(product / variance)
        levels.append(clean.flatten(1) * 255)
        squares.append(noise.square().flatten(1))
    psnr = torch.stack(rows.pop("PSNR"))
    table = {"PSNR of 10, 50, 90% of images": torch.quantile(psnr, torch.tensor([0.1, 0.5, 0.9])).tolist()}
    table |= {name: torch.stack(values).mean(0).tolist() for name, values in rows.items()}
    levels, squares = torch.cat(levels, 1), torch.cat(squares, 1)
    for low in range(0, 256, 32):
        inside = (low <= levels) & (levels < low + 32)
        variance = (squares * inside).sum(1) / inside.sum(1)
        table[f"standard deviation at {low}..{low + 31}"] = variance.sqrt().tolist()
    return table


def brightness_shift(pairs):
    """Return the mean of noisy - clean in each channel of each cell of `SIDD_SHIFT`, of means of 4x4 pixels."""
    sums, counts = torch.zeros(2, len(SIDD_SHIFT), 3)
    for clean, noisy in pairs:
        sigma = (noisy - clean).mul(255).std((1, 2)).view(3, 1, 1)
        level, noise = (F.avg_pool2d(x * 255, 4) for x in (clean, noisy - clean))
        for i, ((low, high), (weak, strong)) in enumerate(SIDD_SHIFT):
            inside = (low <= level) & (level < high) & (weak <= sigma) & (sigma < strong)
            counts[i] += inside.sum((1, 2))
            sums[i] += (noise * inside).sum((1, 2))
    return (sums / counts).tolist()


def read_pairs(folder):
    files = list_images([folder / "noisy"])
    return [tuple(_read(folder / side / file.name) for side in ("clean", "noisy")) for file in files]


def simulate(preset, folder, crop, crops_per_photo, seed):
    """Simulate noise on random crops of all photographs that are large enough; leave out grey and noiseless ones."""
    generator = torch.Generator().manual_seed(seed)
    simulator, pairs = CameraNoise(preset), []
    for photo in map(_read, list_images([folder])):
        if min(photo.shape[1:]) < crop:
            continue
        crops = []
        for _ in range(crops_per_photo):
            top, left = (int(torch.randint(side - crop + 1, (), generator=generator)) for side in photo.shape[1:])
            crops.append(photo[:, top : top + crop, left : left + crop])
        pairs += zip(*simulator(torch.stack(crops), generator), strict=True)
    return [(clean, noisy) for clean, noisy in pairs if (noisy - clean).std(0).any()]


def crops_side_by_side(groups, size=128, columns=8):
    """Draw, for each group of pairs, a row of noisy crops, 1:1, above a row of their clean ones."""
    rows = []
    for pairs in groups:
        chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(columns, len(pairs))).astype(int)]
        for side in (1, 0):
            row = torch.cat([_centre(pair[side], size, size) for pair in chosen], 2)
            rows.append(_centre(row, size, columns * size))
    return tensor_to_pixels(torch.cat(rows, 1))


def _centre(image, height, width):
    top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
    bottom, right = height - image.shape[1] - top, width - image.shape[2] - left
    return F.pad(image, (left, right, top, bottom), value=1)


def _read(file):
    return pixels_to_tensor(np.asarray(Image.open(file).convert("RGB")))


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="Folder of real pairs: noisy/ and clean/.")
    parser.add_argument("clean", type=Path, help="Folder of clean photographs.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Image of the crops.")
    parser.add_argument("--crop", type=int, default=256, help="Side of the simulated crops in pixels.")
    parser.add_argument("--crops_per_photo", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)

    sets = {
        "phone, simulated": simulate("phone", args.clean, args.crop, args.crops_per_photo, args.seed),
        "PAIRS, real": read_pairs(args.pairs),
        "camera, simulated": simulate("camera", args.clean, args.crop, args.crops_per_photo, args.seed),
    }
    if not sets["phone, simulated"]:
        parser.error(f"no photograph in {args.clean} has {args.crop} px on both sides: choose a smaller --crop")

    tables = [SIDD_SAMPLES, *map(statistics, sets.values())]
    rows = [[name, *(_cell(table.get(name, ()), ".2f") for table in tables)] for name in tables[1]]
    print(markdown_table(["statistic", "phones, real", *sets], rows))

    shifts, rows = [brightness_shift(pairs) for pairs in sets.values()], []
    for channel, colour in enumerate("RGB"):
        for i, (((low, high), (weak, strong)), real) in enumerate(SIDD_SHIFT.items()):
            shift, share = real[channel]
            values = (_cell([value], ".1f") for value in (shift, *(x[i][channel] for x in shifts)))
            rows.append([f"{colour}, clean {low}..{high}, noise {weak}..{strong}", f"{share}%", *values])
    print("\n" + markdown_table(["brightness shift", "share", "phones, real", *sets], rows))

    Image.fromarray(crops_side_by_side(sets.values())).save(args.output)
    print(f"\n{args.output}: two rows each (noisy, clean) of {'; '.join(sets)}")


def _cell(values, spec):
    return " ".join(format(value, spec) for value in values if value == value)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"noise_statistics.py: {error}")
