"""Decode the cells of image columns: files, or the bytes of files."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION


# Raised by Pillow for a file with a broken header, metadata or pixels; RuntimeError for an AVIF
UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, struct.error, Image.DecompressionBombError)


def image_size(cell: dict | None) -> tuple[int, int] | None:
    """Return width and height of a cell as displayed, from its header alone; `None` if it cannot be read."""
    try:
        with open_cell(cell) as image:
            is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)  # in a damaged file it may be text
            return image.size[::-1] if is_turned else image.size
    except UNREADABLE:
        return None


def decode(cell: dict | None, grey_dtype: type = np.uint8) -> np.ndarray:
    """
    Decode a cell of an image column that was cast to `decode=False` to uint8 `[H, W, 3]`, upright.

    Grey images of more than 8 bits become `grey_dtype`, uint8 or uint16. Pillow reads colours in 8 bits only.

    Raises one of `UNREADABLE` if the file is broken or its white level is unknown.
    """
    with open_cell(cell) as file:
        image = ImageOps.exif_transpose(file)
        if file.mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits instead of scaling them
            return _scale_grey(np.asarray(image), file, grey_dtype)[..., None].repeat(3, axis=-1)
        return np.asarray(image.convert("RGB"))


def is_grey(pixels: np.ndarray) -> bool:
    """Return whether all channels of `[H, W, C]` are equal."""
    return bool((pixels == pixels[..., :1]).all())


def _scale_grey(grey: np.ndarray, file: Image.Image, dtype: type) -> np.ndarray:
    tags = getattr(file, "tag_v2", {})  # of a TIFF
    white, bits = np.iinfo(dtype).max, np.iinfo(dtype).bits
    if file.mode == "F":
        low, high = grey.min(), grey.max()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN as well
            raise ValueError(f"its values must lie in [0, 1], not [{low:.4g}, {high:.4g}]; save it as 8 or 16 bits")
        grey = np.rint(grey.clip(0, 1) * white)
    elif file.mode == "I" and file.format != "PPM":
        raise ValueError("it holds signed or 32-bit integers, whose white level is unknown; save it as 8 or 16 bits")
    else:
        grey = grey * 2.0 ** (bits - tags.get(BITSPERSAMPLE, (16,))[0])
    grey = grey.astype(dtype)
    return white - grey if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else grey  # 0: white is zero


def open_cell(cell: dict | None) -> Image.Image:
    """Open a cell of an image column that was cast to `decode=False`, without decoding its pixels."""
    if cell is None:
        raise ValueError("the image is missing")
    return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


def to_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 `[H, W, 3]` as PNG, fast: stronger compression saves little on noise."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
