# Copyright 2026 The gdd-diffusers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance
# with the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""A clean photograph, and the noisy one that a camera would have recorded of the same scene."""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


# Ranges (low, high) from which each picture's parameters are drawn uniformly; "log" in the name: of the logarithm.
PRESETS = {
    # Small sensors: the SIDD line of Zamir et al. (CycleISP, CVPR 2020), shot variance 6.87e-4 to 0.0219 for ISO 100
    # to 3200, a plain ISP and little or no in-camera denoising.
    "phone": {
        "log_iso": (math.log(50), math.log(4000)),
        "log_shot_per_iso": (math.log(6.0e-6), math.log(7.9e-6)),
        "read_slope": (1.85, 1.85),
        "log_read_offset": (0.30 * math.log(10) - 0.46, 0.30 * math.log(10) + 0.46),
        "tail": (-0.05, 0.2),
        "row": (0.0, 0.15),
        "bits": (9.5, 12.0),
        "log_exposure": (math.log(0.08), math.log(1.3)),
        "contrast": (1.0, 1.5),
        "colour_matrix": (0.6, 1.0),
        "red_gain": (1.4, 2.4),
        "blue_gain": (1.3, 2.2),
        "malvar": (0.7, 1.0),
        "luma_denoise": (0.0, 0.2),
        "chroma_denoise": (0.0, 0.1),
        "sharpen": (0.0, 0.2),
        "log_zoom": (0.0, 0.0),
        "jpeg_share": (0.2, 0.2),
        "chroma_subsampling": (0.0, 3.0),
        "jpeg_quality": (85.0, 98.0),
    },
    # Large sensors: a full well of some 60,000 electrons at ISO 100, the shot-to-read relation of Brooks et al. (CVPR
    # 2019), and the JPEG file that the camera itself writes.
    "camera": {
        "log_iso": (math.log(3200), math.log(25600)),
        "log_shot_per_iso": (math.log(1.2e-7), math.log(2.4e-7)),
        "read_slope": (2.18, 2.18),
        "log_read_offset": (1.20 - 0.5, 1.20 + 0.5),
        "tail": (0.0, 0.2),
        "row": (0.2, 1.2),
        "bits": (12.0, 14.0),
        "log_exposure": (math.log(0.25), math.log(1.3)),
        "contrast": (1.0, 1.6),
        "colour_matrix": (0.0, 0.5),
        "red_gain": (1.2, 1.8),
        "blue_gain": (1.2, 1.9),
        "malvar": (0.8, 1.0),
        "luma_denoise": (0.3, 1.4),
        "chroma_denoise": (1.0, 2.0),
        "sharpen": (0.0, 0.3),
        "log_zoom": (0.1, 0.6),
        "jpeg_share": (1.0, 1.0),
        "chroma_subsampling": (1.0, 3.0),
        "jpeg_quality": (93.0, 99.0),
    },
}

SCALES = (1.0, 0.6, 0.2)

GAUSSIAN_SIGMA = (0.0, 55 / 255)
NOISE_FREE_SHARE = 0.05

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
RGB_TO_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])

# What a pixel of the Bayer mosaic lacks, from its 5x5 neighbourhood: the plain mean of the nearest pixels of the
# missing colour, and the correction by the local curvature of the present one (Malvar, He and Cutler, ICASSP 2004).
# Order: green at red or blue, the colour of the row's neighbours, of the column's, of the diagonal ones.
_CROSS = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]) / 4
_ROW = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]) / 2
_DIAGONAL = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]) / 4
_BILINEAR = torch.stack([_CROSS, _ROW, _ROW.T, _DIAGONAL])
_MALVAR_ROW = (
    torch.tensor([[0, 0, 1, 0, 0], [0, -2, 0, -2, 0], [-2, 8, 10, 8, -2], [0, -2, 0, -2, 0], [0, 0, 1, 0, 0]]) / 16
)
_MALVAR = torch.stack(
    [
        torch.tensor([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8,
        _MALVAR_ROW,
        _MALVAR_ROW.T,
        torch.tensor([[0, 0, -3, 0, 0], [0, 4, 0, 4, 0], [-3, 0, 12, 0, -3], [0, 4, 0, 4, 0], [0, 0, -3, 0, 0]]) / 16,
    ]
)


class CameraNoise:
    def __init__(self, preset="mixed"):
        if preset not in (*PRESETS, "mixed", "gaussian"):
            raise ValueError(f"preset must be one of phone, camera, mixed or gaussian, but is {preset!r}.")
        self.preset = preset

    @torch.no_grad()
    def __call__(self, clean, generator=None, iso=None):
        if clean.ndim != 4 or clean.shape[1] != 3 or min(clean.shape[2:]) < 8:
            raise ValueError(f"clean must be [B, 3, H, W] with H, W >= 8, but has the shape {list(clean.shape)}.")
        draw = _Draw(len(clean), generator, clean.device)
        clean = clean.float()
        if self.preset == "gaussian":
            sigma = draw.uniform(*GAUSSIAN_SIGMA)
            return _to_uint8_grid(clean), _to_uint8_grid(clean + sigma * draw.normal(clean.shape))
        names = list(PRESETS) if self.preset == "mixed" else [self.preset]
        kind = draw.integers(len(names))
        ranges = {
            key: torch.tensor([PRESETS[name][key] for name in names], device=clean.device)[kind.flatten()]
            for key in PRESETS[names[0]]
        }
        p = {key: draw.uniform(*value.view(-1, 2, 1, 1, 1).unbind(1)) for key, value in ranges.items()}
        if iso is not None:
            p["log_iso"] = torch.full_like(p["log_iso"], math.log(iso))

        raw, isp = unprocess(clean, p, draw)
        masks = bayer_masks(raw.shape[2:], draw)
        mosaic = (raw * masks).sum(1, keepdim=True)
        noisy_mosaic = expose(mosaic, p, draw)
        # Both go through one demosaicing and one colour path: what differs in the end is noise, and what a camera
        # does about noise, but not its interpolation of colours. So it is in real pairs, whose clean picture is the
        # mean of many finished photographs.
        clean, noisy = (develop(demosaic(m, masks, p["malvar"]), isp) for m in (mosaic, noisy_mosaic))

        noisy = denoise_in_camera(noisy, (noisy - clean).square().mean((1, 2, 3), keepdim=True).sqrt(), p)
        clean, noisy = zoom(clean, noisy, p, draw)
        clean, noisy = jpeg(_to_uint8_grid(clean), _to_uint8_grid(noisy), p, draw)
        if iso is None:
            noisy = torch.where(draw.uniform(0.0, 1.0) < NOISE_FREE_SHARE, clean, noisy)
        return clean, noisy


class _Draw:
    """One random number, or field of them, per picture of the batch, from one generator."""

    def __init__(self, batch_size, generator, device):
        self.batch_size, self.generator, self.device = batch_size, generator, device
        self.source = device if generator is None else generator.device

    def uniform(self, low, high):
        x = torch.rand(self.batch_size, 1, 1, 1, generator=self.generator, device=self.source).to(self.device)
        return low + (high - low) * x

    def integers(self, high):
        shape = (self.batch_size, 1, 1, 1)
        return torch.randint(high, shape, generator=self.generator, device=self.source).to(self.device)

    def normal(self, shape):
        return torch.randn(shape, generator=self.generator, device=self.source).to(self.device)

    def field(self, shape):
        return torch.rand(shape, generator=self.generator, device=self.source).to(self.device)


def _to_uint8_grid(x):
    return (x.clamp(0, 1) * 255).round() / 255


def _mix(matrix, x):
    return torch.einsum("...ij,...jhw->...ihw", matrix, x)


def srgb_decode(x):
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def srgb_encode(x):
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def s_curve(x, contrast):
    """x^c / (x^c + (1-x)^c): steeper than the identity in the middle for c > 1; its inverse is the curve of 1/c."""
    x = x.clamp(0, 1)
    rise = x**contrast
    return rise / (rise + (1 - x) ** contrast)


def unprocess(clean, p, draw):
    """Linear camera RGB, white level 1, as the sensor would have seen the scene, and what it takes to go back."""
    weights = torch.cat([draw.uniform(1e-3, 1.0) for _ in range(len(XYZ_TO_CAMERA))], 1).flatten(1)
    weights = weights / weights.sum(1, keepdim=True)
    rgb_to_camera = torch.einsum("bk,kij,jl->bil", weights, XYZ_TO_CAMERA.to(clean), SRGB_TO_XYZ.to(clean))
    rgb_to_camera = rgb_to_camera / rgb_to_camera.sum(2, keepdim=True)
    rgb_to_camera = torch.lerp(torch.eye(3).to(clean), rgb_to_camera, p["colour_matrix"].flatten(1)[..., None])
    gain = torch.cat([p["red_gain"], torch.ones_like(p["bits"]), p["blue_gain"]], 1)

    linear = srgb_decode(s_curve(clean, 1 / p["contrast"]))
    # An optical low-pass filter and the lens: without it the mosaic would alias far more than in real photographs.
    linear = _blur3(linear, draw.uniform(0.12, 0.25))
    linear = linear * p["log_exposure"].exp()
    camera = _mix(rgb_to_camera, linear).clamp(0, 1)
    # Highlights saturate all three colours of a sensor, whatever the white balance does (Brooks et al.).
    white = ((camera.mean(1, keepdim=True) - 0.9).clamp(min=0) / 0.1) ** 2
    raw = camera * torch.maximum(white + (1 - white) / gain, 1 / gain)
    return raw, (gain, torch.linalg.inv(rgb_to_camera), p["contrast"])


def develop(raw, isp):
    """White balance, colour matrix, sRGB gamma and tone curve: raw to a picture in [0, 1]."""
    gain, camera_to_rgb, contrast = isp
    return s_curve(srgb_encode(_mix(camera_to_rgb, (raw * gain).clamp(0, 1)).clamp(0, 1)), contrast)


def bayer_masks(size, draw):
    """[B, 3, H, W]: 1 where the sensor has a pixel of that colour; RGGB, shifted by 0 or 1 px either way."""
    row = (torch.arange(size[0], device=draw.device).view(1, 1, -1, 1) + draw.integers(2)) % 2
    column = (torch.arange(size[1], device=draw.device).view(1, 1, 1, -1) + draw.integers(2)) % 2
    return torch.cat([(1 - row) * (1 - column), (row + column) % 2, row * column], 1).float()


def expose(mosaic, p, draw):
    """Shot, read and row noise, quantisation and clipping at the black and white level."""
    shot = (p["log_iso"] + p["log_shot_per_iso"]).exp()
    read = (p["log_read_offset"] + p["read_slope"] * shot.log()).exp().sqrt()
    # Read noise has heavier tails than a Gaussian: a Tukey lambda distribution (Wei et al., CVPR 2020), scaled to unit
    # variance; lambda = 0.14 is nearly Gaussian.
    lam = torch.where(p["tail"].abs() < 1e-3, 1e-3, p["tail"])
    u = draw.field(mosaic.shape).clamp(1e-6, 1 - 1e-6)
    variance = 2 / lam**2 * (1 / (1 + 2 * lam) - (2 * torch.lgamma(lam + 1) - torch.lgamma(2 * lam + 2)).exp())
    tukey = (u**lam - (1 - u) ** lam) / lam / variance.sqrt()
    raw = mosaic + (shot * mosaic).sqrt() * draw.normal(mosaic.shape) + read * tukey
    raw = raw + p["row"] * read * draw.normal((*mosaic.shape[:3], 1))
    steps = 2 ** p["bits"]
    # Half of the cameras keep what lies below black (a pedestal of 1/16), the others clip at once.
    black = torch.where(draw.uniform(0.0, 1.0) < 0.5, -1 / 16, 0.0)
    return torch.maximum((raw * steps).round() / steps, black).clamp(max=1)


def demosaic(mosaic, masks, malvar):
    kernels = torch.cat([_BILINEAR, _MALVAR - _BILINEAR])[:, None].to(mosaic)
    plain, correction = F.conv2d(F.pad(mosaic, (2, 2, 2, 2), "reflect"), kernels).split(4, 1)
    cross, row, column, diagonal = (plain + malvar * correction).split(1, 1)
    red, green, blue = masks.split(1, 1)
    red_row = (red.sum(3, keepdim=True) > 0).float()
    side = red_row * row + (1 - red_row) * column
    return torch.cat(
        [
            red * mosaic + blue * diagonal + green * side,
            green * mosaic + (1 - green) * cross,
            blue * mosaic + red * diagonal + green * (row + column - side),
        ],
        1,
    )


def _blur3(x, weight):
    """[w, 1-2w, w] along both axes."""
    padded = F.pad(x, (1, 1, 1, 1), "replicate")
    x = (1 - 2 * weight) * padded[:, :, 1:-1] + weight * (padded[:, :, :-2] + padded[:, :, 2:])
    return (1 - 2 * weight) * x[..., 1:-1] + weight * (x[..., :-2] + x[..., 2:])


def _blur_with_holes(x, step):
    """The B3 spline [1, 4, 6, 4, 1] / 16 along both axes, its taps `step` pixels apart."""
    x = F.pad(x, (2 * step,) * 4, "replicate")
    for axis in (2, 3):
        length = x.shape[axis] - 4 * step
        tap = [x.narrow(axis, i * step, length) for i in range(5)]
        x = (tap[0] + tap[4] + 4 * (tap[1] + tap[3]) + 6 * tap[2]) / 16
    return x


def denoise_in_camera(noisy, sigma, p):
    """Wiener shrinkage of an a trous wavelet transform of luma and chroma, then sharpening."""
    ycbcr = _mix(RGB_TO_YCBCR.to(noisy), noisy)
    threshold = sigma * torch.cat([p["luma_denoise"], p["chroma_denoise"], p["chroma_denoise"]], 1)
    one = torch.ones_like(p["sharpen"])
    sharpen = torch.cat([1 + p["sharpen"], one, one], 1)
    out = 0
    for level, scale in enumerate(SCALES):
        smooth = _blur_with_holes(ycbcr, 2**level)
        detail = ycbcr - smooth
        energy = _blur_with_holes(detail.square(), 2 ** (level + 1))
        detail = detail * energy / (energy + (scale * threshold) ** 2 + 1e-12)
        out = out + (sharpen * detail if level == 0 else detail)
        ycbcr = smooth
    return _mix(torch.linalg.inv(RGB_TO_YCBCR).to(noisy), out + ycbcr).clamp(0, 1)


def zoom(clean, noisy, p, draw):
    """Resampling by a camera's lens correction, stabilisation or digital zoom: both enlarged about the centre."""
    scale = (-p["log_zoom"]).exp().flatten()
    todo = scale < 0.999
    if todo.any():
        theta = torch.zeros(int(todo.sum()), 2, 3, device=clean.device)
        theta[:, 0, 0] = theta[:, 1, 1] = scale[todo]
        both = torch.cat([clean[todo], noisy[todo]], 1)
        grid = F.affine_grid(theta, list(both.shape), align_corners=False)
        both = F.grid_sample(both, grid, "bicubic", "border", align_corners=False)
        clean, noisy = clean.clone(), noisy.clone()
        clean[todo], noisy[todo] = both.split(3, 1)
    return clean, noisy


def jpeg(clean, noisy, p, draw):
    """The file: 4:4:4, 4:2:2 or 4:2:0, its 8 x 8 blocks in any position.

    The clean picture gets the same chroma resolution (as the mean of many such files has it), but quality 100."""
    share, quality = draw.uniform(0.0, 1.0), p["jpeg_quality"].round().int()
    subsampling, top, left = p["chroma_subsampling"].int(), draw.integers(8), draw.integers(8)
    clean, noisy = clean.clone(), noisy.clone()
    for i in torch.nonzero((share < p["jpeg_share"]).flatten()).flatten().tolist():
        for x, q in ((clean, 100), (noisy, int(quality[i]))):
            x[i] = _through_jpeg(x[i], q, int(subsampling[i]), int(top[i]), int(left[i]))
    return clean, noisy


def _through_jpeg(x, quality, subsampling, top, left):
    pixels = (x * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    pixels = np.pad(pixels, ((top, 0), (left, 0), (0, 0)), "edge")
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return torch.from_numpy(np.array(Image.open(file))[top:, left:]).permute(2, 0, 1).to(x) / 255
