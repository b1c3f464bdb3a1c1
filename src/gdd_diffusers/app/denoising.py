"""
What the `gdd` command and its page share: loading a model, and running it on the pixels of a file.

Heavy imports wait until they are needed, so that `gdd --help` answers at once.
"""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace


def first_line(error: BaseException) -> str:
    """Return an error's message without the pages that libraries add to it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def choose_device(device: str = "auto", dtype: str = "auto"):
    """
    Return a torch device and dtype; `auto` is the fastest device, and the fastest dtype that is accurate on it.

    Raises:
        `ValueError`: If the machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_available in available.items() if is_available)
    elif not available[device]:
        raise ValueError(f"this machine has no {device} device; try --device auto.")
    if dtype == "auto":
        # emulated bfloat16 is slower than float32, and on mps it has not been measured
        has_bfloat16 = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: torch.cpu.get_capabilities().get("avx512_bf16", False),
            "mps": lambda: False,
        }
        dtype = "bfloat16" if has_bfloat16[device]() else "float32"
    return torch.device(device), getattr(torch, dtype)


def load_model(model: str | None = None, device: str = "auto", dtype: str = "auto", hub_only: bool = False):
    """
    Load a pipeline, without log messages or progress bars.

    `model` is a folder, the name of bundled weights, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.

    Raises:
        `OSError`: If the model cannot be found or loaded, in one sentence.
        `ValueError`: If the machine has no such device.
    """
    from diffusers.utils import logging

    from ..pipeline_real_denoise import BUNDLED, RealDenoisePipeline

    chosen_device, chosen_dtype = choose_device(device, dtype)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = model
    if model and model not in BUNDLED and (hub_only or not Path(model).is_dir()):
        name, _, revision = model.partition("@")
        try:
            folder = RealDenoisePipeline.download(name, revision=revision or None)
        except Exception as error:  # of many classes, which all mean that there is no such model
            looked_up = "" if hub_only else f"there is no folder {model}. "
            raise OSError(f"{looked_up}{first_line(error)}") from error
    try:
        return RealDenoisePipeline.from_pretrained(folder, dtype=chosen_dtype).to(chosen_device)
    except Exception as error:
        raise OSError(f"cannot load the model {folder or 'that comes with gdd'}: {first_line(error)}") from error


def configure(pipe, steps: int | None = None, rule: str | None = None, tile_size: int | None = None):
    """Set the step rule and the tile size if given; a `ValueError` if these, or `steps`, are impossible."""
    max_steps = pipe.scheduler.config.num_train_timesteps
    if steps and steps > max_steps:
        raise ValueError(f"steps must be at most {max_steps} for this model, not {steps}.")
    if rule:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, step_rule=rule)
    if tile_size:
        pipe.enable_tiling(tile_size)


def show_progress(pipe, show):
    """Call `show(done, total)` after each batch of tiles, in place of the pipeline's own progress bar."""

    @contextmanager
    def progress_bar(total: int):
        done = 0

        def update(tiles: int):
            nonlocal done
            done += tiles
            show(done, total)

        yield SimpleNamespace(update=update)

    pipe.progress_bar = progress_bar


def denoise_pixels(pipe, images: list, **kwargs) -> list:
    """Denoise images [H, W, C], uint8 or uint16, to pixels of the same kind; `kwargs` are passed to the pipeline."""
    import numpy as np

    from ..image_processor import tensor_to_pixels

    results = []
    for pixels, result in zip(images, pipe(images, output_type="pt", **kwargs).images, strict=True):
        denoised = np.empty_like(pixels)
        for row in range(0, len(pixels), 256):  # converted in strips, to save the memory of more float images
            denoised[row : row + 256] = tensor_to_pixels(result[:, row : row + 256], pixels.dtype)
        results.append(denoised)
    return results


def simulate_pixels(pixels, preset: str, iso: float | None, seed: int):
    """
    Return what a camera would record of a clean image without noise and with it, both uint8 [H, W, 3 or 1].

    The noise of an image whose channels are equal is grey as well.

    Raises:
        `ValueError`: If the image has transparency or is too small.
    """
    import torch

    from ..data.camera_noise import CameraNoise
    from ..data.decoding import is_grey
    from ..image_processor import pixels_to_tensor, tensor_to_pixels

    channels = pixels.shape[-1]
    if channels not in (1, 3):
        raise ValueError("the simulated camera takes no transparency; save the image without its alpha channel.")
    if min(pixels.shape[:2]) < 11:
        raise ValueError("the simulated camera and the SSIM need at least 11 x 11 pixels.")
    generator = torch.Generator().manual_seed(seed)
    photograph = pixels_to_tensor(pixels[..., :1] if is_grey(pixels) else pixels)[None]
    clean, noisy = CameraNoise(preset)(photograph, generator=generator, iso=iso)
    return tuple(tensor_to_pixels(image[0].expand(channels, -1, -1)) for image in (clean, noisy))
