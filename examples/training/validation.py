"""Held-out pairs, and how well a pipeline does on them, for train.py."""

from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
from gdd_diffusers.metrics import psnr, ssim
from gdd_diffusers.paired_data import Pictures


def held_out_pairs(dataset, simulator, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(noisy, clean), float [1, 3, h, w] in [0, 1]: the middles of pictures spread evenly over a data set."""
    count = min(count, len(dataset))
    pictures = Pictures(dataset.select([i * len(dataset) // count for i in range(count)]))
    pairs = []
    for picture in filter(None, (pictures[i] for i in range(count))):
        clean, noisy = centre_crop(picture["clean"]), centre_crop(picture.get("noisy", picture["clean"]))
        if "noisy" not in picture:
            clean, noisy = simulator(clean, generator=torch.Generator().manual_seed(len(pairs)))
        pairs.append((noisy, clean))
    return pairs


def centre_crop(pixels, size: int = 256) -> torch.Tensor:
    """uint8 [H, W, 3] to float [1, 3, h, w] in [0, 1], sides at most `size`."""
    top, left = (max(0, side - size) // 2 for side in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1)[None] / 255


def validate(pipeline: RealDenoisePipeline, pairs, inference_steps: list[int], picture_file: Path) -> dict[str, float]:
    """Mean PSNR and SSIM under both rules; writes noisy, denoised and clean pictures side by side, one pair a row."""
    scores, shown = {}, []
    for noisy, clean in pairs:
        outputs = {"noisy": noisy}
        for rule in ("improved", "origin"):
            scheduler = InterpolationScheduler.from_config(pipeline.scheduler.config, step_rule=rule)
            walk = RealDenoisePipeline(pipeline.unet, scheduler, pixel_unshuffle=pipeline.config.pixel_unshuffle)
            walk.set_progress_bar_config(disable=True)
            for n in inference_steps:
                outputs[f"{rule}_{n}"] = walk(noisy, num_inference_steps=n, output_type="pt").images.cpu()
        for name, output in outputs.items():
            scores.setdefault(f"psnr/{name}", []).append(psnr(output, clean).item())
            scores.setdefault(f"ssim/{name}", []).append(ssim(output, clean).item())
        row = [noisy, outputs[f"improved_{inference_steps[0]}"], clean]
        shown += [Image.fromarray((p[0].permute(1, 2, 0) * 255).round().byte().numpy()) for p in row]
    picture_file.parent.mkdir(exist_ok=True)
    make_image_grid(shown, rows=len(pairs), cols=3, resize=256).save(picture_file)
    return {name: sum(values) / len(values) for name, values in scores.items()}
