"""
Develop raw files with LibRaw, through rawpy: with the camera's white balance and colours, and nothing else.

There is no sharpening, noise reduction, tone curve or automatic brightness. The result is in Display P3, which holds
what today's screens show, where sRGB would cut off colours that the sensor has seen.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import pyvips

from .exif import EXIF, IPTC, XMP, pack_exif, read_tags
from .image_file import ImageFile, ImageFileError, printable
from .libvips import display_p3, to_numpy, to_srgb, to_vips
from .xmp import upright_xmp


_GPS, _DNG_VERSION = 0x8825, 50706
# description, make, model, software, date, artist, rating (twice), copyright; the rest describes the sensor's data
_KEPT = (270, 271, 272, 305, 306, 315, 18246, 18249, 33432, _GPS)
_MAKER_NOTE = 0x927C
_EXPOSURE_TIME, _F_NUMBER, _ISO, _DATE, _FOCAL_LENGTH, _LENS = 0x829A, 0x829D, 0x8827, 0x9003, 0x920A, 0xA434
_COLOUR_SPACE, _WIDTH, _HEIGHT = 0xA001, 0xA002, 0xA003
_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5
_UNCALIBRATED = 0xFFFF  # neither sRGB nor Adobe RGB: see the ICC profile
_stderr = Lock()


@dataclass
class RawOptions:
    """
    How to develop raw files.

    Args:
        white_balance: What is white: as the camera set it, as in daylight, or on average in the image.
        exposure: Stops to brighten the image by; what becomes too bright is cut off.
        half_size: Whether to make one pixel of every 2x2 of the sensor instead of interpolating.
    """

    white_balance: Literal["camera", "daylight", "auto"] = "camera"
    exposure: float = 0.0
    half_size: bool = False


def read_raw(path: Path, max_pixels: int, options: RawOptions) -> ImageFile:
    """
    Develop a raw file to what a TIFF of 16 bits would hold of it.

    Raises:
        [`ImageFileError`]: If rawpy is not installed, some pixels do not decode, or there are more than half of
            `max_pixels`: LibRaw holds the image more than once.
    """
    name = printable(path)
    try:
        # here, since most runs never need it
        import rawpy
    except ImportError:
        raise ImageFileError(f'{name} is a raw file; to read it, pip install "gdd-diffusers[raw]".') from None
    data = path.read_bytes()
    tags = _read_tags(data)
    try:
        with rawpy.RawPy() as raw:
            with _nothing_printed():
                raw.open_buffer(io.BytesIO(data))
                width, height = raw.sizes.raw_width, raw.sizes.raw_height
                if width * height > max_pixels // 2:
                    limit = f"the limit for raw files is {max_pixels // 2 / 1e6:g} million (max_pixels)"
                    millions = f"{width * height / 1e6:.0f} million"
                    raise ImageFileError(f"{name} has {width} x {height} pixels, which is {millions}; {limit}.")
                raw.unpack()
            developed = raw.postprocess(
                use_camera_wb=options.white_balance == "camera",
                use_auto_wb=options.white_balance == "auto",
                half_size=options.half_size,
                bright=2**options.exposure,
                no_auto_bright=True,
                # A DNG says where white is. For other files LibRaw knows it less well, and looks at the brightest
                # pixels lest highlights turn pink.
                adjust_maximum_thr=0.0 if _DNG_VERSION in tags else 0.75,
                output_bps=16,
                output_color=rawpy.ColorSpace.P3D65,
                gamma=(2.4, 12.92),
            )
            known = _known_to_libraw(raw)
    except rawpy.LibRawError as error:
        cause = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise ImageFileError(f"{name} looks like a raw file, but LibRaw cannot develop it ({cause}).") from error

    image = ImageFile(developed, format="tiff", bits=16)
    if developed.shape[2] == 3:
        image.native, profile = developed, display_p3()
        image.pixels, image.metadata = to_numpy(to_srgb(to_vips(developed), profile)), {"icc-profile-data": profile}
    _keep_metadata(tags, known, image)
    return image


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Lead the standard error of the whole process nowhere, since LibRaw prints the errors that it also returns."""
    with _stderr, open(os.devnull, "wb") as nowhere:
        before = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


def _read_tags(data: bytes) -> dict:
    """Read the tags of a file that is a TIFF (most are), holds three of them (CR3), or a JPEG with EXIF (RAF)."""
    if data[4:8] == b"ftyp":
        parts = {}
        for part in (b"CMT1", b"CMT2", b"CMT4"):
            at = data.find(part, 0, 2**20)
            parts[part], _ = read_tags(data[at + 4 : at - 4 + int.from_bytes(data[max(at - 4, 0) : at], "big")])
        return parts[b"CMT1"] | {EXIF: (_LONG, 1, parts[b"CMT2"]), _GPS: (_LONG, 1, parts[b"CMT4"])}
    if data.startswith(b"FUJIFILM"):
        try:
            at, size = struct.unpack_from(">II", data, 84)
            data = pyvips.Image.jpegload_buffer(data[at : at + size]).get("exif-data").removeprefix(b"Exif\0\0")
        except (pyvips.Error, struct.error):
            return {}
    # Olympus and Panasonic put their own number in place of 42
    start = {b"II": b"II*\0", b"MM": b"MM\0*"}.get(data[:2], b"")
    return read_tags(data if data[2:4] in (b"+\0", b"\0+") else start + data[4:])[0]


def _known_to_libraw(raw) -> dict:
    """Return what LibRaw knows of lens and exposure as EXIF tags; some cameras write it into their own notes only."""
    other, known = raw.other, {}
    for tag, value in (
        (_EXPOSURE_TIME, other.shutter_speed),
        (_F_NUMBER, other.aperture),
        (_FOCAL_LENGTH, other.focal_length),
    ):
        if 0 < value < 4000:
            known[tag] = _RATIONAL, 1, struct.pack("<II", round(value * 1_000_000), 1_000_000)
    if 0 < other.iso_speed < 65536:
        known[_ISO] = _SHORT, 1, struct.pack("<H", round(other.iso_speed))
    if other.timestamp.year > 1970:
        known[_DATE] = _text(other.timestamp.strftime("%Y:%m:%d %H:%M:%S"))
    if raw.lens.model:
        known[_LENS] = _text(raw.lens.model)
    return known


def _text(value: str) -> tuple[int, int, bytes]:
    content = value.encode() + b"\0"
    return _ASCII, len(content), content


def _keep_metadata(tags: dict, known: dict, image: ImageFile) -> None:
    """Fill in EXIF, XMP and IPTC, without what is true of the raw file only."""
    height, width = image.pixels.shape[:2]
    exif = known | tags.get(EXIF, (_LONG, 1, {}))[2]
    if exif.pop(_MAKER_NOTE, None):
        image.notes.append("its maker note, whose addresses hold in a raw file only, was left out")
    exif[_COLOUR_SPACE] = _SHORT, 1, struct.pack("<H", _UNCALIBRATED)
    exif[_WIDTH], exif[_HEIGHT] = ((_LONG, 1, struct.pack("<I", side)) for side in (width, height))
    image.exif = pack_exif({tag: tags[tag] for tag in _KEPT if tag in tags} | {EXIF: (_LONG, 1, exif)})
    if IPTC in tags:
        image.metadata["iptc-data"] = tags[IPTC][2]
    if XMP in tags:
        xmp = upright_xmp(tags[XMP][2])
        if b"crs:" in xmp:
            # else Camera Raw would apply them to the result
            xmp = re.sub(rb"""(crs:AlreadyApplied(?:=["']|>))False""", rb"\g<1>True", xmp)
            image.notes.append("the settings of another raw developer in it were not applied")
        image.metadata["xmp-data"] = xmp
