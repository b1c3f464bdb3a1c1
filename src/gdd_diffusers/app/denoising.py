"""
What the `gdd` command and its page do alike: find a model, load it, put it to work on the pixels of a file.

Heavy imports wait until they are needed, so that `gdd --help` answers at once.
"""

from pathlib import Path


def one_line(error: BaseException) -> str:
    """An error as one sentence; libraries put whole pages into their messages, of which the first line says what."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def choose_device(device: str = "auto", dtype: str = "auto"):
    """
    The device and dtype to compute with; `auto` is the fastest that leaves the result as it is in float32.

    Raises:
        `ValueError`: When the machine has no such device.

    Example:
        ```py
        >>> from gdd_diffusers.app.denoising import choose_device

        >>> choose_device("cpu", "float32")
        (device(type='cpu'), torch.float32)

        ```
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_there in available.items() if is_there)
    elif not available[device]:
        raise ValueError(f"this machine has no {device} device; try --device auto.")
    if dtype == "auto":
        # where bfloat16 is only emulated it is slower than float32, and on mps it has not been measured
        fast = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: torch.cpu.get_capabilities().get("avx512_bf16", False),
            "mps": lambda: False,
        }
        dtype = "bfloat16" if fast[device]() else "float32"
    return torch.device(device), getattr(torch, dtype)


def find_model(model: str | None) -> Path:
    """
    The folder of a model: given as such, as `ORG/NAME` or `ORG/NAME@REVISION` on the Hub, or the bundled one.

    Raises:
        `OSError`: When there is neither such a folder nor such a model on the Hub, in one sentence.
    """
    from ..pipeline_real_denoise import BUNDLED, RealDenoisePipeline

    if model is None:
        return BUNDLED
    if Path(model).is_dir():
        return Path(model)
    name, _, revision = model.partition("@")
    try:
        return Path(RealDenoisePipeline.download(name, revision=revision or None))
    except Exception as error:  # the Hub client has many classes of errors, and all mean that there is no model
        raise OSError(
            f"there is no folder {model}, and no model of that name came from the Hub: {one_line(error)}"
        ) from error


def load_pipeline(folder: Path, **kwargs):
    """
    Load a model without a word on the way.

    Raises:
        `OSError`: When that fails, in one sentence.
    """
    from diffusers.utils import logging

    from ..pipeline_real_denoise import RealDenoisePipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return RealDenoisePipeline.from_pretrained(folder, **kwargs)
    except Exception as error:  # a folder can be wrong in many ways, and diffusers has a class of errors for most
        raise OSError(f"cannot load the model in {folder}: {one_line(error)}") from error


def set_up(pipe, steps: int | None, rule: str | None, tile_size: int | None):
    """
    Change the step rule and the size of the tiles, where they are given.

    Raises:
        `ValueError`: When the model cannot take so many `steps`, or tiles so small.
    """
    largest = pipe.scheduler.config.num_train_timesteps
    if steps and steps > largest:
        raise ValueError(f"steps must be at most {largest} for this model, not {steps}.")
    if rule:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, step_rule=rule)
    if tile_size:
        pipe.enable_tiling(tile_size)


def denoise_pixels(pipe, pixels, **kwargs):
    """Integer pixels [H, W, C] in, the same kind out; rounded in rows, so that no third float picture is made."""
    import numpy as np

    result = pipe(pixels, output_type="np", **kwargs).images[0]
    white = np.iinfo(pixels.dtype).max
    denoised = np.empty_like(pixels)
    for row in range(0, len(result), 256):
        denoised[row : row + 256] = np.rint(result[row : row + 256] * white)
    return denoised


def simulate_pixels(pixels, preset: str, iso: float | None, seed: int):
    """
    A picture as a camera would have recorded it: without noise and with it, both uint8 [H, W, 3].

    Raises:
        `ValueError`: When the simulated camera cannot take the picture.
    """
    import numpy as np
    import torch

    from ..data.camera_noise import CameraNoise

    if pixels.shape[-1] != 3:
        raise ValueError("the simulated camera takes colour pictures only, without transparency.")
    if min(pixels.shape[:2]) < 11:
        raise ValueError("the simulated camera and the SSIM need at least 11 x 11 pixels.")
    scene = torch.from_numpy(pixels / np.float32(np.iinfo(pixels.dtype).max)).movedim(-1, 0)[None]
    pair = CameraNoise(preset)(scene, generator=torch.Generator().manual_seed(seed), iso=iso)
    recorded, noisy = ((picture[0].movedim(0, -1).numpy() * 255).round().astype(np.uint8) for picture in pair)
    return recorded, noisy
