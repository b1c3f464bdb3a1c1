"""How well a pipeline does on held-out pairs, for train.py."""

from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
from gdd_diffusers.metrics import psnr, ssim


def validate(
    pipeline: RealDenoisePipeline,
    sets: dict[str, list[tuple[torch.Tensor, torch.Tensor]]],
    inference_steps: list[int],
    picture_file: Path,
) -> dict[str, float]:
    """
    Mean PSNR and SSIM under both rules, over all (noisy, clean) pairs and, of several sets, over each.

    Writes noisy, denoised and clean pictures side by side, one pair a row.
    """
    walks = {}
    for rule in ("improved", "origin"):
        scheduler = InterpolationScheduler.from_config(pipeline.scheduler.config, step_rule=rule)
        walks[rule] = RealDenoisePipeline(pipeline.unet, scheduler, pixel_unshuffle=pipeline.config.pixel_unshuffle)
        walks[rule].set_progress_bar_config(disable=True)

    values, shown = {}, []
    for set_name, pairs in sets.items():
        for noisy, clean in pairs:
            outputs = {"noisy": noisy}
            for rule, walk in walks.items():
                for n in inference_steps:
                    outputs[f"{rule}_{n}"] = walk(noisy, num_inference_steps=n, output_type="pt").images.cpu()
            for name, output in outputs.items():
                # Equal pictures, as a clean one left alone, would be infinitely many dB; rounding allows for 59.
                scores = {"psnr": psnr(output, clean).clamp(max=60).item(), "ssim": ssim(output, clean).item()}
                for measure, score in scores.items():
                    values.setdefault(f"{measure}/{name}", []).append(score)
                    if len(sets) > 1:
                        values.setdefault(f"{measure}/{name}/{set_name}", []).append(score)
            row = [noisy, outputs[f"improved_{inference_steps[0]}"], clean]
            shown += [Image.fromarray((p[0].permute(1, 2, 0) * 255).round().byte().numpy()) for p in row]
    picture_file.parent.mkdir(exist_ok=True)
    make_image_grid(shown, rows=len(shown) // 3, cols=3, resize=256).save(picture_file)
    return {key: sum(scores) / len(scores) for key, scores in values.items()}


def in_words(scores: dict[str, float]) -> str:
    """What `validate` returned, each of several sets on a line of its own."""
    lines = {}
    for key, score in scores.items():
        measure, name, *set_name = key.split("/")
        lines.setdefault("".join(set_name), []).append(f"{measure}/{name} {score:.3f}")
    return "\n".join(f"  {name}: {', '.join(line)}" if name else ", ".join(line) for name, line in lines.items())
