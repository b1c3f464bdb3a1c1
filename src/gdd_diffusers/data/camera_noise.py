"""From a clean photograph to the noisy one that a camera would have recorded of the same scene.

The photograph is undone to what a sensor saw (Brooks et al., "Unprocessing images for learned raw denoising", CVPR
2019), gets a sensor's noise, and is developed again as cameras do it: demosaicing, white balance, colour matrix,
gamma, tone curve, noise reduction, sharpening, resizing, JPEG. Those later stages tie real noise together over pixels
and colours, and make denoisers fail that were taught white noise.
"""

import math

import torch
import torch.nn.functional as F

from .jpeg import RGB_TO_YCBCR, YCBCR_TO_RGB, mix, through_jpeg


# The ranges (low, high) from which each picture of a batch draws its camera, uniformly, or uniformly in the logarithm.
# Raw values are in [0, 1], 1 being the white level; the variance of a raw value x is shot x + read.
LOG_UNIFORM = ("iso", "shot_per_iso", "read_factor", "exposure", "enlarging")
PRESETS = {
    # Small sensors: shot noise and its relation to read noise as in the SIDD phones (Zamir et al., "CycleISP", CVPR
    # 2020: shot 6.9e-4 at ISO 100 to 0.022 at ISO 3200), and files that were hardly processed.
    "phone": {
        "iso": (70, 4500),
        "shot_per_iso": (6.0e-6, 7.9e-6),
        "read_factor": (1.26, 3.16),  # read = read_factor shot^read_power
        "read_power": (1.85, 1.85),
        "tail": (-0.05, 0.2),  # lambda of the read noise's Tukey distribution: 0.14 Gaussian, lower heavier
        "row": (0.0, 0.15),  # standard deviation of the noise that a row shares, in that of the read noise
        "bits": (9.5, 12.0),
        "below_black": (0.0, 0.0),  # share of cameras that record values below black; the others clip them
        "stacked_raw": (0.87, 0.87),  # share of ground truths that are the mean of raw files
        "stacked_files": (0.08, 0.08),  # and of developed files; the rest is an exposure without noise
        "exposure": (0.08, 1.3),
        "tone_curve": (0.15, 0.15),  # share of files that have one
        "contrast": (1.0, 1.5),  # of the tone curve: its slope in the middle
        "colour_matrix": (0.5, 1.0),  # 0: the sensor sees sRGB, 1: it sees as the four cameras below do
        "red_gain": (1.4, 2.2),  # white balance
        "blue_gain": (1.3, 2.2),
        "malvar": (0.5, 1.0),  # 0: bilinear demosaicing, 1: Malvar et al.
        "luma_denoise": (0.0, 0.3),  # in units of the picture's noise
        "chroma_denoise": (0.0, 0.03),
        "sharpen": (0.0, 0.3),
        "enlarging": (1.0, 1.0),
        "jpeg_share": (0.2, 0.2),
        "chroma_subsampling": (0.0, 3.0),  # below 1: 4:4:4, below 2: 4:2:2, else 4:2:0
        "jpeg_quality": (85.0, 98.0),
        "grey": (0.06, 0.06),  # share of grey images
    },
    # Large sensors: full wells of 40,000 to 80,000 electrons at ISO 100, the relation of read to shot noise of Brooks
    # et al., and the JPEG files that such cameras write themselves.
    "camera": {
        "iso": (3000, 45000),
        "shot_per_iso": (1.2e-7, 2.4e-7),
        "read_factor": (2.0, 5.5),
        "read_power": (2.18, 2.18),
        "tail": (0.0, 0.2),
        "row": (0.2, 1.2),
        "bits": (12.0, 14.0),
        "below_black": (0.5, 0.5),
        "stacked_raw": (0.3, 0.3),
        "stacked_files": (0.5, 0.5),
        "exposure": (0.25, 1.3),
        "tone_curve": (1.0, 1.0),
        "contrast": (1.0, 1.6),
        "colour_matrix": (0.0, 0.5),
        "red_gain": (1.2, 1.8),
        "blue_gain": (1.3, 2.1),
        "malvar": (0.9, 1.0),
        "luma_denoise": (0.2, 2.4),
        "chroma_denoise": (0.7, 1.8),
        "sharpen": (0.0, 0.3),
        "enlarging": (1.0, 1.8),
        "jpeg_share": (1.0, 1.0),
        "chroma_subsampling": (1.0, 3.0),
        "jpeg_quality": (93.0, 99.0),
        "grey": (0.06, 0.06),
    },
}
GAUSSIAN_SIGMA = (0.0, 55 / 255)
NOISE_FREE_SHARE = 0.05
# Of "mixed": pictures of half the sensor's resolution, which are as sharp as pixels can be. Trained without them, a
# denoiser takes detail finer than a demosaicing leaves for noise.
BINNED_SHARE = 0.35
# Of "mixed": files that were saved again as JPEG, by an editor, a messenger or a web site. Compression leaves little
# of fine noise and makes grain of the rest; trained without it, a denoiser takes that for texture and keeps it.
RESAVED_SHARE = 0.4
RESAVED_QUALITY = (60, 95)
# Of "mixed": photographs as they are, a quarter of them without noise, the others with white noise: scans, renderings,
# and what needs no denoising.
AS_IS_SHARE = 0.24
AS_IS_NOISE_FREE_SHARE = 0.25
# Of the images with white noise: scans and microscopy come as one channel, whose noise all three then share.
GREY_SHARE = 0.2
# Of "mixed": grey images with speckle, as ultrasound, radar and optical coherence tomography have it. The mean of many
# is the clean one. Intensity^power is what is shown: 1/2 is the amplitude, near 0 the logarithm.
SPECKLE_SHARE = 0.03
SPECKLE_POWER = (0.03, 0.4)
SPECKLE_WIDTH = (0.0, 0.25)
SPECKLE_WHITE_SIGMA = (0.0, 20 / 255)
MONOCHROME_SHARE = 0.5  # of grey photographs: sensors without a mosaic; the others are colour files turned grey
# Four equally likely values in place of a standard normal variable: the middles of its quarters, scaled to variance 1
NORMAL_NODES = (-1.363, -0.378, 0.378, 1.363)
# What in-camera denoising removes falls with the scale: blotches of 4 to 8 px are what is left in real files.
DENOISE_AT_SCALE = (1.0, 0.6, 0.2)

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


class CameraNoise:
    r"""
    Simulate a camera: clean photographs in, the (clean, noisy) pairs out that it would have recorded.

    The noise of a raw value \(x\) has the variance \(\mathrm{shot}\,x + \mathrm{read}\); every picture of a batch
    draws its own camera, light and settings. Ranges and stages were chosen so that the second-order statistics of what
    comes out (`examples/noise_statistics.py` prints them) are those of real photographs.

    The clean picture is not the one given but its twin: it went through the same lens, mosaic, colour path, noise
    reduction, sharpening, resizing and chroma subsampling, and only lacks noise and quantisation. That is how real
    pairs are made, their clean picture being the mean of many files, and so a denoiser learns to remove noise, and
    neither to change colours nor to undo what the camera did. Noise may darken or lighten on average: gamma and
    clipping do that.

    Args:
        preset (`str`, defaults to `"mixed"`): `"phone"` (small sensor, about 14 to 36 dB PSNR, hardly processed),
            `"camera"` (large sensor at high ISO, mostly 30 to 42 dB, in-camera JPEG), `"gaussian"` (white noise in
            sRGB of a standard deviation from 0 to 55/255, for comparison with the literature) or `"mixed"` (each
            picture a phone's or a camera's, a third of them binned to half the sensor's resolution, without a mosaic,
            and two in five saved again as JPEG of a quality from 60 to 95; three in twenty are instead `"gaussian"`
            ones, and one in twenty the photograph as it is, without noise).

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
            clean (`torch.Tensor`): sRGB photographs, float, [B, 3, H, W] in [0, 1], H and W at least 8, on any device.
            generator (`torch.Generator`, *optional*): All that is drawn comes from it, so the same seed gives the same
                pairs; it may be on another device than the photographs.
            iso (`float`, *optional*): The sensitivity, which sets the strength of the noise; `"gaussian"` has none. If
                not given it is drawn, and about 5% of the pairs (9% of `"mixed"`, none of `"gaussian"`) stay without
                noise, so that a denoiser learns to leave clean pictures alone.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: clean and noisy, float32, of the shape and on the device of the input.
            Both are whole multiples of 1/255 in [0, 1], since they come out of 8-bit files.

        Raises:
            ValueError: If the photographs are not as said, or `iso` is not a positive number.
        """
        if clean.ndim != 4 or clean.shape[1] != 3 or min(clean.shape[2:]) < 8:
            raise ValueError(f"clean must be [B, 3, H, W] with H and W at least 8, but is {list(clean.shape)}.")
        if not clean.is_floating_point() or not 0 <= clean.min() <= clean.max() <= 1:
            raise ValueError("clean must be a float tensor with values in [0, 1]; divide 8-bit pictures by 255 first.")
        if iso is not None and not 0 < iso < float("inf"):
            raise ValueError(f"iso must be a positive number, but is {iso}.")

        clean = clean.float()
        draw = _Draw(len(clean), generator, clean.device)
        if self.preset == "gaussian":
            return _white_noise(clean, draw)
        if self.preset != "mixed" or iso is not None:
            return self._photograph(clean, draw, iso)

        kind = draw.uniform(0, 1).flatten()
        as_is, speckled = kind < AS_IS_SHARE, kind >= 1 - SPECKLE_SHARE
        photographs, clean, noisy = clean, torch.empty_like(clean), torch.empty_like(clean)
        for group, simulate in (
            (as_is, lambda x, draw: _white_noise(x, draw, AS_IS_NOISE_FREE_SHARE)),
            (speckled, _speckle),
            (~as_is & ~speckled, lambda x, draw: self._photograph(x, draw, None)),
        ):
            if group.any():
                group_draw = _Draw(int(group.sum()), generator, clean.device)
                clean[group], noisy[group] = simulate(_chosen(photographs, group), group_draw)
        return clean, noisy

    def _photograph(self, clean, draw, iso):
        """The pairs of the cameras that are drawn; the preset is no `"gaussian"`."""
        # 1. A camera, a light and settings for each picture: every value of p is [B, 1, 1, 1]
        p = draw.camera(list(PRESETS) if self.preset == "mixed" else [self.preset])
        if iso is not None:
            p["iso"] = torch.full_like(p["iso"], iso)

        p["contrast"] = torch.where(draw.uniform(0, 1) < p["tone_curve"], p["contrast"], 1)
        p["black"] = torch.where(draw.uniform(0, 1) < p["below_black"], -1 / 16, 0.0)
        truth = draw.uniform(0, 1)
        mean_of_files = truth < p["stacked_files"]
        mean_of_raw = mean_of_files | (truth >= 1 - p["stacked_raw"])

        # Mean of 2x2 pixels of a mosaic: all three colours, at once at the resolution of the file
        binned = draw.uniform(0, 1) < (BINNED_SHARE if self.preset == "mixed" else 0)
        p["enlarging"] = torch.where(binned, 1, p["enlarging"])

        if self.preset == "mixed":
            resaved = draw.uniform(0, 1) < RESAVED_SHARE
            p["jpeg_share"] = torch.where(resaved, 1, p["jpeg_share"])
            p["jpeg_quality"] = torch.where(resaved, draw.uniform(*RESAVED_QUALITY), p["jpeg_quality"])
            p["chroma_subsampling"] = torch.where(resaved, 2, p["chroma_subsampling"])  # 4:2:0

        # Grey: of a sensor without a mosaic, or of a colour file that was turned grey
        grey = draw.uniform(0, 1) < (p["grey"] if iso is None else 0)
        monochrome = grey & (draw.uniform(0, 1) < MONOCHROME_SHARE)
        clean = torch.where(grey, _luma(clean), clean)
        for key, value in (("red_gain", 1), ("blue_gain", 1), ("colour_matrix", 0)):
            p[key] = torch.where(monochrome, value, p[key])

        # 2. Back to what the sensor saw; if the file is to be enlarged, the sensor saw the scene that much smaller
        gain = torch.cat([p["red_gain"], torch.ones_like(p["red_gain"]), p["blue_gain"]], 1)
        rgb_to_camera = _colour_matrix(p, draw)
        # Lens and optical low-pass filter: without them the mosaic would alias far more than in real photographs.
        low_pass = torch.where(binned, 0, draw.uniform(0.12, 0.25))
        raw = _unprocess(_zoom(clean, 1 / p["enlarging"]), p, gain, rgb_to_camera, low_pass)

        # 3. Noise: on all three colours where pixels are binned, else on the one that a pixel sees
        mosaic = ~(binned | monochrome).flatten()
        noisy_raw, light = torch.empty_like(raw), raw
        raw = raw.clone()
        seen = _chosen(light, ~mosaic)
        noisy_raw[~mosaic] = _add_sensor_noise(seen, p, ~mosaic, draw)
        noisy_raw = torch.where(monochrome, noisy_raw[:, :1], noisy_raw)
        raw[~mosaic] = torch.where(mean_of_raw[~mosaic], _mean_recorded(seen, p, ~mosaic), seen)
        masks, malvar = _chosen(_bayer_masks(raw.shape[2:], draw), mosaic), p["malvar"][mosaic]
        seen = (_chosen(light, mosaic) * masks).sum(1, keepdim=True)
        noisy_raw[mosaic] = _demosaic(_add_sensor_noise(seen, p, mosaic, draw), masks, malvar)
        seen = torch.where(mean_of_raw[mosaic], _mean_recorded(seen, p, mosaic), seen)
        raw[mosaic] = _demosaic(seen, masks, malvar)

        # 4. Both are developed alike: white balance, colour matrix, gamma, tone curve
        camera_to_rgb = torch.linalg.inv(rgb_to_camera)
        camera = (torch.stack([raw, noisy_raw]) * gain).clamp_(0, 1)
        linear = mix(camera_to_rgb, camera)
        pairs = _develop(linear, p)
        chosen = mean_of_files.flatten()
        if chosen.any():
            shot, read = (x[chosen] for x in _shot_and_read(p))
            variance = (shot * light[chosen] + read) * gain[chosen].square()
            variance = mix(camera_to_rgb[chosen].square(), variance)
            pairs[0, chosen] = _mean_developed(*linear[:, chosen], variance, p, chosen)

        # 5. What cameras do to files
        clean, noisy = _denoise_and_sharpen(pairs, p)
        clean, noisy = (_to_8_bit(x) for x in _zoom(torch.cat([clean, noisy], 1), p["enlarging"]).split(3, 1))
        clean, noisy = _through_jpeg(clean, noisy, p, draw)
        clean, noisy = (torch.where(grey, _to_8_bit(_luma(x)), x) for x in (clean, noisy))

        if iso is None:
            noisy = torch.where(draw.uniform(0, 1) < NOISE_FREE_SHARE, clean, noisy)
        return clean, noisy


class _Draw:
    """Random numbers from one generator: one per picture, [B, 1, 1, 1], or a field of them."""

    def __init__(self, batch_size, generator, device):
        self.size, self.device = (batch_size, 1, 1, 1), device
        self.source = {"generator": generator, "device": generator.device if generator is not None else device}

    def uniform(self, low, high):
        return low + (high - low) * torch.rand(self.size, **self.source).to(self.device)

    def integer(self, end):
        return torch.randint(end, self.size, **self.source).to(self.device)

    def normal(self, shape):
        return torch.randn(shape, **self.source).to(self.device)

    def tukey(self, shape, lam):
        """Tukey's lambda distribution, scaled to unit variance."""
        u = torch.rand(shape, **self.source).to(self.device).clamp(1e-6, 1 - 1e-6)
        # At lambda = 0 the formulas below are limits, and near it they lose their digits.
        lam = torch.where(lam.abs() < 0.03, 0.03, lam)
        variance = 2 / lam**2 * (1 / (1 + 2 * lam) - (2 * torch.lgamma(lam + 1) - torch.lgamma(2 * lam + 2)).exp())
        return _power(u, lam).sub_(_power(1 - u, lam)).div_(lam * variance.sqrt())

    def camera(self, presets):
        keys = list(PRESETS[presets[0]])
        ranges = torch.tensor([[PRESETS[preset][key] for key in keys] for preset in presets])
        in_log = [keys.index(key) for key in LOG_UNIFORM]
        ranges[:, in_log] = ranges[:, in_log].log()
        kind = self.integer(len(presets)).flatten()
        low, high = ranges.to(self.device)[kind].permute(2, 1, 0)
        values = low + (high - low) * torch.rand(low.shape, **self.source).to(self.device)
        values[in_log] = values[in_log].exp()
        return dict(zip(keys, values.unflatten(1, self.size), strict=True))


def _chosen(x, mask):
    """x[mask], in a seventh of the time on a CPU."""
    return x.index_select(0, mask.nonzero().flatten())


def _luma(x):
    return (x * RGB_TO_YCBCR[0].to(x).view(3, 1, 1)).sum(1, keepdim=True)


def _white_noise(clean, draw, noise_free_share=0):
    sigma = draw.uniform(*GAUSSIAN_SIGMA) * (draw.uniform(0, 1) >= noise_free_share)
    grey = draw.uniform(0, 1) < GREY_SHARE
    noise = draw.normal(clean.shape)
    clean = torch.where(grey, _luma(clean), clean)
    return _to_8_bit(clean), _to_8_bit(clean + sigma * torch.where(grey, noise[:, :1], noise))


def _speckle(clean, draw):
    """Grey images times the intensity of a random complex field, which a power of it shows."""
    clean = _luma(clean)
    width = draw.uniform(*SPECKLE_WIDTH)
    field = _blur(draw.normal((len(clean), 2, *clean.shape[2:])), width) / ((1 - 2 * width) ** 2 + 2 * width**2)
    low, high = (math.log(power) for power in SPECKLE_POWER)
    power = draw.uniform(low, high).exp()
    intensity = field.square().mean(1, keepdim=True).clamp_(min=1e-12)
    speckle = _power(intensity, power) / torch.lgamma(1 + power).exp()
    white = draw.uniform(*SPECKLE_WHITE_SIGMA) * draw.normal(clean.shape)
    return tuple(_to_8_bit(x).expand(-1, 3, -1, -1) for x in (clean, clean * speckle + white))


def _to_8_bit(x):
    return x.clamp(0, 1).mul_(255).round_().div_(255)


def _power(x, exponent):
    """x^exponent for positive x; `torch.pow` takes a third longer."""
    return x.log().mul_(exponent).exp_()


# Below the first number the curve of sRGB is a line; clamping takes half the time of `torch.where`
def _srgb_decode(x):
    return _power((x.clamp(min=0.04045) + 0.055).div_(1.055), 2.4).add_(
        x.clamp(max=0.04045) - 0.04045, alpha=1 / 12.92
    )


def _srgb_encode(x):
    curve = _power(x.clamp(min=0.0031308), 1 / 2.4).mul_(1.055).sub_(0.055)
    return curve.add_(x.clamp(max=0.0031308).sub_(0.0031308), alpha=12.92)


def _s_curve(x, contrast):
    """x^c / (x^c + (1 - x)^c), a tone curve whose inverse is the curve of 1/c; c = 1.5 is much like a smoothstep."""
    return torch.logit(x, 1e-30).mul_(contrast).sigmoid_()


def _zoom(x, factor):
    """Enlarge each picture about its centre by its own factor; what comes into view below 1 is a mirror image."""
    changed = factor.flatten() != 1
    if not changed.any():
        return x
    row, column = (torch.arange(1, 2 * n, 2, device=x.device) / n - 1 for n in x.shape[2:])  # centres, in [-1, 1]
    grid = torch.stack(torch.meshgrid(column, row, indexing="xy"), 2) / factor[changed]
    grid = 2 * grid.clamp(-1, 1) - grid  # the mirror; `grid_sample` has one, which takes twice as long
    zoomed = x.clone()
    zoomed[changed] = F.grid_sample(_chosen(x, changed), grid, "bicubic", "border", align_corners=False).clamp_(0, 1)
    return zoomed


def _colour_matrix(p, draw):
    """[B, 3, 3] from linear sRGB to the camera's own colours; rows add up to 1, so grey stays grey."""
    weights = torch.cat([draw.uniform(1e-3, 1) for _ in XYZ_TO_CAMERA], 1).flatten(1)
    matrix = torch.einsum("bk,kij,jl->bil", weights, XYZ_TO_CAMERA.to(weights), SRGB_TO_XYZ.to(weights))
    matrix = matrix / matrix.sum(2, keepdim=True)
    return torch.lerp(torch.eye(3).to(matrix), matrix, p["colour_matrix"].squeeze(1))


def _unprocess(clean, p, gain, rgb_to_camera, low_pass):
    linear = _srgb_decode(_s_curve(clean, 1 / p["contrast"]))
    linear = _blur(linear, low_pass) * p["exposure"]
    camera = mix(rgb_to_camera, linear).clamp(0, 1)
    # In highlights all three colours reach white, whatever the white balance does (Brooks et al.).
    white = ((camera.mean(1, keepdim=True) - 0.9).clamp(min=0) / 0.1) ** 2
    return camera * torch.maximum(white + (1 - white) / gain, 1 / gain)


def _blur(x, weight):
    """[w, 1 - 2w, w] along both axes."""
    x = F.pad(x, (1, 1, 1, 1), "replicate")
    x = (1 - 2 * weight) * x[:, :, 1:-1] + weight * (x[:, :, :-2] + x[:, :, 2:])
    return (1 - 2 * weight) * x[..., 1:-1] + weight * (x[..., :-2] + x[..., 2:])


def _bayer_masks(size, draw):
    """[B, 3, H, W]: 1 where a pixel sees that colour; RGGB, shifted by 0 or 1 px each way."""
    row = (torch.arange(size[0], device=draw.device).view(1, 1, -1, 1) + draw.integer(2)) % 2.0
    column = (torch.arange(size[1], device=draw.device).view(1, 1, 1, -1) + draw.integer(2)) % 2.0
    red, blue = (1 - row) * (1 - column), row * column
    return torch.cat([red, 1 - red - blue, blue], 1)


def _shot_and_read(p):
    """The variance of a raw value x is shot x + read."""
    shot = p["iso"] * p["shot_per_iso"]
    return shot, p["read_factor"] * shot ** p["read_power"]


def _add_sensor_noise(raw, p, chosen, draw):
    """On the chosen pictures of those that the values of p are for."""
    shot, read = (x[chosen] for x in _shot_and_read(p))
    read = read.sqrt()
    steps = 2 ** p["bits"][chosen]
    noisy = raw + (shot * raw).sqrt_().mul_(draw.normal(raw.shape))
    # Read noise has heavier tails than a Gaussian, and each row has its own offset (Wei et al., "A physics-based noise
    # formation model for extreme low-light raw denoising", CVPR 2020).
    noisy.addcmul_(read, draw.tukey(raw.shape, p["tail"][chosen]))
    noisy.addcmul_(read * p["row"][chosen], draw.normal((len(raw), 1, raw.shape[2], 1)))
    return torch.maximum(noisy.mul_(steps).round_().div_(steps), p["black"][chosen]).clamp_(max=1)


def _mean_recorded(raw, p, chosen):
    """The mean of many recordings of `raw`, each clipped at black and white, with all noise taken for Gaussian."""
    shot, read = (x[chosen] for x in _shot_and_read(p))
    sigma = (shot * raw).addcmul_(read, 1 + p["row"][chosen].square()).sqrt_()

    def mean_above(limit):  # of max(x - limit, 0)
        above = raw - limit
        z = above / sigma
        return (
            torch.special.ndtr(z)
            .mul_(above)
            .addcmul_(sigma, z.square_().mul_(-0.5).exp_(), value=1 / math.sqrt(2 * math.pi))
        )

    black = p["black"][chosen]
    return mean_above(black).sub_(mean_above(1)).add_(black).clamp_(max=1)


def _develop(linear, p):
    return _s_curve(_srgb_encode(linear.clamp(0, 1)), p["contrast"])


def _mean_developed(linear, noisy, variance, p, chosen):
    """The mean of many developed files of which `linear` is the mean before development, for the chosen of p."""
    # Demosaicing averages the noise; how much is seen in the noise itself
    scale = (noisy - linear).square().mean((2, 3), keepdim=True) / variance.mean((2, 3), keepdim=True)
    sigma = (variance * scale).sqrt_()
    p = {"contrast": p["contrast"][chosen]}
    return sum(_develop(linear + z * sigma, p) for z in NORMAL_NODES) / len(NORMAL_NODES)


def _demosaic(mosaic, masks, malvar):
    """What a pixel lacks, from its 5x5 neighbourhood.

    The plain mean of the nearest pixels of that colour, and as much as `malvar` says of a correction by the local
    curvature of the colour that is there (Malvar, He and Cutler, ICASSP 2004).
    """
    # Mirrored without repeating the border, a mosaic goes on as a mosaic.
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


def _denoise_and_sharpen(pairs, p):
    """Wiener shrinkage of an a trous wavelet transform of luma and chroma; sharpening amplifies the finest scale.

    What the noisy picture is multiplied with multiplies the clean one too, as in the mean of many such files. `pairs`
    is [2, B, 3, H, W], the clean ones first.
    """
    # A camera knows its noise by calibration, so it may be told the true one here.
    clean, noisy = pairs
    sigma = (noisy - clean).square_().mean((1, 2, 3), keepdim=True).sqrt()
    strength = sigma * torch.cat([p["luma_denoise"], p["chroma_denoise"], p["chroma_denoise"]], 1)
    smooth = mix(RGB_TO_YCBCR, pairs)
    result = smooth.clone()
    for level, scale in enumerate(DENOISE_AT_SCALE):
        finer, smooth = smooth, _spline_blur(smooth.flatten(0, 1), 2**level).unflatten(0, (2, -1))
        detail = finer - smooth
        # The energy around a pixel, not the pixel's own: shrinking each by its own size would leave specks.
        energy = _spline_blur(detail[1].square(), 2 ** (level + 1))
        kept = energy.div_(energy + ((scale * strength) ** 2 + 1e-12))
        if level == 0:
            kept[:, :1] *= 1 + p["sharpen"]
        result.addcmul_(detail, kept.sub_(1))
    return mix(YCBCR_TO_RGB, result).clamp_(0, 1)


def _spline_blur(x, step):
    """[1, 4, 6, 4, 1] / 16 along both axes, its taps `step` pixels apart; on a CPU faster than `conv2d`."""
    x = F.pad(x, (2 * step,) * 4, "replicate")
    for axis in (2, 3):
        length = x.shape[axis] - 4 * step
        tap = [x.narrow(axis, i * step, length) for i in range(5)]
        x = (tap[0] + tap[4]).add_(tap[1] + tap[3], alpha=4).add_(tap[2], alpha=6)
    return x.div_(16 * 16)


def _through_jpeg(clean, noisy, p, draw):
    """The clean twin shares the resolution of the colours, but nothing of it is quantised."""
    chosen = draw.uniform(0, 1) < p["jpeg_share"]
    subsampling = torch.where(chosen, p["chroma_subsampling"].int(), -1).flatten()
    # A crop may begin anywhere within a block of 16 px.
    offset = tuple(draw.integer(16)[0].item() for _ in range(2))
    quality = p["jpeg_quality"].flatten().round()
    for kind in range(3):
        group = subsampling == kind
        if group.any():
            clean[group] = through_jpeg(_chosen(clean, group), None, kind, offset)
            noisy[group] = through_jpeg(_chosen(noisy, group), quality[group], kind, offset)
    return clean, noisy
