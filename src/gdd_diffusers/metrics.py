"""
PSNR and the two SSIMs of the denoising literature, and both where an image has most texture.

All of them take two batches of the same shape `[B, C, H, W]`, float in [0, 1] (a `ValueError` otherwise), on any
device. Images are clipped and rounded to 8 bits first, as a file would be, and each gives one value: a tensor of shape
`[B]`, NaN where an image holds a NaN. The score of a test set is the mean of the values of its images.

```py
>>> import torch
>>> from gdd_diffusers.metrics import psnr, ssim

>>> clean = torch.full((1, 3, 16, 16), 0.2)
>>> psnr(clean, clean + 10 / 255)  # 20 log10(255 / 10)
tensor([28.1308], dtype=torch.float64)
>>> ssim(clean, clean)
tensor([1.], dtype=torch.float64)

```
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F


C1, C2 = 0.01**2, 0.03**2  # of Wang et al. 2004, for a data range of 1
RADIUS = 5  # its Gaussian window of 11 x 11 pixels, sigma 1.5
WINDOW_SIZE = 2 * RADIUS + 1
WINDOW = [math.exp(-(distance**2) / (2 * 1.5**2)) for distance in range(-RADIUS, RADIUS + 1)]
WINDOW = [weight / sum(WINDOW) for weight in WINDOW]
BLOCK = 24  # side of the blocks in which texture is measured


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio, 10 log10(255² / MSE) over all channels, in dB; `inf` for equal images."""
    a, b = _to_8_bits(a, b)
    return -10 * (a - b).square().mean(dim=(1, 2, 3)).log10()


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """
    Return the structural similarity ([Wang et al. 2004](https://doi.org/10.1109/TIP.2003.819861)), 1 for equal images.

    The variant of most Python code: each channel on its own, only where the whole window of 11 x 11 pixels fits
    (`ValueError` if it fits nowhere). It equals `structural_similarity` of scikit-image with `gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1`. On SIDD it is about 0.04 lower than [`ssim_matlab`].
    """
    if min(a.shape[-2:]) < WINDOW_SIZE:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, not {a.shape[-1]} x {a.shape[-2]}.")
    return _ssim(a, b, _blur)


def ssim_matlab(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """
    Return the structural similarity that MATLAB's `ssim` computes for an H x W x 3 array, as SIDD papers report it.

    The image is treated as a volume: the Gaussian window is 11 x 11 x 11, so it reaches across the channels, and
    borders are replicated in all three directions. For grey images the third direction changes nothing.
    """
    return _ssim(a, b, _blur_volume)


def psnr_fitted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """
    Return the PSNR of `gain * a + offset`, with the gain and the offset of each image that come closest to `b`.

    For pairs whose exposures differ, as in microscopy, where brightness is relative.
    """
    x, y = (image.flatten(1) for image in _to_double(a, b))
    dx, dy = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    gain = (dx * dy).sum(1, keepdim=True) / dx.square().sum(1, keepdim=True).clamp(min=1e-12)
    return psnr((y - dy + gain * dx).view_as(a), y.view_as(b))


def psnr_texture(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """
    Return the PSNR over the tenth of blocks of 24 x 24 pixels in which `b`, the ground truth, has most texture.

    Those are the blocks whose neighbouring pixels differ most, on average over the block. Denoisers that smooth
    texture away lose there what they win in even areas. An image needs at least one block (`ValueError` otherwise).
    """
    images = ([x.transpose(0, 1).flatten(1, 2)[None] for x in pair] for pair in _textured_blocks(a, b))
    return torch.cat([psnr(*pair) for pair in images])


def ssim_texture(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean of [`ssim`] over the blocks that [`psnr_texture`] takes."""
    return torch.stack([ssim(*pair).mean() for pair in _textured_blocks(a, b)])


def _textured_blocks(a: torch.Tensor, b: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Yield the tenth of the blocks of each image in which `b` has most texture, of both: `[N, C, BLOCK, BLOCK]`."""
    a, b = _to_double(a, b)
    if min(b.shape[-2:]) < BLOCK:
        raise ValueError(f"Texture needs images of at least 24 x 24 pixels, not {b.shape[-1]} x {b.shape[-2]}.")
    for pair in zip(a, b, strict=True):
        blocks = [x.unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK).flatten(1, 2).transpose(0, 1) for x in pair]
        grey = blocks[1].mean(1)
        texture = grey.diff(dim=1).abs().mean((1, 2)) + grey.diff(dim=2).abs().mean((1, 2))
        chosen = texture.topk(max(1, len(texture) // 10)).indices
        yield [x[chosen] for x in blocks]


def _to_double(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"Pass two batches [B, C, H, W] of one shape, not {list(a.shape)} and {list(b.shape)}.")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"Pass images as float in [0, 1], not {a.dtype} and {b.dtype}.")
    # because variances are small differences of large numbers; Apple's devices have no double
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    return a.to(dtype), b.to(dtype)


def _to_8_bits(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = ((x.clamp(0, 1) * 255).round() / 255 for x in _to_double(a, b))
    return a, b


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Apply the Gaussian window over height and width where it fits."""
    # shifted sums, because a convolution in double is ten times slower on CPUs
    for dim in (-2, -1):
        size = x.shape[dim] - 2 * RADIUS
        blurred = WINDOW[0] * x.narrow(dim, 0, size)
        for shift, weight in enumerate(WINDOW[1:], start=1):
            blurred.add_(x.narrow(dim, shift, size), alpha=weight)
        x = blurred
    return x


def _blur_volume(x: torch.Tensor) -> torch.Tensor:
    """Apply the Gaussian window over height, width and channels, with borders replicated."""
    channels = x.shape[1]
    x = _blur(F.pad(x, (RADIUS,) * 4, mode="replicate"))
    # the third direction as a matrix: how much of channel j (repeated beyond the border) goes into channel i
    offsets = torch.arange(-RADIUS, RADIUS + 1)
    j = (torch.arange(channels)[:, None] + offsets).clamp(0, channels - 1).to(x.device)
    across = x.new_zeros(channels, channels).scatter_add(1, j, x.new_tensor(WINDOW).expand(channels, -1))
    return torch.einsum("ij, bjhw -> bihw", across, x)


def _ssim(a: torch.Tensor, b: torch.Tensor, blur: Callable) -> torch.Tensor:
    """Compute equation 13 of Wang et al. with the moments that `blur` gives, averaged over the image."""
    a, b = _to_8_bits(a, b)
    mu_a, mu_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2, blur(a * b) - mu_a * mu_b
    similarity = (2 * mu_a * mu_b + C1) * (2 * cov + C2) / ((mu_a**2 + mu_b**2 + C1) * (var_a + var_b + C2))
    return similarity.mean(dim=(1, 2, 3))
