"""Simulate the noise of real photographs.

A photograph is taken back to what a sensor saw (Brooks et al., "Unprocessing images for learned raw denoising", CVPR
2019), gets a sensor's noise, and is developed again as cameras do it: demosaicing, white balance, colour matrix,
gamma, tone curve, noise reduction, sharpening, resizing, JPEG. Those later stages correlate real noise over pixels and
colours, which denoisers trained on white noise fail on.
"""

import math

import torch

from . import development, sensor
from .cameras import PRESETS, Draw, power, select
from .jpeg import RGB_TO_YCBCR, transform_channels


NOISE_FREE_SHARE = 0.05
MONOCHROME_SHARE = (
    0.5  # of the cameras' grey images: sensors without a mosaic; the others are colour files turned grey
)
# Of "mixed": images of half the sensor's resolution, which are as sharp as pixels can be. Trained without them, a
# denoiser takes detail finer than what demosaicing leaves for noise.
BINNED_SHARE = 0.35
# Of "mixed": files saved again as JPEG, by an editor, a messenger or a website. Compression leaves little of fine
# noise and turns the rest into grain, which a denoiser trained without it takes for texture.
RESAVED_SHARE = 0.4
RESAVED_QUALITY = (60, 95)
# Of "mixed": photographs as they are, without noise or with white noise: scans, renderings, and what needs no
# denoising.
AS_IS_SHARE = 0.24
AS_IS_NOISE_FREE_SHARE = 0.25
GAUSSIAN_SIGMA = (0.0, 55 / 255)
GAUSSIAN_GREY_SHARE = 0.2
# Of "mixed": grey images with speckle, as in ultrasound, radar and optical coherence tomography. A power of the
# intensity is shown: 1/2 is the amplitude, near 0 it is much like the logarithm.
SPECKLE_SHARE = 0.03
SPECKLE_POWER = (0.03, 0.4)
SPECKLE_BLUR = (0.0, 0.25)
SPECKLE_WHITE_SIGMA = (0.0, 20 / 255)


class CameraNoise:
    r"""
    Simulate a camera: turn clean photographs into the (clean, noisy) pairs that it would have recorded.

    The noise of a raw value \(x\) has the variance \(\mathrm{shot}\,x + \mathrm{read}\); every image of a batch draws
    its own camera, light and settings, such that the statistics printed by `examples/noise_statistics.py` are those of
    real photographs.

    The clean image went through the same lens, mosaic, colours and processing as the noisy one, so that a denoiser
    learns to remove noise and nothing else. As in real pairs it is the mean of many raw files, each clipped at black,
    which is mostly brighter than a noisy one, or the mean of many developed files, or one exposure at low ISO.

    Args:
        preset (`str`, defaults to `"mixed"`):
            - `"phone"`: small sensor, about 14 to 36 dB PSNR, hardly processed; 6% of the images are grey.
            - `"camera"`: large sensor at high ISO, mostly 30 to 42 dB, in-camera JPEG; 6% grey.
            - `"gaussian"`: white noise in sRGB of a standard deviation from 0 to 55/255; 20% grey.
            - `"mixed"`: 73% phones and cameras, a third of them binned to half the sensor's resolution, two in five
              saved again as JPEG; 18% `"gaussian"`, 6% without noise, and 3% grey with speckle.

            In grey images all three channels are equal, noise included. Photographs of one channel are always grey.

    Raises:
        ValueError: If there is no such preset.

    Example:

    ```py
    >>> import torch
    >>> from gdd_diffusers.data.camera_noise import CameraNoise
    >>> photographs = torch.rand(4, 3, 96, 96)
    >>> clean, noisy = CameraNoise("phone")(photographs, torch.Generator().manual_seed(0), iso=1600)
    >>> clean.shape == noisy.shape == photographs.shape
    True

    ```
    """

    def __init__(self, preset: str = "mixed"):
        if preset not in (*PRESETS, "mixed", "gaussian"):
            raise ValueError(f"preset must be phone, camera, mixed or gaussian, but is {preset!r}.")
        self.preset = preset

    @torch.no_grad()
    def __call__(
        self, clean: torch.Tensor, generator: torch.Generator | None = None, iso: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            clean (`torch.Tensor`): sRGB photographs, float, [B, 3, H, W] in [0, 1], or [B, 1, H, W] if all are grey; H
                and W at least 8, on any device.
            generator (`torch.Generator`, *optional*): Source of all random numbers, so the same seed gives the same
                pairs; it may be on another device than the photographs.
            iso (`float`, *optional*): The sensitivity, which sets the strength of the noise; `"gaussian"` has none. If
                given, every image has noise and photographs in colour stay so; else it is drawn, and 5% of `"phone"`
                and `"camera"` stay without noise, so that a denoiser learns to leave clean images alone.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: clean and noisy, float32, of the shape and on the device of the input.
            Both are whole multiples of 1/255 in [0, 1], as in 8-bit files.

        Raises:
            ValueError: If the photographs are not as described, or `iso` is not a positive number.
        """
        if clean.ndim != 4 or clean.shape[1] not in (1, 3) or min(clean.shape[2:]) < 8:
            raise ValueError(
                "clean must be [B, 3, H, W], or [B, 1, H, W] if grey, with H and W at least 8, "
                f"but is {list(clean.shape)}."
            )
        if not clean.is_floating_point() or not 0 <= clean.min() <= clean.max() <= 1:
            raise ValueError("clean must be a float tensor with values in [0, 1]; divide 8-bit images by 255 first.")
        if iso is not None and not 0 < iso < float("inf"):
            raise ValueError(f"iso must be a positive number, but is {iso}.")

        clean = clean.float()
        draw = Draw(len(clean), generator, clean.device)
        if self.preset == "gaussian":
            return _add_white_noise(clean, draw)
        if self.preset != "mixed" or iso is not None:
            return self._photograph(clean, draw, iso)

        kind = draw.uniform(0, 1).flatten()
        as_is, speckled = kind < AS_IS_SHARE, kind >= 1 - SPECKLE_SHARE
        photographs, clean, noisy = clean, torch.empty_like(clean), torch.empty_like(clean)
        for group, simulate in (
            (as_is, lambda x, draw: _add_white_noise(x, draw, AS_IS_NOISE_FREE_SHARE)),
            (speckled, _add_speckle),
            (~as_is & ~speckled, self._photograph),
        ):
            if group.any():
                draw = Draw(int(group.sum()), generator, clean.device)
                clean[group], noisy[group] = simulate(select(photographs, group), draw)
        return clean, noisy

    def _photograph(self, clean, draw, iso=None):
        channels = clean.shape[1]
        p = self._draw_settings(draw, iso, grey=channels == 1)

        # 1. Back to what the sensor saw; if the file is to be enlarged, the sensor saw the scene that much smaller
        clean = torch.where(p["grey"], _luma(clean), clean).expand(-1, 3, -1, -1)
        gain = torch.cat([p["red_gain"], torch.ones_like(p["red_gain"]), p["blue_gain"]], 1)
        rgb_to_camera = development.colour_matrix(p, draw)
        # Lens and optical low-pass filter: without them the mosaic would alias far more than in real photographs.
        low_pass = torch.where(p["binned"], 0, draw.uniform(0.12, 0.25))
        light = development.unprocess(development.zoom(clean, 1 / p["enlarging"]), p, gain, rgb_to_camera, low_pass)

        # 2. Two recordings, the second with noise: of all three colours, or of the one that each pixel sees
        raw = light.new_empty(2, *light.shape)
        mosaic = ~(p["binned"] | p["monochrome"]).flatten()
        settings = select(p, ~mosaic)
        truth, noisy = sensor.expose(select(light, ~mosaic), settings, draw)
        raw[:, ~mosaic] = torch.stack([truth, torch.where(settings["monochrome"], noisy[:, :1], noisy)])
        settings, masks = select(p, mosaic), select(sensor.bayer_masks(light.shape[2:], draw), mosaic)
        seen = (select(light, mosaic) * masks).sum(1, keepdim=True)
        recordings = sensor.expose(seen, settings, draw)
        raw[:, mosaic] = torch.stack([sensor.demosaic(x, masks, settings["malvar"]) for x in recordings])

        # 3. Both are developed alike: white balance, colour matrix, gamma, tone curve
        camera_to_rgb = torch.linalg.inv(rgb_to_camera)
        linear = transform_channels(camera_to_rgb, (raw * gain).clamp_(0, 1))
        pairs = development.develop(linear, p["contrast"])
        group = p["mean_of_files"].flatten()
        if group.any():
            variance = (p["shot"][group] * light[group] + p["read"][group]) * gain[group].square()
            variance = transform_channels(camera_to_rgb[group].square(), variance)
            pairs[0, group] = development.mean_developed(*linear[:, group], variance, p["contrast"][group])

        # 4. What cameras do to files
        pair = development.denoise_and_sharpen(pairs, p)
        clean, noisy = (_to_8_bit(x) for x in development.zoom(torch.cat([*pair], 1), p["enlarging"]).split(3, 1))
        pair = development.save_as_jpeg(clean, noisy, p, draw)
        clean, noisy = (torch.where(p["grey"], _to_8_bit(_luma(x)), x) for x in pair)
        if iso is None:
            noisy = torch.where(draw.share(NOISE_FREE_SHARE), clean, noisy)
        return clean[:, :channels], noisy[:, :channels]

    def _draw_settings(self, draw, iso, grey):
        """A camera, a light, settings and a kind of ground truth for each image, each value [B, 1, 1, 1]."""
        mixed = self.preset == "mixed"
        p = draw.camera(list(PRESETS) if mixed else [self.preset])
        if iso is not None:
            p["iso"] = torch.full_like(p["iso"], iso)
        p["shot"] = p["iso"] * p["shot_per_iso"]
        p["read"] = p["read_factor"] * p["shot"] ** p["read_power"]

        p["contrast"] = torch.where(draw.share(p["tone_curve"]), p["contrast"], 1)
        p["black"] = torch.where(draw.share(p["below_black"]), -1 / 16, 0.0)
        truth = draw.uniform(0, 1)
        p["mean_of_files"] = truth < p["stacked_files"]
        p["mean_of_raw"] = p["mean_of_files"] | (truth >= 1 - p["stacked_raw"])
        # The mean of 2x2 pixels of a mosaic: all three colours at the resolution of the file
        p["binned"] = draw.share(BINNED_SHARE if mixed else 0)
        p["enlarging"] = torch.where(p["binned"], 1, p["enlarging"])
        if mixed:
            resaved = draw.share(RESAVED_SHARE)
            p["jpeg_share"] = torch.where(resaved, 1, p["jpeg_share"])
            p["jpeg_quality"] = torch.where(resaved, draw.uniform(*RESAVED_QUALITY), p["jpeg_quality"])
            p["chroma_subsampling"] = torch.where(resaved, 2, p["chroma_subsampling"])  # 4:2:0
        p["grey"] = draw.share(1 if grey else p["grey"] if iso is None else 0)
        p["monochrome"] = p["grey"] & draw.share(MONOCHROME_SHARE)
        for key, neutral in (("red_gain", 1), ("blue_gain", 1), ("colour_matrix", 0)):
            p[key] = torch.where(p["monochrome"], neutral, p[key])
        return p


def _add_white_noise(clean, draw, noise_free_share=0):
    sigma = draw.uniform(*GAUSSIAN_SIGMA) * ~draw.share(noise_free_share)
    grey = draw.share(GAUSSIAN_GREY_SHARE)  # of one channel, all are
    noise = draw.normal(clean.shape)
    clean = torch.where(grey, _luma(clean), clean)
    return _to_8_bit(clean), _to_8_bit(clean + sigma * torch.where(grey, noise[:, :1], noise))


def _add_speckle(clean, draw):
    """Multiply grey images by a power of the intensity of a random complex field, of mean 1."""
    channels = clean.shape[1]
    clean, weight = _luma(clean), draw.uniform(*SPECKLE_BLUR)
    field = development.blur(draw.normal((len(clean), 2, *clean.shape[2:])), weight) / (
        (1 - 2 * weight) ** 2 + 2 * weight**2
    )
    exponent = draw.uniform(*(math.log(limit) for limit in SPECKLE_POWER)).exp()
    intensity = field.square().mean(1, keepdim=True).clamp_(min=1e-12)
    speckle = power(intensity, exponent) / torch.lgamma(1 + exponent).exp()
    white = draw.uniform(*SPECKLE_WHITE_SIGMA) * draw.normal(clean.shape)
    return tuple(_to_8_bit(x).expand(-1, channels, -1, -1) for x in (clean, clean * speckle + white))


def _luma(x):
    return (x * RGB_TO_YCBCR[0].to(x).view(3, 1, 1)).sum(1, keepdim=True)


def _to_8_bit(x):
    return x.clamp(0, 1).mul_(255).round_().div_(255)
