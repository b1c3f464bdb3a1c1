"""This project's general denoising diffusion, as examples/train.py trains it, with the network of gdd-fast."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from gdd_diffusers import InterpolationScheduler, LocalUNet2DModel, RealDenoisePipeline, losses
from rivals.denoiser import Denoiser


CONFIG = Path(__file__).parents[1] / "configs" / "gdd-fast.json"


def load_unet(inputs: int = 1) -> tuple[LocalUNet2DModel, int]:
    """Make the network of gdd-fast for so many images at its input, and return how far it unshuffles pixels."""
    config = json.loads(CONFIG.read_text())
    del config["_class_name"]
    pixel_unshuffle = config.pop("pixel_unshuffle")
    config["in_channels"] *= inputs
    return LocalUNet2DModel(**config), pixel_unshuffle


class GDD(Denoiser):
    """A U-Net that predicts the clean image from every point of the line to the noisy one."""

    def __init__(self, loss_name: str = "charbonnier"):
        super().__init__()
        self.unet, self.pixel_unshuffle = load_unet()
        self.scheduler = InterpolationScheduler()
        self.loss_name = loss_name

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Predict x_0 from x_t, both in [-1, 1]."""
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(x_t, self.pixel_unshuffle), t).sample, self.pixel_unshuffle)

    def loss(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        clean, noisy = 2 * clean - 1, 2 * noisy - 1
        t = self.scheduler.config.num_train_timesteps * (1 - torch.rand(len(clean), device=clean.device))
        x_t = self.scheduler.add_noise(clean, noisy, t)
        return getattr(losses, self.loss_name)(self(x_t, t), clean)

    def denoise(self, noisy: torch.Tensor, steps: int = 1, rule: str = "improved") -> torch.Tensor:
        scheduler = InterpolationScheduler(step_rule=rule)
        pipe = RealDenoisePipeline(self.unet, scheduler, pixel_unshuffle=self.pixel_unshuffle)
        pipe.set_progress_bar_config(disable=True)
        return pipe(noisy.cpu(), num_inference_steps=steps, output_type="pt").images.to(noisy.device)
