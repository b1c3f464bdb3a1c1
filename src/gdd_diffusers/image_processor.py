"""Images of any kind to tensors and back."""

import numpy as np
import torch


def pixels_to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """
    Converts an image to the layout and range of torch.

    Args:
        pixels (`np.ndarray` of shape `[..., H, W, C]`): uint8, uint16, or float in [0, 1].

    Returns:
        `torch.Tensor` of shape `[..., C, H, W]`: float32 in [0, 1].

    Example:
        ```py
        >>> import numpy as np
        >>> from gdd_diffusers.image_processor import pixels_to_tensor

        >>> pixels_to_tensor(np.full((2, 3, 1), 255, np.uint8)).shape
        torch.Size([1, 2, 3])

        ```
    """
    white = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    return torch.from_numpy(np.ascontiguousarray(pixels / np.float32(white), np.float32)).movedim(-1, -3)


def tensor_to_pixels(image: torch.Tensor, dtype: type = np.uint8) -> np.ndarray:
    """
    Converts a tensor to an image of integers, clipped and rounded.

    Args:
        image (`torch.Tensor` of shape `[..., C, H, W]`): float in [0, 1].
        dtype (`type`, defaults to `np.uint8`): `np.uint8` or `np.uint16`.

    Returns:
        `np.ndarray` of shape `[..., H, W, C]`.

    Example:
        ```py
        >>> import torch
        >>> from gdd_diffusers.image_processor import tensor_to_pixels

        >>> tensor_to_pixels(torch.ones(1, 2, 3)).max()
        np.uint8(255)

        ```
    """
    array = image.detach().float().clamp(0, 1).movedim(-3, -1).cpu().numpy()
    return np.rint(array * np.iinfo(dtype).max).astype(dtype)
