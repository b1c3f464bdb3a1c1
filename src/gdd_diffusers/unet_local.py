"""A UNet2DModel whose output pixels depend on a neighbourhood only, so that an image can go through it in bands."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers import ModelMixin, UNet2DModel  # noqa: F401 - diffusers looks ModelMixin up in the module of a model
from diffusers.models import modeling_utils
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


# diffusers warns that `to(dtype)` rounds what should stay in float32, which Float32Conv2d prevents
modeling_utils.logger.addFilter(lambda record: "in LocalUNet2DModel that should be kept in float32" not in record.msg)

# bands of an image, each with whether it is the last one
Bands = Iterator[tuple[torch.Tensor, bool]]


class Float32Conv2d(nn.Conv2d):
    """
    Computes in float32 whatever comes in, with weights that stay in float32 when the network changes its dtype.

    bfloat16 has steps of 1/128 around 1: an image written by a bfloat16 convolution is visibly posterised.
    """

    def _apply(self, fn, recurse=True):
        def move_only(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)

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

    def forward_bands(
        self, bands: Iterable[torch.Tensor], timestep: torch.Tensor | float, dim: int = -2
    ) -> Iterator[torch.Tensor]:
        """
        Apply the network to an image that comes in bands, and yield the output in bands.

        The result is that of [`~.forward`] on the whole image, to float rounding. Each layer keeps the few rows that
        it needs of the band before, so that no activation of the whole image is ever in memory, and next to nothing is
        computed twice.

        Args:
            bands: Tensors `[B, C, h, W]` that make up the sample `[B, C, H, W]`; each h is a multiple of
                [`~.spatial_multiple`].
            timestep (`torch.Tensor` or `float`): As for [`~.forward`].
            dim (`int`, defaults to -2): The dimension in which the image is cut into bands.

        Yields:
            `torch.Tensor` of shape `[B, C, h, W]`: Bands of the output, whose heights differ from those of the input.
        """
        timesteps = torch.as_tensor(timestep, device=self.device).expand(1)
        emb = self.time_embedding(self.time_proj(timesteps).to(self.dtype))

        def resnet(layer: nn.Module, sample: Bands) -> Bands:
            return _apply_to_bands(lambda band: layer(band, emb), sample, dim, halo=2)  # two 3x3 convolutions

        skips: list[deque[tuple[torch.Tensor, bool]]] = []  # bands that wait for the way up

        def keep_skip(sample: Bands) -> Bands:
            skips.append(deque())
            return _copy_to(skips[-1], sample)

        sample = keep_skip(_apply_to_bands(self.conv_in, _mark_last(bands), dim))
        for block in self.down_blocks:
            for layer in block.resnets:
                sample = keep_skip(resnet(layer, sample))
            for layer in block.downsamplers or []:
                sample = keep_skip(_apply_to_bands(layer, sample, dim, stride=2))
        for layer in self.mid_block.resnets if self.mid_block is not None else []:
            sample = resnet(layer, sample)
        for block in self.up_blocks:
            for layer in block.resnets:
                sample = resnet(layer, _concatenate_channels(sample, skips.pop(), dim))
            for layer in block.upsamplers or []:
                sample = _apply_to_bands(layer, sample, dim, scale=2)
        sample = _apply_to_bands(lambda band: self.conv_out(self.conv_act(band)), sample, dim)
        return (band for band, _ in sample)


def _mark_last(bands: Iterable[torch.Tensor]) -> Bands:
    bands = iter(bands)
    band = next(bands, None)
    while band is not None:
        following = next(bands, None)
        yield band, following is None
        band = following


def _copy_to(skip: deque, bands: Bands) -> Bands:
    for band in bands:
        skip.append(band)
        yield band
        del band


def _apply_to_bands(
    function: Callable[[torch.Tensor], torch.Tensor],
    bands: Bands,
    dim: int,
    halo: int = 1,
    stride: int = 1,
    scale: int = 1,
) -> Bands:
    """
    Apply layers that see `halo` rows to each side, and that leave out `stride` - 1 of `stride` rows or repeat each
    `scale` times.
    """
    held, start, done = None, 0, 0  # rows that are still needed, the first one's number, output rows done so far
    for band, is_last in bands:
        held = band if held is None else torch.cat([held, band], dim)
        del band  # while this waits at its yield, it must not hold what the next layers have no use for
        seen = start + held.shape[dim]
        end = (seen if is_last else seen - halo) // stride * scale  # output rows that no later band can change
        if end > done:
            output = function(held).narrow(dim, done - start // stride * scale, end - done)
            keep = max(0, end // scale * stride - halo) // stride * stride
            held, start, done = held.narrow(dim, keep - start, seen - keep).clone(), keep, end
            yield output, is_last
            del output


def _concatenate_channels(sample: Bands, skip: deque, dim: int) -> Bands:
    """Concatenate the channels of bands on the way up and of those that wait for them, which have other heights."""
    a = b = None
    while True:
        if a is None:
            a, a_is_last = next(sample)
        if b is None:
            b, b_is_last = skip.popleft()
        size = min(a.shape[dim], b.shape[dim])
        is_last = a_is_last and b_is_last and a.shape[dim] == b.shape[dim]
        band = torch.cat([a.narrow(dim, 0, size), b.narrow(dim, 0, size)], 1)
        a, b = (x.narrow(dim, size, x.shape[dim] - size) if x.shape[dim] > size else None for x in (a, b))
        yield band, is_last
        if is_last:
            return
        del band
