"""Real-world image denoising as a first-class citizen of Hugging Face diffusers."""

from .pipeline_real_denoise import RealDenoisePipeline
from .scheduling_interpolation import InterpolationScheduler
from .unet_local import LocalUNet2DModel


__all__ = ["InterpolationScheduler", "LocalUNet2DModel", "RealDenoisePipeline"]
