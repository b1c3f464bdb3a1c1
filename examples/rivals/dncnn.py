"""DnCNN: Zhang et al., "Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising", TIP 2017."""

import torch
from torch import nn

from rivals.denoiser import Denoiser, zeroed


class DnCNN(Denoiser):
    """
    Layers of convolution, batch normalisation and ReLU that predict the noise.

    Of the paper's size are 17 layers (20 for blind denoising) of 64 channels: `DnCNN(17, 64, image_channels=1)`.
    """

    def __init__(self, depth: int = 17, channels: int = 16, image_channels: int = 3):
        super().__init__()
        layers = [nn.Conv2d(image_channels, channels, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, image_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        zeroed(self.layers[-1])

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy - self.layers(noisy)
