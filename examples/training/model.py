"""The pipeline that train.py trains, and its optimizer."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DModel

from gdd_diffusers import InterpolationScheduler, LocalUNet2DModel, RealDenoisePipeline


CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
CLASSES = {"LocalUNet2DModel": LocalUNet2DModel, "UNet2DModel": UNet2DModel}


def build_pipeline(args) -> RealDenoisePipeline:
    """Load the pipeline of `--pretrained_model`, or make a new one from `--model_config`."""
    if args.pretrained_model:
        return RealDenoisePipeline.from_pretrained(args.pretrained_model)
    files = [Path(args.model_config), CONFIGS / f"{args.model_config}.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"--model_config {args.model_config} is neither a file nor one of: {PRESETS}.")
    try:
        config = json.loads(file.read_text())
        class_name, pixel_unshuffle = config.pop("_class_name", None), config.pop("pixel_unshuffle", 1)
        if class_name not in CLASSES:
            raise ValueError(f"{file} must name a _class_name of {' or '.join(CLASSES)}, not {class_name}.")
        unet = CLASSES[class_name](**config)
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not the configuration of a network: {error}") from error
    scheduler = InterpolationScheduler(prediction_type=args.prediction_type or "sample")
    min_size = min(crop for crop, _ in args.crop_size)  # it will not know smaller images
    pipeline = RealDenoisePipeline(unet, scheduler, pixel_unshuffle=pixel_unshuffle, min_size=min_size)
    if unet.config.in_channels != 3 * pixel_unshuffle**2:
        raise ValueError(f"{file} is for grayscale images: training needs three times as many in_channels, for RGB.")
    return pipeline


def load_teacher(name: str, scheduler: InterpolationScheduler) -> RealDenoisePipeline:
    """Load the pipeline of `--teacher`, whose predictions for the same x_t and t a new one is to learn."""
    teacher = RealDenoisePipeline.from_pretrained(name)
    if teacher.unet.config.in_channels != 3 * teacher.config.pixel_unshuffle**2:
        raise ValueError(f"--teacher {name} is for grayscale images; training is on RGB.")
    if teacher.scheduler.config.num_train_timesteps != scheduler.config.num_train_timesteps:
        raise ValueError(
            f"--teacher {name} has {teacher.scheduler.config.num_train_timesteps} timesteps, and the network to train "
            f"{scheduler.config.num_train_timesteps}."
        )
    teacher.unet.to(memory_format=torch.channels_last)
    return teacher


def build_optimizer(args, unet: torch.nn.Module) -> torch.optim.Optimizer:
    """
    Make AdamW, or Muon (https://kellerjordan.github.io/posts/muon/) for the hidden convolutions and AdamW for the
    rest. Muon orthogonalizes the update of each kernel, as a matrix of [out, in * 3 * 3], and scales it to the size of
    AdamW's (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982), so both share one `--learning_rate`.
    """
    adamw = {"betas": (0.9, 0.99), "weight_decay": 0.0}
    if args.optimizer == "adamw":
        return torch.optim.AdamW(unet.parameters(), args.learning_rate, **adamw)
    try:
        from pytorch_optimizer import Muon
    except ImportError as error:
        raise ValueError('--optimizer muon needs a package: pip install "gdd-diffusers[train]"') from error
    hidden, others = [], []
    for name, parameter in unet.named_parameters():
        is_hidden = parameter.ndim == 4 and not name.startswith(("conv_in.", "conv_out."))
        (hidden if is_hidden else others).append(parameter)
    groups = [
        {"params": hidden, "use_muon": True, "use_adjusted_lr": True, "weight_decay": 0.0},
        {"params": others, "use_muon": False, "lr": args.learning_rate, **adamw},
    ]
    return Muon(groups, lr=args.learning_rate)
