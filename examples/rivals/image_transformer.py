"""Image Transformer: Swin2SR of transformers (Conde et al., ECCV Workshops 2022), without enlarging the image."""

import torch
import torch.nn.functional as F
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from rivals.denoiser import Denoiser, zeroed


class ImageTransformer(Denoiser):
    """
    Attention in shifted windows, over blocks of 2x2 pixels as in gdd-fast, and a residual that is added to the image.

    The paper denoises nothing but JPEG. Of the size of that network is
    `ImageTransformer(180, (6,) * 6, 6, pixel_unshuffle=1)`.
    """

    batch_size = 8
    learning_rate = 5e-4

    def __init__(self, embed_dim: int = 48, depths=(2, 2), num_heads: int = 4, pixel_unshuffle: int = 2):
        super().__init__()
        self.pixel_unshuffle = pixel_unshuffle
        self.multiple = 8 * pixel_unshuffle
        config = Swin2SRConfig(
            image_size=64,
            num_channels=3 * pixel_unshuffle**2,
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=[num_heads] * len(depths),
            window_size=8,
            mlp_ratio=2.0,
            upscale=1,
            upsampler="",
        )
        self.network = Swin2SRForImageSuperResolution(config)
        zeroed(self.network.final_convolution)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        blocks = F.pixel_unshuffle(noisy, self.pixel_unshuffle)
        return F.pixel_shuffle(self.network(blocks).reconstruction, self.pixel_unshuffle)
