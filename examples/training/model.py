"""The pipeline that train.py trains."""

import json
from pathlib import Path

import diffusers

from gdd_diffusers import InterpolationScheduler, LocalUNet2DModel, RealDenoisePipeline


CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))


def build_pipeline(args) -> RealDenoisePipeline:
    """That of `--pretrained_model`, or a new one by `--model_config`."""
    if args.pretrained_model:
        return RealDenoisePipeline.from_pretrained(args.pretrained_model)
    files = [Path(args.model_config), CONFIGS / f"{args.model_config}.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"--model_config {args.model_config} is neither a file nor one of: {PRESETS}.")
    classes = {"LocalUNet2DModel": LocalUNet2DModel, "UNet2DModel": diffusers.UNet2DModel}
    try:
        config = json.loads(file.read_text())
        class_name, pixel_unshuffle = config.pop("_class_name", None), config.pop("pixel_unshuffle", 1)
        if class_name not in classes:
            raise ValueError(f"{file} must name a _class_name of {' or '.join(classes)}, not {class_name}.")
        unet = classes[class_name](**config)
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no configuration of a network: {error}") from error
    scheduler = InterpolationScheduler(prediction_type=args.prediction_type or "sample")
    pipeline = RealDenoisePipeline(unet, scheduler, pixel_unshuffle=pixel_unshuffle)
    if unet.config.in_channels != 3 * pixel_unshuffle**2:
        raise ValueError(f"{file} is for grey pictures; to train in colour, in_channels must be three times as many.")
    return pipeline
