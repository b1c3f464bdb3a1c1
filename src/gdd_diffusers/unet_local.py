"""A UNet2DModel whose output pixels depend on a neighbourhood only, so that an image can go through it in bands."""

import copy
import functools
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel  # noqa: F401 - diffusers looks ModelMixin up in the module of a model
from diffusers.models import modeling_utils
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


# diffusers warns that `to(dtype)` rounds what should stay in float32, which Float32Conv2d prevents
modeling_utils.logger.addFilter(lambda record: "in LocalUNet2DModel that should be kept in float32" not in record.msg)


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
            and config.downsample_padding == config.mid_block_scale_factor == 1
            and config.resnet_time_scale_shift == "default"
            and config.time_embedding_type != "fourier"
            and not config.center_input_sample
        ):
            raise ValueError(
                "LocalUNet2DModel is made of convolutions only: use `DownBlock2D` and `UpBlock2D`, "
                "`add_attention=False`, and the default `downsample_type`, `upsample_type`, `downsample_padding`, "
                "`mid_block_scale_factor`, `resnet_time_scale_shift`, `time_embedding_type` and `center_input_sample`."
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

    @torch.no_grad()
    def forward_bands(self, bands: Iterable[torch.Tensor], timestep: torch.Tensor | float) -> Iterator[torch.Tensor]:
        """
        Apply the network to an image that comes in bands, and yield the output in bands.

        The result is that of [`~.forward`] on the whole image, to float rounding. Each convolution keeps the rows that
        it needs of the band before, so nothing is computed twice, and no activation of the whole image is ever in
        memory.

        Args:
            bands: Tensors `[B, C, h, W]` that make up the sample `[B, C, H, W]`; each h is a multiple of
                [`~.spatial_multiple`].
            timestep (`torch.Tensor` or `float`): As for [`~.forward`].

        Yields:
            `torch.Tensor` of shape `[B, C, h, W]`: Bands of the output, whose heights differ from those of the input.
        """
        timesteps = torch.as_tensor(timestep, device=self.device).expand(1)
        emb = self.time_embedding(self.time_proj(timesteps).to(self.dtype))
        convs = {module: BandConv2d(module) for module in self.modules() if isinstance(module, nn.Conv2d)}
        for layer in self.modules():
            if isinstance(layer, ResnetBlock2D):
                convs[layer.conv1].add_to_bias(layer.time_emb_proj(layer.nonlinearity(emb))[0])
        encoder = [self.conv_in]
        for block in self.down_blocks:
            encoder += [*block.resnets, *(layer.conv for layer in block.downsamplers or [])]
        decoder = [layer for block in self.up_blocks for layer in block.resnets]
        # rows that wait for those of another branch
        residuals: dict[Any, deque[torch.Tensor]] = defaultdict(deque)
        skips: dict[Any, deque[torch.Tensor]] = {layer: deque() for layer in encoder}
        skips |= zip(decoder, [skips[layer] for layer in reversed(encoder)], strict=True)

        def resnet(layer: Any, sample: torch.Tensor, is_last: bool) -> torch.Tensor:
            residuals[layer].append(sample if layer.conv_shortcut is None else layer.conv_shortcut(sample))
            sample = convs[layer.conv1](sample, is_last, layer.nonlinearity)
            sample = convs[layer.conv2](sample, is_last, layer.nonlinearity)
            for rows, band in take_rows(residuals[layer], sample.shape[-2]):
                sample[:, :, rows] += band
            return sample

        def up(upsamplers: Any, block: Any, sample: torch.Tensor, is_last: bool) -> torch.Tensor:
            for layer in upsamplers or []:
                sample = convs[layer.conv](F.interpolate(sample, scale_factor=2.0), is_last)
            for layer in block.resnets:
                skip = torch.cat([band for _, band in take_rows(skips[layer], sample.shape[-2])], -2)
                sample = resnet(layer, torch.cat([sample, skip], 1), is_last)
            return sample

        def forward(sample: torch.Tensor, is_last: bool, max_rows: int) -> Iterator[torch.Tensor]:
            for layer in encoder:
                sample = convs[layer](sample, is_last) if layer in convs else resnet(layer, sample, is_last)
                skips[layer].append(sample)
            for layer in self.mid_block.resnets if self.mid_block is not None else []:
                sample = resnet(layer, sample, is_last)
            # with the last band come all the rows that waited; the last block takes the most memory
            *blocks, last = zip([None, *(block.upsamplers for block in self.up_blocks)], self.up_blocks, strict=False)
            for upsamplers, block in blocks:
                sample = up(upsamplers, block, sample, is_last)
            *pieces, last_piece = sample.split(max(1, max_rows // 2), -2)
            for piece, ends in [*((piece, False) for piece in pieces), (last_piece, is_last)]:
                with suppress(NoRowsYet):
                    yield convs[self.conv_out](up(*last, piece, ends), ends, self.conv_act)

        max_rows = 0
        for band, following in pairwise(chain[Any](bands, [None])):
            max_rows = max(max_rows, band.shape[-2])
            with suppress(NoRowsYet):
                yield from forward(band, following is None, max_rows)


class NoRowsYet(Exception):
    """A convolution needs more rows before it can return any."""


class BandConv2d:
    """Apply an activation and a convolution to bands of an image. Keeps the rows that the next band needs."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = copy.copy(conv)  # with the same weights
        self.conv.padding = (0, 1)  # of 3x3
        self.kept: torch.Tensor | None = None

    def add_to_bias(self, offset: torch.Tensor):
        """Add to the bias of this copy alone, which saves a pass over the output."""
        bias = nn.Parameter(self.conv.bias + offset)  # type: ignore[operator]
        self.conv._parameters = {**self.conv._parameters, "bias": bias}

    def __call__(self, band: torch.Tensor, is_last: bool, activation: nn.Module | None = None) -> torch.Tensor:
        batch, channels, height, width = band.shape
        above = 1 if self.kept is None else self.kept.shape[-2]
        shape = batch, channels, above + height + is_last, width
        rows = torch.empty(shape, dtype=band.dtype, device=band.device, memory_format=torch.channels_last)
        rows[:, :, :above] = 0 if self.kept is None else self.kept  # beyond the border of the image all is zero
        if is_last:
            rows[:, :, -1:] = 0
        inside = rows[:, :, above : above + height]
        if isinstance(activation, nn.SiLU):  # without a copy
            torch.ops.aten.silu.out(band, out=inside)
        else:
            inside.copy_(band if activation is None else activation(band))
        stride = self.conv.stride[0]
        num_rows = (rows.shape[-2] - 3) // stride + 1  # of the output
        self.kept = rows[:, :, max(0, num_rows) * stride :].clone()
        if num_rows < 1:
            raise NoRowsYet
        return self.conv(rows)


def take_rows(queue: deque[torch.Tensor], num_rows: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Take the first rows of the bands in a queue, in pieces, each with its place among them."""
    start = 0
    while start < num_rows:
        band = queue.popleft()
        rows = slice(start, min(start + band.shape[-2], num_rows))
        if band.shape[-2] > rows.stop - start:
            queue.appendleft(band[:, :, rows.stop - start :])
        yield rows, band[:, :, : rows.stop - start]
        start = rows.stop
