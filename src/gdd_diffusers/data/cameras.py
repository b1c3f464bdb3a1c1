"""The cameras that `CameraNoise` simulates: the ranges of their properties, and the random numbers drawn from them."""

import torch


# Range (low, high) of each property, for "phone" and for "camera". Every image of a batch draws its own camera from
# them, uniformly, or uniformly in the logarithm. Raw values are in [0, 1], 1 being the white level; the variance of a
# raw value x is shot x + read.
LOG_UNIFORM = ("iso", "shot_per_iso", "read_factor", "exposure", "enlarging")
RANGES = {
    # Phones have the shot noise of SIDD's, and its relation to read noise (Zamir et al., "CycleISP", CVPR 2020: shot
    # 6.9e-4 at ISO 100 to 0.022 at ISO 3200). Cameras have full wells of 40,000 to 80,000 electrons at ISO 100, and
    # the relation of Brooks et al.
    "iso": ((70, 4500), (3000, 45000)),
    "shot_per_iso": ((6.0e-6, 7.9e-6), (1.2e-7, 2.4e-7)),
    "read_factor": ((1.26, 3.16), (2.0, 5.5)),  # read = read_factor shot^read_power
    "read_power": ((1.85, 1.85), (2.18, 2.18)),
    "tail": ((-0.05, 0.2), (0.0, 0.2)),  # lambda of the read noise's Tukey distribution: 0.14 Gaussian, lower heavier
    "row": ((0.0, 0.15), (0.2, 1.2)),  # standard deviation of the noise that a row shares, relative to read noise
    "bits": ((9.5, 12.0), (12.0, 14.0)),
    "below_black": ((0.0, 0.0), (0.5, 0.5)),  # share of cameras that record values below black; the others clip them
    # How the ground truth was made: share of means of raw files, and of developed files. The rest is one exposure at
    # low ISO. Phones' shares and tone curves give the brightness shift of SIDD (`examples/noise_statistics.py`).
    "stacked_raw": ((0.87, 0.87), (0.3, 0.3)),
    "stacked_files": ((0.08, 0.08), (0.5, 0.5)),
    "exposure": ((0.08, 1.3), (0.25, 1.3)),
    "tone_curve": ((0.15, 0.15), (1.0, 1.0)),  # share of files with a tone curve
    "contrast": ((1.0, 1.5), (1.0, 1.6)),  # slope of the tone curve in the middle
    "colour_matrix": ((0.5, 1.0), (0.0, 0.5)),  # 0: the sensor sees sRGB, 1: as the cameras of `development.py` do
    "red_gain": ((1.4, 2.2), (1.2, 1.8)),  # white balance
    "blue_gain": ((1.3, 2.2), (1.3, 2.1)),
    "malvar": ((0.5, 1.0), (0.9, 1.0)),  # 0: bilinear demosaicing, 1: Malvar et al.
    "luma_denoise": ((0.0, 0.3), (0.2, 2.4)),  # relative to the standard deviation of the image's noise
    "chroma_denoise": ((0.0, 0.03), (0.7, 1.8)),
    "sharpen": ((0.0, 0.3), (0.0, 0.3)),
    "enlarging": ((1.0, 1.0), (1.0, 1.8)),
    "jpeg_share": ((0.2, 0.2), (1.0, 1.0)),
    "chroma_subsampling": ((0.0, 3.0), (1.0, 3.0)),  # below 1: 4:4:4, below 2: 4:2:2, else 4:2:0
    "jpeg_quality": ((85.0, 98.0), (93.0, 99.0)),
    "grey": ((0.06, 0.06), (0.06, 0.06)),  # share of grey images
}
PRESETS = {name: {key: pair[i] for key, pair in RANGES.items()} for i, name in enumerate(("phone", "camera"))}


class Draw:
    """Draw random numbers from one generator: one per image, [B, 1, 1, 1], or a field of them."""

    def __init__(self, batch_size, generator, device):
        self.size, self.device = (batch_size, 1, 1, 1), device
        self.source = {"generator": generator, "device": generator.device if generator is not None else device}

    def uniform(self, low, high):
        return low + (high - low) * torch.rand(self.size, **self.source).to(self.device)

    def share(self, probability):
        return self.uniform(0, 1) < probability

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
        return power(u, lam).sub_(power(1 - u, lam)).div_(lam * variance.sqrt())

    def camera(self, presets):
        """Every property of a camera of one of the presets for each image."""
        ranges = torch.tensor([[PRESETS[preset][key] for key in RANGES] for preset in presets])
        in_log = [list(RANGES).index(key) for key in LOG_UNIFORM]
        ranges[:, in_log] = ranges[:, in_log].log()
        kind = self.integer(len(presets)).flatten()
        low, high = ranges.to(self.device)[kind].permute(2, 1, 0)
        values = low + (high - low) * torch.rand(low.shape, **self.source).to(self.device)
        values[in_log] = values[in_log].exp()
        return dict(zip(RANGES, values.unflatten(1, self.size), strict=True))


def power(x, exponent):
    """x^exponent for positive x, in three quarters of the time of `torch.pow`."""
    return x.log().mul_(exponent).exp_()


def select(x, mask):
    """x[mask], in a seventh of the time on a CPU; of a dict, of each of its values."""
    if isinstance(x, dict):
        return {key: value[mask] for key, value in x.items()}
    return x.index_select(0, mask.nonzero().flatten())
