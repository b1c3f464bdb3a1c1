"""A UNet2DModel whose output pixels each depend on a known neighbourhood only, so that it can be tiled exactly."""

import functools

import torch
from diffusers import ModelMixin, UNet2DModel  # noqa: F401 - diffusers looks ModelMixin up in the module of a model
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class Float32Conv2d(nn.Conv2d):
    """
    Computes in float32 whatever comes in.

    bfloat16 has steps of 1/128 around 1: an image written by a bfloat16 convolution is visibly posterised.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return self._conv_forward(input.float(), self.weight.float(), bias)


class LocalUNet2DModel(UNet2DModel):
    """
    A [`~diffusers.UNet2DModel`] without normalisation, of the same configuration and the same parameter names.

    GroupNorm takes its mean and variance over the whole input, so every image size, and every tile, gets a slightly
    different network, and tiles show. Without it a pixel depends on its receptive field alone. What GroupNorm does for
    training is done by the initialisation: every residual branch ends in a convolution of zeros, so the network begins
    as a sum of identities. The last convolution computes and returns float32 in a network of any dtype, since its
    output is the image.

    Args:
        **kwargs: As for [`~diffusers.UNet2DModel`], with blocks of convolutions only: `down_block_types` and
            `up_block_types` made of `"DownBlock2D"` and `"UpBlock2D"`, `add_attention=False`, the default sampling
            layers. `norm_num_groups` must divide the block widths, although there is no norm.

    Raises:
        `ValueError`: If a part of the configuration sees beyond a neighbourhood.

    Example:
        ```py
        >>> import torch
        >>> from gdd_diffusers import LocalUNet2DModel

        >>> unet = LocalUNet2DModel(
        ...     block_out_channels=(8, 16),
        ...     down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2,
        ...     layers_per_block=1,
        ...     norm_num_groups=8,
        ...     add_attention=False,
        ... )
        >>> unet(torch.zeros(1, 3, 32, 48), torch.tensor(1000.0)).sample.shape
        torch.Size([1, 3, 32, 48])
        >>> unet.receptive_field
        31

        ```
    """

    # from_pretrained(..., dtype=torch.bfloat16) then does not round the weights that write the image
    _keep_in_fp32_modules = ["conv_out"]

    # diffusers reads the names of the configuration, which is that of UNet2DModel, from this signature
    @functools.wraps(UNet2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        config = self.config
        if not (
            set(config.down_block_types) == {"DownBlock2D"}
            and set(config.up_block_types) == {"UpBlock2D"}
            and not (config.mid_block_type and config.add_attention)
            and config.downsample_type == config.upsample_type == "conv"
            and config.downsample_padding == 1
        ):
            raise ValueError(
                "LocalUNet2DModel is made of convolutions only: use `DownBlock2D` and `UpBlock2D`, "
                "`add_attention=False`, and the default `downsample_type`, `upsample_type` and `downsample_padding`."
            )
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.GroupNorm):
                self.set_submodule(name, nn.Identity())
            elif isinstance(module, ResnetBlock2D):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        conv_out = Float32Conv2d(self.conv_out.in_channels, self.conv_out.out_channels, 3, padding=1)
        conv_out.load_state_dict(self.conv_out.state_dict())
        self.conv_out = conv_out

    @property
    def spatial_multiple(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def receptive_field(self) -> int:
        """Largest distance, in pixels of the network's own input, at which an input pixel changes an output pixel."""
        levels, layers = len(self.config.block_out_channels), self.config.layers_per_block
        middle = 0 if self.mid_block is None else len(self.mid_block.resnets)
        radius = 0
        for position in range(self.spatial_multiple):  # on the sampling grid
            # back through the deepest layers, along one axis: skip connections see less
            first, last = position - 1, position + 1  # the last convolution
            for level in range(levels):
                first, last = first - 2 * (layers + 1), last + 2 * (layers + 1)  # two convolutions each
                if level < levels - 1:  # the convolution after upsampling
                    first, last = (first - 1) // 2, (last + 1) // 2
            first, last = first - 2 * middle, last + 2 * middle
            for level in range(levels):
                first, last = first - 2 * layers, last + 2 * layers
                if level < levels - 1:  # the convolution that downsamples
                    first, last = 2 * first - 1, 2 * last + 1
            first, last = first - 1, last + 1  # the first convolution
            radius = max(radius, position - first, last - position)
        return radius
