"""What a camera does to raw values until they are a file, and the way back from a file."""

import torch
import torch.nn.functional as F

from .cameras import power, select
from .jpeg import RGB_TO_YCBCR, YCBCR_TO_RGB, jpeg_round_trip, transform_channels


# XYZ to camera RGB of four cameras and linear sRGB to XYZ, as in Brooks et al. (CVPR 2019).
XYZ_TO_CAMERA = torch.tensor(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
SRGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# In-camera noise reduction is weaker at coarser scales: blotches of 4 to 8 px are what is left in real files.
DENOISE_AT_SCALE = (1.0, 0.6, 0.2)
# Four equally likely values in place of a standard normal variable: the middles of its quarters, scaled to variance 1
NORMAL_NODES = (-1.363, -0.378, 0.378, 1.363)


def colour_matrix(p, draw):
    """[B, 3, 3] from linear sRGB to the camera's own colours; rows sum to 1, so grey stays grey."""
    weights = torch.cat([draw.uniform(1e-3, 1) for _ in XYZ_TO_CAMERA], 1).flatten(1)
    matrix = torch.einsum("bk,kij,jl->bil", weights, XYZ_TO_CAMERA.to(weights), SRGB_TO_XYZ.to(weights))
    matrix = matrix / matrix.sum(2, keepdim=True)
    return torch.lerp(torch.eye(3).to(matrix), matrix, p["colour_matrix"].squeeze(1))


def unprocess(clean, p, gain, rgb_to_camera, low_pass):
    """From sRGB to raw values: the inverse of `develop` and of the white balance, after the lens and the exposure."""
    linear = srgb_decode(s_curve(clean, 1 / p["contrast"]))
    linear = blur(linear, low_pass) * p["exposure"]
    camera = transform_channels(rgb_to_camera, linear).clamp(0, 1)
    # In highlights all three colours reach white, whatever the white balance does (Brooks et al.).
    white = ((camera.mean(1, keepdim=True) - 0.9).clamp(min=0) / 0.1) ** 2
    return camera * torch.maximum(white + (1 - white) / gain, 1 / gain)


def develop(linear, contrast):
    return s_curve(srgb_encode(linear.clamp(0, 1)), contrast)


def mean_developed(linear, noisy, variance, contrast):
    """
    The mean of many developed files.

    `linear` is their mean before gamma and tone curve, `noisy` one of them, and `variance` that of the noise up to a
    factor: demosaicing averages noise, how much is measured in `noisy`.
    """
    factor = (noisy - linear).square().mean((2, 3), keepdim=True) / variance.mean((2, 3), keepdim=True)
    sigma = (variance * factor).sqrt_()
    return sum(develop(linear + z * sigma, contrast) for z in NORMAL_NODES) / len(NORMAL_NODES)


# Below the first number the curve of sRGB is a line; clamping takes half the time of `torch.where`.
def srgb_decode(x):
    curve = power((x.clamp(min=0.04045) + 0.055).div_(1.055), 2.4)
    return curve.add_(x.clamp(max=0.04045) - 0.04045, alpha=1 / 12.92)


def srgb_encode(x):
    curve = power(x.clamp(min=0.0031308), 1 / 2.4).mul_(1.055).sub_(0.055)
    return curve.add_(x.clamp(max=0.0031308).sub_(0.0031308), alpha=12.92)


def s_curve(x, contrast):
    """x^c / (x^c + (1 - x)^c), a tone curve whose inverse is the curve of 1/c; c = 1.5 is much like a smoothstep."""
    return torch.logit(x, 1e-30).mul_(contrast).sigmoid_()


def blur(x, weight):
    """[w, 1 - 2w, w] along both axes."""
    x = F.pad(x, (1, 1, 1, 1), "replicate")
    x = (1 - 2 * weight) * x[:, :, 1:-1] + weight * (x[:, :, :-2] + x[:, :, 2:])
    return (1 - 2 * weight) * x[..., 1:-1] + weight * (x[..., :-2] + x[..., 2:])


def spline_blur(x, step):
    """[1, 4, 6, 4, 1] / 16 along both axes, its taps `step` pixels apart; on a CPU faster than `conv2d`."""
    x = F.pad(x, (2 * step,) * 4, "replicate")
    for axis in (2, 3):
        length = x.shape[axis] - 4 * step
        tap = [x.narrow(axis, i * step, length) for i in range(5)]
        x = (tap[0] + tap[4]).add_(tap[1] + tap[3], alpha=4).add_(tap[2], alpha=6)
    return x.div_(16 * 16)


def zoom(x, factor):
    """Enlarge each image about its centre by its own factor; below 1, its surroundings are its mirror image."""
    changed = factor.flatten() != 1
    if not changed.any():
        return x
    row, column = (torch.arange(1, 2 * n, 2, device=x.device) / n - 1 for n in x.shape[2:])  # centres, in [-1, 1]
    grid = torch.stack(torch.meshgrid(column, row, indexing="xy"), 2) / factor[changed]
    grid = 2 * grid.clamp(-1, 1) - grid  # the mirror; that of `grid_sample` takes twice as long
    zoomed = x.clone()
    zoomed[changed] = F.grid_sample(select(x, changed), grid, "bicubic", "border", align_corners=False).clamp_(0, 1)
    return zoomed


def denoise_and_sharpen(pairs, p):
    """
    Shrink an à trous wavelet transform of luma and chroma as Wiener filters do, and amplify its finest scale.

    `pairs` is [2, B, 3, H, W], clean images first. Both are multiplied by the same gains, as in the mean of many such
    files.
    """
    # A camera knows its noise by calibration, so here it is given the true standard deviation.
    clean, noisy = pairs
    sigma = (noisy - clean).square_().mean((1, 2, 3), keepdim=True).sqrt()
    strength = sigma * torch.cat([p["luma_denoise"], p["chroma_denoise"], p["chroma_denoise"]], 1)
    smooth = transform_channels(RGB_TO_YCBCR, pairs)
    result = smooth.clone()
    for level, scale in enumerate(DENOISE_AT_SCALE):
        finer, smooth = smooth, spline_blur(smooth.flatten(0, 1), 2**level).unflatten(0, (2, -1))
        detail = finer - smooth
        # The energy around a pixel: shrinking each coefficient by its own would leave specks.
        energy = spline_blur(detail[1].square(), 2 ** (level + 1))
        gain = energy.div_(energy + ((scale * strength) ** 2 + 1e-12))
        if level == 0:
            gain[:, :1] *= 1 + p["sharpen"]
        result.addcmul_(detail, gain.sub_(1))
    return transform_channels(YCBCR_TO_RGB, result).clamp_(0, 1)


def save_as_jpeg(clean, noisy, p, draw):
    """Compress the noisy image; the clean one shares the resolution of its colours, but is not quantised."""
    subsampling = torch.where(draw.share(p["jpeg_share"]), p["chroma_subsampling"].int(), -1).flatten()
    # A crop may begin anywhere within a block of 16 px.
    offset = tuple(draw.integer(16)[0].item() for _ in range(2))
    quality = p["jpeg_quality"].flatten().round()
    for kind in range(3):
        group = subsampling == kind
        if group.any():
            clean[group] = jpeg_round_trip(select(clean, group), None, kind, offset)
            noisy[group] = jpeg_round_trip(select(noisy, group), quality[group], kind, offset)
    return clean, noisy
