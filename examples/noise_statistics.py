#!/usr/bin/env python
"""Compare simulated camera noise with real noise: a table of second-order statistics, and crops side by side.

    python examples/noise_statistics.py PAIRS CLEAN -o noise.png

PAIRS holds real photographs and what they should look like, under the same names in PAIRS/noisy and PAIRS/clean; CLEAN
holds the clean photographs to simulate on. Statistics are those of noisy - clean in 0..255, the picture's mean taken
off, per picture and then averaged over pictures.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.files import list_images


LAGS = (1, 2, 4, 8)
CHANNEL_PAIRS = ((0, 1), (0, 2), (1, 2))
BRIGHTNESS = range(0, 256, 32)
# Measured once, in the same way, on sample pictures of SIDD (12 scenes, phones, uncompressed). Not in PAIRS, because
# in-camera JPEG files and uncompressed phone files have little in common.
SIDD_SAMPLES = {
    "standard deviation R G B": (21.0, 15.3, 22.9),
    "correlation RG RB GB": (0.23, 0.49, 0.23),
    "autocorrelation, lag 1": (0.49, 0.33, 0.49),
    "autocorrelation, lag 2": (0.08, 0.00, 0.09),
    "autocorrelation, lag 4": (0.01, 0.03, 0.02),
    "autocorrelation, lag 8": (0.01, 0.02, 0.01),
}


def statistics(pairs):
    """Row names and three values each, of an iterable of (clean, noisy), [3, H, W] in [0, 1]."""
    rows, squares, counts = {}, torch.zeros(3, len(BRIGHTNESS)), torch.zeros(3, len(BRIGHTNESS))
    for clean, noisy in pairs:
        noise = (noisy - clean) * 255
        if not noise.any():
            continue
        rows.setdefault("PSNR", []).append(20 * torch.log10(255 / noise.square().mean().sqrt()))
        noise = noise - noise.mean((1, 2), keepdim=True)
        variance = noise.square().mean((1, 2)).clamp(min=1e-12)
        rows.setdefault("standard deviation R G B", []).append(variance.sqrt())
        correlation = [(noise[a] * noise[b]).mean() / (variance[a] * variance[b]).sqrt() for a, b in CHANNEL_PAIRS]
        rows.setdefault("correlation RG RB GB", []).append(torch.stack(correlation))
        for lag in LAGS:
            product = (noise[:, :, :-lag] * noise[:, :, lag:]).mean((1, 2))
            rows.setdefault(f"autocorrelation, lag {lag}", []).append(product / variance)
        for channel in range(3):
            level = (clean[channel] * 255 / 32).long().clamp(max=len(BRIGHTNESS) - 1).flatten()
            counts[channel] += torch.bincount(level, minlength=len(BRIGHTNESS))
            squares[channel] += torch.bincount(level, noise[channel].square().flatten(), len(BRIGHTNESS))
    psnr = torch.stack(rows.pop("PSNR"))
    table = {"PSNR of 10, 50, 90% of pictures": torch.quantile(psnr, torch.tensor([0.1, 0.5, 0.9])).tolist()}
    table |= {name: torch.stack(values).mean(0).tolist() for name, values in rows.items()}
    for i, low in enumerate(BRIGHTNESS):
        table[f"standard deviation at {low}..{low + 31}"] = (squares / counts).sqrt()[:, i].tolist()
    return table


def read_pairs(folder):
    files = list_images([folder / "noisy"])
    return [tuple(_read(folder / side / file.name) for side in ("clean", "noisy")) for file in files]


def simulate(preset, folder, crop, crops_per_photo, seed):
    """Pairs of random crops from every photograph that is large enough."""
    generator = torch.Generator().manual_seed(seed)
    simulator, pairs = CameraNoise(preset), []
    for file in list_images([folder]):
        photo = _read(file)
        if min(photo.shape[1:]) < crop:
            continue
        crops = []
        for _ in range(crops_per_photo):
            top, left = (int(torch.randint(side - crop + 1, (), generator=generator)) for side in photo.shape[1:])
            crops.append(photo[:, top : top + crop, left : left + crop])
        pairs += zip(*simulator(torch.stack(crops), generator), strict=True)
    return pairs


def crops_side_by_side(groups, size=128, columns=8):
    """For each group of pairs one row of noisy crops, 1:1, above one of their clean ones."""
    rows = []
    for pairs in groups:
        chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(columns, len(pairs))).astype(int)]
        for side in (1, 0):
            row = torch.ones(3, size, columns * size)
            for i, pair in enumerate(chosen):
                picture = pair[side]
                top, left = (max(0, n - size) // 2 for n in picture.shape[1:])
                picture = picture[:, top : top + size, left : left + size]
                row[:, : picture.shape[1], i * size : i * size + picture.shape[2]] = picture
            rows.append(row)
    return (torch.cat(rows, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _read(file):
    return torch.from_numpy(np.asarray(Image.open(file).convert("RGB"), np.float32) / 255).permute(2, 0, 1)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="Folder of real pairs: noisy/ and clean/.")
    parser.add_argument("clean", type=Path, help="Folder of clean photographs.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Picture of the crops.")
    parser.add_argument("--crop", type=int, default=256, help="Side of the simulated crops in pixels.")
    parser.add_argument("--crops_per_photo", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)

    real = read_pairs(args.pairs)
    simulated = {
        preset: simulate(preset, args.clean, args.crop, args.crops_per_photo, args.seed)
        for preset in ("camera", "phone")
    }
    if not simulated["phone"]:
        parser.error(f"no photograph in {args.clean} has {args.crop} px on both sides: choose a smaller --crop")

    columns = {
        "phones, real": SIDD_SAMPLES,
        "phone, simulated": statistics(simulated["phone"]),
        "camera, real": statistics(real),
        "camera, simulated": statistics(simulated["camera"]),
    }
    print("| statistic | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name in columns["camera, real"]:
        cells = (" ".join(f"{value:.2f}" for value in column.get(name, ())) for column in columns.values())
        print(f"| {name} | " + " | ".join(cells) + " |")

    Image.fromarray(crops_side_by_side([real, simulated["camera"], simulated["phone"]])).save(args.output)
    print(f"\n{args.output}: two rows each (noisy, clean) of real, simulated camera and simulated phone pictures")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"noise_statistics.py: {error}")
