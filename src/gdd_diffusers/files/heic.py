"""Decode HEIC, the photographs of iPhones: libvips' wheels read its headers, but have no decoder for its pixels."""

from pathlib import Path

import numpy as np
import pyvips

from .image_file import ImageFile, ImageFileError, printable
from .libvips import to_vips


_LEFT_OUT = {"hdrgainmap": "gain map for HDR screens", "2": "depth map"}


def decode_heic(path: Path, image: ImageFile) -> pyvips.Image:
    """
    Decode the main image of a file, upright, 10 and 12 bits in the high bits of 16.

    What else the file holds is named in the notes of `image`, such as depth maps and the mattes of portraits.

    Raises:
        [`ImageFileError`]: If some pixels do not decode.
    """
    # here, since most runs never need it
    import pi_heif

    try:
        with open(path, "rb") as file:
            is_sequence = file.read(12)[8:] in (b"msf1", b"hevc", b"hevx")
            heif = pi_heif.open_heif(file, convert_hdr_to_8bit=False)
        pixels = np.array(heif)  # a copy, since the memory behind it belongs to `heif`
    except (EOFError, OSError, RuntimeError, SyntaxError, ValueError) as error:
        cause = printable(str(error).strip(" .\n"))
        raise ImageFileError(f"{printable(path)} is damaged or of an unknown kind ({cause}).") from error
    if is_sequence or len(heif) > 1:
        what = "is a sequence" if is_sequence else f"holds {len(heif)} images"
        image.notes.append(f"it {what}, and only the main image was read")
    # types of auxiliary images are URNs, as urn:com:apple:photo:2020:aux:hdrgainmap
    kinds = [kind.rsplit(":", 1)[-1] for kind in heif.info["aux"]] + ["2"] * len(heif.info["depth_images"])
    if kinds:
        names = sorted({_LEFT_OUT.get(kind, kind) for kind in kinds})
        image.notes.append(f"what it holds beside the image was left out: {', '.join(names)}")
    if heif.premultiplied_alpha:
        raise ImageFileError(f"{printable(path)} has colours multiplied by its transparency; convert it to PNG first.")
    return to_vips(pixels.reshape(*pixels.shape[:2], -1))
