"""FC-AIDE: Cha and Moon, "Fully convolutional pixel adaptive image denoiser", ICCV 2019."""

import copy

import torch
import torch.nn.functional as F
from skimage.restoration import estimate_sigma
from torch import nn

from rivals.denoiser import Denoiser, zeroed


# Which weights of a 3x3 filter there are, in the first layer and in all others. None of the three sees the pixel that
# it is centered on: the first layer looks above and left, above and right, or below, and the others no way back.
FIRST = {"q": "110100000", "e": "011001000", "d": "000000111"}
OTHERS = {"q": "111110100", "e": "111011001", "d": "000111111"}


class MaskedConv2d(nn.Module):
    """A convolution with only some of the weights of a 3x3 filter."""

    def __init__(self, in_channels: int, out_channels: int, taps: str, dilation: int = 1):
        super().__init__()
        self.dilation = dilation
        self.register_buffer("taps", torch.tensor([i for i in range(9) if taps[i] == "1"]), persistent=False)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, len(self.taps)))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.weight.new_zeros(*self.weight.shape[:2], 9).index_copy(2, self.taps, self.weight)
        return F.conv2d(x, filters.unflatten(2, (3, 3)), self.bias, padding=self.dilation, dilation=self.dilation)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.PReLU(channels, 0.0), nn.Conv2d(channels, channels, 1)
        )
        self.activation = nn.PReLU(channels, 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation((x + self.branch(x)) / 2)


class FCAIDE(Denoiser):
    """
    Each pixel Z becomes a Z + b, where a and b depend on its neighbours but not on itself. So the error can be
    estimated without the clean image, and the network adapts to the noisy image that it is to denoise.

    Of the paper's size is `FCAIDE(channels=64, image_channels=1)`.
    """

    tile_size, tile_overlap = 256, 96

    def __init__(self, depth: int = 10, channels: int = 16, image_channels: int = 3):
        super().__init__()
        self.first = nn.ModuleDict({k: MaskedConv2d(image_channels, channels, taps) for k, taps in FIRST.items()})
        self.others = nn.ModuleList(
            nn.ModuleDict(
                {
                    k: nn.Sequential(nn.PReLU(channels, 0.0), MaskedConv2d(channels, channels, taps, dilation))
                    for k, taps in OTHERS.items()
                }
            )
            for dilation in range(1, depth)
        )
        self.means = nn.ModuleList(nn.Sequential(nn.PReLU(channels, 0.0), Residual(channels)) for _ in range(depth))
        self.last = nn.Sequential(
            nn.PReLU(channels, 0.0),
            nn.Conv2d(channels, channels, 1),
            nn.PReLU(channels, 0.0),
            Residual(channels),
            nn.Conv2d(channels, 2 * image_channels, 1),
        )

        nn.init.ones_(zeroed(self.last[-1]).bias[:image_channels])  # a = 1, b = 0

    def affine(self, noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a and b for each pixel and colour, from its neighbours alone."""
        directions = {k: layer(noisy) for k, layer in self.first.items()}
        outputs = [self.means[0](sum(directions.values()) / 3)]
        for layers, mean in zip(self.others, self.means[1:], strict=True):
            directions = {k: layer(directions[k]) for k, layer in layers.items()}
            outputs.append(mean(sum(directions.values()) / 3))
        return self.last(sum(outputs) / len(outputs)).float().chunk(2, 1)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        a, b = self.affine(noisy)
        return a * noisy + b

    def estimated_error(self, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        """Estimate the mean squared error without bias, for noise of level `sigma`, independent by pixel."""
        a, b = self.affine(noisy)
        return ((noisy - (a * noisy + b)).square() + (2 * a - 1) * sigma**2).mean()

    def denoise(self, noisy: torch.Tensor, adaptation_steps: int = 0) -> torch.Tensor:
        """Denoise as `Denoiser.denoise` does, after so many steps on crops of the noisy image itself."""
        if adaptation_steps == 0:
            return super().denoise(noisy)
        sigma = float(estimate_sigma(noisy[0].movedim(0, -1).cpu().numpy(), channel_axis=-1, average_sigmas=True))
        adapted = copy.deepcopy(self)
        image = noisy.to(next(self.parameters()).device)
        optimizer = torch.optim.Adam(adapted.parameters(), 3e-4)
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for _ in range(adaptation_steps):
                crop = random_crop(image, 192, generator)
                loss = adapted.estimated_error(crop, sigma)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return adapted.denoise(noisy)


def random_crop(image: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Cut out a square of at most `size`, and flip and turn it at random."""
    top, left = (int(torch.randint(max(0, side - size) + 1, (1,), generator=generator)) for side in image.shape[-2:])
    crop = image[..., top : top + size, left : left + size]
    turns, flip = torch.randint(4, (2,), generator=generator).tolist()
    return torch.rot90(crop.flip(-1) if flip % 2 else crop, turns, (-2, -1))
