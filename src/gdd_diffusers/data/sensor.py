"""A camera's sensor: noise, clipping, and the mosaic of its colour filters."""

import math

import torch
import torch.nn.functional as F


def expose(light, p, draw):
    """
    Record raw values as the cameras `p` do.

    Returns the ground truth and the noisy recording. The first is the mean of many recordings, each of them clipped,
    or the light itself, as an exposure at low ISO sees it.
    """
    noisy = add_noise(light, p, draw)
    return torch.where(p["mean_of_raw"], mean_recorded(light, p), light), noisy


def add_noise(raw, p, draw):
    steps = 2 ** p["bits"]
    read = p["read"].sqrt()
    noisy = raw + (p["shot"] * raw).sqrt_().mul_(draw.normal(raw.shape))
    # Read noise has heavier tails than a Gaussian, and each row has its own offset (Wei et al., "A physics-based noise
    # formation model for extreme low-light raw denoising", CVPR 2020).
    noisy.addcmul_(read, draw.tukey(raw.shape, p["tail"]))
    noisy.addcmul_(read * p["row"], draw.normal((len(raw), 1, raw.shape[2], 1)))
    return torch.maximum(noisy.mul_(steps).round_().div_(steps), p["black"]).clamp_(max=1)


def mean_recorded(raw, p):
    """
    The mean of `add_noise`, all noise taken for Gaussian. Of a normal variable with mean x and standard deviation s
    the mean of max(x, 0) is x Phi(x / s) + s phi(x / s).
    """
    sigma = (p["shot"] * raw).addcmul_(p["read"], 1 + p["row"].square()).sqrt_()

    def mean_above(limit):
        x = raw - limit
        z = x / sigma
        density = z.square().mul_(-0.5).exp_()
        return torch.special.ndtr(z).mul_(x).addcmul_(sigma, density, value=1 / math.sqrt(2 * math.pi))

    return mean_above(p["black"]).sub_(mean_above(1)).add_(p["black"]).clamp_(max=1)


def bayer_masks(size, draw):
    """[B, 3, H, W]: 1 where a pixel sees that colour; RGGB, shifted by 0 or 1 px each way."""
    row = (torch.arange(size[0], device=draw.device).view(1, 1, -1, 1) + draw.integer(2)) % 2.0
    column = (torch.arange(size[1], device=draw.device).view(1, 1, 1, -1) + draw.integer(2)) % 2.0
    red, blue = (1 - row) * (1 - column), row * column
    return torch.cat([red, 1 - red - blue, blue], 1)


def demosaic(mosaic, masks, malvar):
    """
    Fill in the colours that each pixel lacks from its 5x5 neighbourhood: the mean of the nearest pixels of that
    colour, and `malvar` times a correction by the curvature of the colour that is there (Malvar, He and Cutler,
    "High-quality linear interpolation for demosaicing", ICASSP 2004).
    """
    # Mirrored without repeating the border, a mosaic continues as a mosaic.
    padded = F.pad(mosaic, (2, 2, 2, 2), "reflect")
    height, width = mosaic.shape[2:]

    def sum_of(*offsets):
        return sum(padded[:, :, 2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width] for dy, dx in offsets)

    beside, above = sum_of((0, -1), (0, 1)), sum_of((-1, 0), (1, 0))
    beside_2, above_2 = sum_of((0, -2), (0, 2)), sum_of((-2, 0), (2, 0))
    corners = sum_of((-1, -1), (-1, 1), (1, -1), (1, 1))
    nearest, next_nearest, share = beside + above, beside_2 + above_2, malvar / 16
    curvature = (4 * mosaic - next_nearest).mul_(share)
    cross = (nearest / 4).add_(curvature, alpha=2)
    diagonal = (corners / 4).add_(curvature, alpha=3)
    row = (beside / 2).addcmul_(share, 10 * mosaic - 2 * (beside_2 + corners) + above_2)
    column = (above / 2).addcmul_(share, 10 * mosaic - 2 * (above_2 + corners) + beside_2)

    red, green, blue = masks.split(1, 1)
    # A green pixel has its red neighbours beside it in rows that have red pixels, else above and below.
    has_red = red.amax(3, keepdim=True) > 0
    red_at_green = torch.where(has_red, row, column)
    blue_at_green = torch.where(has_red, column, row)
    return torch.cat(
        [
            (red * mosaic).addcmul_(green, red_at_green).addcmul_(blue, diagonal),
            torch.lerp(cross, mosaic, green),
            (blue * mosaic).addcmul_(green, blue_at_green).addcmul_(red, diagonal),
        ],
        1,
    )
