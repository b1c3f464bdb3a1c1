"""TNRD: Chen and Pock, "Trainable nonlinear reaction diffusion", TPAMI 2017."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from rivals.denoiser import Denoiser


NUM_BASES = 63  # Gaussians at -31, -30, ..., 31, of standard deviation 1
UNIT = 10 / 255  # of the values that they apply to: 10 of 255 levels, as in the paper
TABLE_STEP = 1 / 16  # between the values at which influence functions are tabulated


class Stage(nn.Module):
    """One step: u - sum over i of (k_i turned by 180 degrees) * phi_i(k_i * u), minus lambda (u - noisy)."""

    def __init__(self, num_filters: int, size: int, image_channels: int):
        super().__init__()
        # filters are combinations of cosines, and begin as those of lowest frequency
        self.register_buffer("basis", cosines(image_channels, size), persistent=False)
        self.coefficients = nn.Parameter(torch.eye(num_filters, len(self.basis)))
        mu = torch.arange(NUM_BASES) - NUM_BASES // 2
        influence = 0.1 * mu / (1 + 0.1 * mu**2)  # the derivative of a robust penalty
        self.weights = nn.Parameter(influence.repeat(num_filters, 1) / math.sqrt(2 * math.pi))
        self.reaction = nn.Parameter(torch.tensor(0.1))
        z = torch.arange(mu[0], mu[-1] + TABLE_STEP, TABLE_STEP)
        self.register_buffer("gaussians", torch.exp((z - mu[:, None]).square() / -2), persistent=False)

    def forward(self, u: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        unit = self.coefficients / self.coefficients.norm(dim=1, keepdim=True)
        k = torch.einsum("nb,bcyx->ncyx", unit, self.basis)
        margin = k.shape[-1] // 2
        response = F.conv2d(F.pad(u, (margin,) * 4, mode="reflect"), k)
        diffusion = F.conv_transpose2d(self.influence(response), k, padding=margin)
        return u - diffusion - self.reaction * (u - noisy)

    def influence(self, z: torch.Tensor) -> torch.Tensor:
        """
        Return phi_i(z) = sum over j of w_ij exp(-(z - mu_j)^2 / 2) of each channel i.

        Interpolated in a table, as the authors do: 63 Gaussians of every pixel would take most of the time.
        """
        table = self.weights @ self.gaussians
        rows = z.transpose(0, 1)
        place = (rows.flatten(1) / TABLE_STEP + table.shape[1] // 2).clamp(0, table.shape[1] - 1.001)
        left = place.detach().floor()
        share, left = place - left, left.long()
        phi = (1 - share) * table.gather(1, left) + share * table.gather(1, left + 1)
        return phi.view_as(rows).transpose(0, 1)


class TNRD(Denoiser):
    """
    Stages of gradient descent with filters and influence functions that are learned, for each stage anew.

    The paper's best has 5 stages of 48 filters of 7x7: `TNRD(5, 48, 7, image_channels=1)`. Here the filters cover the
    three colours at once.
    """

    batch_size = 8
    learning_rate = 3e-3

    def __init__(self, num_stages: int = 5, num_filters: int = 24, size: int = 5, image_channels: int = 3):
        super().__init__()
        self.stages = nn.ModuleList(Stage(num_filters, size, image_channels) for _ in range(num_stages))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        with torch.autocast(noisy.device.type, enabled=False):  # small differences of large values
            noisy = u = noisy / UNIT
            for stage in self.stages:
                u = stage(u, noisy)
        return u * UNIT


def cosines(channels: int, size: int) -> torch.Tensor:
    """
    Return the orthonormal cosines of a patch by frequency, `[n, channels, size, size]`.

    Those that are constant in space are left out, as in the paper, so that an even area of any colour stays as it is.
    """

    def transform(n):
        k, x = torch.arange(n)[:, None], torch.arange(n)
        matrix = torch.cos(math.pi * k * (x + 0.5) / n) * math.sqrt(2 / n)
        matrix[0] /= math.sqrt(2)
        return matrix

    c, y = transform(channels), transform(size)
    atoms = torch.einsum("ic,jy,kx->ijkcyx", c, y, y).flatten(1, 2)[:, 1:].flatten(0, 1)
    frequency = sum(torch.meshgrid(torch.arange(channels), *[torch.arange(size)] * 2, indexing="ij"))
    return atoms[frequency.flatten(1)[:, 1:].flatten().sort(stable=True).indices]
