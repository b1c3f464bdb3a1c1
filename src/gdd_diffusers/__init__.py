"""Real-world image denoising as a first-class citizen of Hugging Face diffusers."""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    __version__: str
    from .pipeline_real_denoise import RealDenoisePipeline
    from .scheduling_interpolation import InterpolationScheduler
    from .unet_local import LocalUNet2DModel

# Where they are installed, ONNX Runtime, which diffusers imports, and OpenVINO report each use to their makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed

__all__ = ["InterpolationScheduler", "LocalUNet2DModel", "RealDenoisePipeline"]

# Imported on first use, as diffusers does: its models and pipelines take a second to import.
_MODULES = {
    "InterpolationScheduler": "scheduling_interpolation",
    "LocalUNet2DModel": "unet_local",
    "RealDenoisePipeline": "pipeline_real_denoise",
}


def __getattr__(name: str):
    if name == "__version__":
        return version("gdd-diffusers")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
