"""Convert images of any kind to tensors and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import PipelineImageInput
from PIL import Image


# PIL modes that an image can come back in, and the modes that are not converted to RGB
PIL_MODES = ("L", "LA", "RGB", "RGBA")
PIL_CONVERSIONS = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}


def pixels_to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Convert `[..., H, W, C]`, uint8, uint16 or float in [0, 1], to float32 `[..., C, H, W]` in [0, 1]."""
    white = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    return torch.from_numpy(np.ascontiguousarray(pixels / np.float32(white), np.float32)).movedim(-1, -3)


def tensor_to_pixels(image: torch.Tensor, dtype: type = np.uint8) -> np.ndarray:
    """Convert float `[..., C, H, W]` in [0, 1] to uint8 or uint16 `[..., H, W, C]`, clipped and rounded."""
    scaled = image.detach().float().clamp(0, 1).mul_(np.iinfo(dtype).max).round_()
    return scaled.movedim(-3, -1).cpu().numpy().astype(dtype, order="C")


def preprocess(image: PipelineImageInput) -> list[torch.Tensor]:
    """
    Convert images of any kind to a list of `[C, H, W]` tensors on the CPU, C from 1 to 4, each in its own precision.

    Raises:
        `ValueError`: If something is not an image, or has values that an image cannot have.
    """
    if isinstance(image, list | tuple):
        if len(image) == 0:
            raise ValueError("`image` is an empty list; pass at least one image.")
        return [tensor for item in image for tensor in preprocess(item)]
    if isinstance(image, Image.Image):
        image = pil_to_numpy(image)
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(f"`image` must be PIL, numpy or torch images, or a list of these, not {type(image)}.")
    if image.ndim not in (2, 3, 4):
        raise ValueError(f"An image must have 2 to 4 dimensions, not {image.ndim}: shape {tuple(image.shape)}.")

    if isinstance(image, np.ndarray):
        dtype = image.dtype.newbyteorder("=")
        if dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
            raise ValueError(f"A numpy image must be uint8, uint16 or float in [0, 1], not {dtype}.")
        # torch cannot share memory that is read-only, reversed or big-endian: that is copied
        array = torch.from_numpy(np.require(image, dtype, ["C", "W"]))
        tensor = array[None] if array.ndim == 2 else array.movedim(-1, -3)
    else:
        if not image.is_floating_point() and image.dtype not in (torch.uint8, torch.uint16):
            raise ValueError(f"A torch image must be float in [0, 1], uint8 or uint16, not {image.dtype}.")
        tensor = image.detach().cpu()
        tensor = tensor[None] if tensor.ndim == 2 else tensor

    if tensor.numel() == 0:
        raise ValueError(f"`image` has no pixels: shape {tuple(image.shape)}.")
    if not 1 <= tensor.shape[-3] <= 4:
        raise ValueError(
            f"An image must have 1 to 4 channels (last in numpy, before the sides in torch), not {tensor.shape[-3]}: "
            f"shape {tuple(image.shape)}."
        )
    if tensor.is_floating_point():
        low, high = (float(value) for value in torch.aminmax(tensor))  # NaN if any pixel is
        if not np.isfinite([low, high]).all():
            raise ValueError("`image` has NaN or infinite pixels.")
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"Float images must be in [0, 1]; `image` is in [{low:g}, {high:g}].")
    return list(tensor) if tensor.ndim == 4 else [tensor]


def pil_to_numpy(image: Image.Image) -> np.ndarray:
    """Convert a PIL image in any mode to `[H, W]` or `[H, W, C]`: grey or RGB, with alpha if it has transparency."""
    if image.mode.startswith("I"):  # PIL keeps 16 bits in modes of 16 and of 32 bits
        pixels = np.asarray(image)
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 65535:
            raise ValueError(f"An image of mode {image.mode!r} must have values from 0 to 65535.")
        pixels = pixels.astype(np.uint16)
    elif image.mode in ("F", *PIL_MODES):
        pixels = np.asarray(image)
    else:
        transparent = image.mode == "P" and "transparency" in image.info
        pixels = np.asarray(image.convert(PIL_CONVERSIONS.get(image.mode, "RGBA" if transparent else "RGB")))

    # Without an alpha channel, `transparency` is the one colour that is transparent. PIL's own conversion misses it
    # in images of 16 bits; of those in colour it keeps the upper 8 bits of the pixels, but all 16 of this colour.
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I"):
        colours = np.atleast_3d(pixels)
        key = np.atleast_1d(image.info.get("transparency", ()))
        if np.issubdtype(key.dtype, np.integer) and key.shape == colours.shape[2:]:
            key = key >> 8 if pixels.dtype == np.uint8 and key.max() > 255 else key
            opaque = (colours != key).any(-1, keepdims=True)
            return np.concatenate([colours, opaque * pixels.dtype.type(np.iinfo(pixels.dtype).max)], -1)
    return pixels


def prepare_latents(
    images: list[torch.Tensor], channels: int, size: tuple[int, int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """
    Make x_T of images of equal size: `[B, channels, *size]` in [-1, 1], padded below and right by reflection.

    Raises:
        `ValueError`: If an image has colours and the network has not.
    """
    height, width = images[0].shape[-2:]
    shape = len(images), channels, *size
    latents = torch.empty(shape, device=device, memory_format=torch.channels_last)  # as the network wants it
    for latent, image in zip(latents, images, strict=True):
        colours = image[: num_colours(image)]
        if channels < len(colours):
            raise ValueError("This network denoises grey images only, but `image` is in colour.")
        # grey is broadcast to the network's channels; 8 bits travel to a GPU as 8 bits
        latent[:, :height, :width] = colours.to(device)
        latent.mul_(2 / white(image)).sub_(1).clamp_(-1, 1)
    latents[:, :, :height, width:] = latents[:, :, :height, mirrored(width, size[1], device)]
    latents[:, :, height:] = latents[:, :, mirrored(height, size[0], device)]
    return latents


def mirrored(size: int, padded_size: int, device: torch.device | str) -> torch.Tensor:
    """Return the places along a side that continue it from `size` to `padded_size` pixels, back and forth."""
    place = torch.arange(size, padded_size, device=device) % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)


def read_latents(callback_outputs: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents that a callback has returned, if any."""
    if callback_outputs is None:
        return latents
    new = callback_outputs.get("latents", latents) if isinstance(callback_outputs, dict) else None
    if not isinstance(new, torch.Tensor) or new.shape != latents.shape:
        raise ValueError(f"`callback_on_step_end` must return `None` or `latents` of shape {tuple(latents.shape)}.")
    return new.to(latents.device, torch.float32)


def postprocess(latent: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """
    Convert the end of the walk, which is overwritten, to `[C, H, W]` in [0, 1] on the CPU, with the channels of
    `image`.
    """
    denoised = latent.add_(1).mul_(0.5).clamp_(0, 1)
    if num_colours(image) < len(denoised):
        denoised = denoised.mean(0, keepdim=True)
    denoised = denoised.cpu()
    alpha = image[num_colours(image) :]
    return torch.cat([denoised, alpha.float() / white(image)]) if len(alpha) else denoised


def to_output_type(outputs: list[torch.Tensor], images: list[torch.Tensor], source: Any, output_type: str):
    """Convert results `[C, H, W]` to `output_type`; `images` are what [`preprocess`] made of `source`."""
    if output_type == "np":
        return _stack([output.movedim(0, -1).numpy() for output in outputs], np.stack)
    if output_type != "pil":
        return _stack(outputs, torch.stack)
    results = [_to_pil(output, image) for output, image in zip(outputs, images, strict=True)]
    sources = source if isinstance(source, list | tuple) else [source]
    if all(isinstance(item, Image.Image) for item in sources):
        for item, result in zip(sources, results, strict=True):
            kept = ["exif", "dpi"]
            if item.mode not in ("CMYK", "YCbCr", "LAB", "HSV"):  # whose profile does not describe RGB
                kept.append("icc_profile")
            result.info |= {key: item.info[key] for key in kept if key in item.info}
    return results


def num_colours(image: torch.Tensor) -> int:
    """Return 1 for grey, with alpha or without, and 3 for RGB."""
    return 1 if len(image) < 3 else 3


def white(image: torch.Tensor) -> float:
    """Return the value of white in the image's precision."""
    return 1.0 if image.is_floating_point() else float(torch.iinfo(image.dtype).max)


def _to_pil(output: torch.Tensor, image: torch.Tensor) -> Image.Image:
    # 16 bits where PIL has a mode for it, which is grey without alpha
    pixels = tensor_to_pixels(output, np.uint16 if image.dtype == torch.uint16 and len(output) == 1 else np.uint8)
    return Image.fromarray(pixels[..., 0] if len(output) == 1 else pixels)


def _stack(results: Sequence, function):
    """Stack results of one shape; a single one is not copied, and those of several shapes stay a list."""
    if len(results) == 1:
        return results[0][None]
    return function(results) if len({result.shape for result in results}) == 1 else results
