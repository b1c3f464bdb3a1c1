"""MLP: Burger et al., "Image denoising: can plain neural networks compete with BM3D?", CVPR 2012."""

import torch
import torch.nn.functional as F
from torch import nn

from rivals.denoiser import Denoiser


class MLP(Denoiser):
    """
    A multi-layer perceptron from noisy patches to smaller clean ones, which overlap and are averaged with a Gaussian
    window.

    The paper's best is `MLP(39, 17, (3072, 3072, 2559, 2047), stride=3, image_channels=1)`.
    """

    def __init__(self, noisy_size=17, clean_size=9, hidden=(512, 512), stride=4, image_channels=3):
        super().__init__()
        self.noisy_size, self.clean_size, self.stride = noisy_size, clean_size, stride
        self.margin = (noisy_size - clean_size) // 2
        widths = [image_channels * noisy_size**2, *hidden, image_channels * clean_size**2]
        layers = []
        for fan_in, fan_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])
        distance = torch.arange(clean_size) - (clean_size - 1) / 2
        window = torch.exp(-(distance**2) / (2 * (clean_size // 2 / 2) ** 2))
        self.register_buffer("window", torch.outer(window, window).flatten()[:, None], persistent=False)

    def clean_patches(self, noisy: torch.Tensor) -> torch.Tensor:
        """Return a clean patch for every `stride`-th noisy one, `[B, channels * clean_size ** 2, patches]`."""
        patches = F.unfold((noisy - 0.5) / 0.2, self.noisy_size, stride=self.stride)
        return self.layers(patches.mT).mT * 0.2 + 0.5

    def loss(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        m = self.margin
        target = F.unfold(clean[..., m:-m, m:-m], self.clean_size, stride=self.stride)
        return F.mse_loss(self.clean_patches(noisy).float(), target)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        height, width = noisy.shape[-2:]
        # every pixel is to be covered, also by the last patch of a row
        more = [-(side - self.clean_size) % self.stride for side in (height, width)]
        m = self.margin
        patches = self.clean_patches(F.pad(noisy, (m, m + more[1], m, m + more[0]), mode="replicate")).float()
        weight = self.window.repeat(patches.shape[1] // len(self.window), patches.shape[2]).expand_as(patches)
        size = (height + more[0], width + more[1])
        total, weights = (F.fold(x, size, self.clean_size, stride=self.stride) for x in (patches * weight, weight))
        return (total / weights)[..., :height, :width]
