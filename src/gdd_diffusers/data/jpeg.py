"""Simulate the losses of JPEG compression: for whole batches, on any device, without encoding files."""

import torch
import torch.nn.functional as F


RGB_TO_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
YCBCR_TO_RGB = torch.linalg.inv(RGB_TO_YCBCR)

# The example tables of the standard (ITU-T T.81, annex K.1), which quality 50 uses as they are.
LUMA_TABLE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMA_TABLE = torch.full((8, 8), 99)
CHROMA_TABLE[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
# Rows are the basis of the discrete cosine transform, of 8 samples and of the 64 of a block.
_k, _n = torch.arange(8.0)[:, None], torch.arange(8.0)
DCT_8 = torch.cos(torch.pi * (2 * _n + 1) * _k / 16) * torch.where(_k == 0, 1 / 8, 1 / 4).sqrt()
DCT = torch.kron(DCT_8, DCT_8)


def jpeg_round_trip(
    images: torch.Tensor, quality: torch.Tensor | None, subsampling: int, offset: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """
    Save images as JPEG files and read them again, as libjpeg does, to within the rounding of its integers.

    Args:
        images: sRGB, float, [B, 3, H, W] in [0, 1]; rounded to 8 bits before and after.
        quality: From 1 to 100, [B]; without it, only the colours' resolution is lost.
        subsampling: 0, 1 or 2 for 4:4:4, 4:2:2 or 4:2:0, as Pillow counts.
        offset: Rows and columns, below 16, from the start of a block to the first pixel.
    """
    height, width = images.shape[2:]
    top, left = offset
    # Whole blocks of the coarser chroma; libjpeg too repeats the last pixel.
    borders = (left, -(left + width) % 16, top, -(top + height) % 16)
    padded = F.pad((images * 255).round(), borders, "replicate")
    luma, chroma = transform_channels(RGB_TO_YCBCR, padded).round().split([1, 2], 1)
    if subsampling:
        # Means are rounded up in every other column, down in the others, which keeps the mean of flat areas.
        odd = torch.arange(chroma.shape[3] // 2, device=chroma.device) % 2
        if subsampling == 2:
            chroma = (chroma[:, :, ::2] + chroma[:, :, 1::2]) / 2
        chroma = (chroma[..., ::2] + chroma[..., 1::2]).div_(2)
        chroma = chroma.add_(odd / 2 if subsampling == 1 else (odd + 1) / 4).floor_()

    if quality is not None:
        luma = _through_blocks(luma - 128, LUMA_TABLE, quality) + 128
        chroma = _through_blocks(chroma, CHROMA_TABLE, quality)
    if subsampling:
        # Three parts of the nearer sample and one of the other, libjpeg's "fancy upsampling"
        chroma = F.interpolate(chroma, scale_factor=(1 if subsampling == 1 else 2, 2), mode="bilinear")
    ycbcr = torch.cat([luma, chroma.round()], 1)
    return (
        transform_channels(YCBCR_TO_RGB, ycbcr).round().clamp(0, 255)[:, :, top : top + height, left : left + width]
        / 255
    )


def transform_channels(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Multiply the channels of x, [..., C, H, W], by one matrix, [C, C], or by one for each image, [B, C, C]."""
    return (matrix.to(x) @ x.flatten(-2)).view_as(x)


def _through_blocks(plane, table, quality):
    """Quantise the cosine transform of each block of 8x8 values in [-128, 127]."""
    quality = quality.to(plane)[:, None]
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)  # as libjpeg scales its tables
    step = ((table.flatten().to(plane) * percent + 50) / 100).floor().clamp(1, 255)[:, None, :]
    dct, channels, rows = DCT.to(plane), plane.shape[1], plane.shape[2] // 8
    blocks = plane.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4).reshape(len(plane), -1, 64)
    # libjpeg quantises eighths, among which halves of a step are frequent; it rounds them away from 0.
    coefficients = (blocks @ dct.T).mul_(8).round_().div_(8)
    coefficients = (coefficients / step).abs_().add_(0.5).floor_().copysign_(coefficients).mul_(step)
    blocks = (coefficients @ dct).round_().clamp_(-128, 127)
    return blocks.view(len(plane), channels, rows, -1, 8, 8).transpose(3, 4).reshape(plane.shape)
