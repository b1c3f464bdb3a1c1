"""NLRN: Liu et al., "Non-local recurrent network for image restoration", NeurIPS 2018."""

import torch
import torch.nn.functional as F
from torch import nn

from rivals.denoiser import Denoiser, zeroed


class NLRN(Denoiser):
    """
    One block, applied again and again, in which each pixel takes from those like it in a window around it. How alike
    two pixels are is passed on, and added to, from one time to the next.

    The paper's has `NLRN(steps=12, channels=128, embedding=64, window=45, image_channels=1)`.
    """

    batch_size = 4
    tile_size, tile_overlap = 160, 48

    def __init__(
        self, steps: int = 6, channels: int = 16, embedding: int = 8, window: int = 9, image_channels: int = 3
    ):
        super().__init__()
        self.steps, self.window = steps, window
        self.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)
        # the weights are shared by all steps, the normalisation is not
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3)) for _ in range(steps))
        self.theta, self.phi = (nn.Conv2d(channels, embedding, 1) for _ in range(2))
        self.g = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.g.weight)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm_out = nn.BatchNorm2d(channels)
        self.conv_out = zeroed(nn.Conv2d(channels, image_channels, 3, padding=1))

    def flops_per_pixel(self, **options) -> float:
        channels, embedding = self.g.out_channels, self.theta.out_channels
        # products of single pixels, which torch does not count
        return super().flops_per_pixel(**options) + self.steps * self.window**2 * 2 * (channels + embedding)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        state = start = self.conv_in(noisy)
        correlation = 0.0
        for norms in self.norms:
            x = F.relu(norms[0](state))
            x, correlation = self.non_local(x, correlation)
            x = self.conv1(norms[1](x))
            x = self.conv2(F.relu(norms[2](x)))
            state = x + start
        return noisy + self.conv_out(F.relu(self.norm_out(state)))

    def non_local(self, x: torch.Tensor, correlation: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Add to each pixel the mean of g over its window, weighted by how alike theta and phi are there."""
        height, width = x.shape[-2:]
        margin = self.window // 2
        x = x.contiguous()  # products of shifted images are fast along rows
        theta, phi, g = (layer(x).contiguous() for layer in (self.theta, self.phi, self.g))
        phi, g = (F.pad(y, (margin,) * 4) for y in (phi, g))
        places = [
            (..., slice(dy, dy + height), slice(dx, dx + width))
            for dy in range(self.window)
            for dx in range(self.window)
        ]
        # place by place: all products of all places at once would be too many to keep for the gradient
        correlation = correlation + torch.stack([(theta * phi[place]).sum(1) for place in places], 1)
        inside = F.pad(torch.ones_like(x[:1, :1]), (margin,) * 4)
        mask = torch.cat([inside[place] for place in places], 1) == 0
        weights = correlation.masked_fill(mask, -torch.inf).softmax(1)
        for weight, place in zip(weights.split(1, 1), places, strict=True):
            x = x + weight * g[place]
        return x, correlation
