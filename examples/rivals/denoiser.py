"""What all rivals have in common: a loss to train by, and denoising of images of any size."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gdd_diffusers.tiling import apply_tiled_


def zeroed(layer: nn.Module) -> nn.Module:
    """Set the last layer of a network to zero, so that the network begins at its noisy input."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Denoiser(nn.Module):
    """
    A network that maps noisy images to clean ones, `[B, 3, H, W]` in [0, 1]. Grey images have three equal channels.

    A rival defines `forward`, and overrides what else its paper does in another way.
    """

    batch_size = 16  # crops of 96 px in a step, which then takes about a second on two CPU cores
    learning_rate = 1e-3  # at its peak
    multiple = 1  # of which `forward` needs the sides of its input to be
    tile_size, tile_overlap = 512, 64

    def loss(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """Return what a training step minimizes: the mean squared error."""
        return F.mse_loss(self(noisy).float(), clean)

    def parameter_groups(self) -> list[dict]:
        """Return the parameters in groups, each with the peak of its learning rate."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate}]

    def flops_per_pixel(self, **options) -> float:
        """Count the operations of `denoise`, a multiplication and an addition as two, on an image of 128x128."""
        with FlopCounterMode(display=False) as counter:
            self.denoise(torch.rand(1, 3, 128, 128), **options)
        return counter.get_total_flops() / 128**2

    @torch.no_grad()
    def denoise(self, noisy: torch.Tensor) -> torch.Tensor:
        """Denoise an image `[1, 3, H, W]` in [0, 1], in overlapping tiles if it is large."""
        height, width = noisy.shape[-2:]
        device = next(self.parameters()).device
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        image = F.pad(noisy, padding, mode="replicate").cpu().clone()  # only tiles go to the device
        apply_tiled_(
            lambda tiles, _: self(tiles.to(device)).float().cpu(),
            image,
            self.tile_size,
            self.tile_overlap,
            self.multiple,
            max_batch_pixels=self.tile_size**2,
        )
        return image[..., :height, :width].clamp(0, 1).to(noisy.device)
