"""
The bytes of picture files themselves, for what libvips leaves out.

That is how a file was compressed, and EXIF, which libvips writes anew without maker's notes, and in a TIFF not at all.
"""

import contextlib
import mmap
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pyvips
from PIL.JpegImagePlugin import JpegImageFile


# TIFF 6.0 and EXIF 2.3: bytes per number of the types 0 to 13, and the tags that point to further directories
_UNITS = (0, 1, 1, 2, 4, 4, 1, 1, 2, 4, 4, 4, 8, 4)
_RATIONALS = (5, 10)
_ORIENTATION, _EXIF, _GPS, _INTEROPERABILITY, _MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_POINTERS = {_EXIF: {_INTEROPERABILITY: {}}, _GPS: {}}
_BYTE_ORDER = {b"II*\0": "<", b"MM\0*": ">"}
_MAX_SEGMENT = 65_500  # of a JPEG, for EXIF; some cameras' notes alone fill it
# what a TIFF says about how its pixels lie, and what libvips carries over itself: XMP, IPTC, Photoshop, ICC
_PIXEL_TAGS = {*range(254, 267), *range(273, 285), *range(288, 298), 301, *range(317, 348), *range(512, 533)}
_PIXEL_TAGS |= {700, 33723, 34377, 34675, 37724}


def read_container(path: Path, image: pyvips.Image, picture) -> None:
    """Fill in `exif` and `saving`; make XMP and the gain map agree that the picture is upright."""
    fields = image.get_fields()
    if picture.format == "tiff":
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tags = _read_tiff(data)
        compression = int.from_bytes(tags[259][2], "little") if 259 in tags else 8
        picture.saving = {"compression": {1: "none", 5: "lzw"}.get(compression, "deflate")}
        picture.exif = _pack_exif(_without_pixel_tags(tags))
    elif "exif-data" in fields:
        picture.exif = _upright_exif(image.get("exif-data"))
    if picture.format == "jpeg":
        picture.saving = {"interlace": bool(image.get("jpeg-multiscan"))}
        with contextlib.suppress(OSError, SyntaxError, KeyError), JpegImageFile(path) as jpeg:
            # quality q > 50 is (2 - q / 50) times the standard luminance table, which sums to 3685 (ITU-T T.81, K.1)
            picture.saving["Q"] = max(95, 100 - int(50 * sum(jpeg.quantization[0]) / 3685))
    if picture.format == "webp":
        data, at = path.read_bytes(), 12
        while data[at : at + 4] not in (b"VP8L", b"VP8 ", b""):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
        picture.saving = {"lossless": data[at : at + 4] == b"VP8L"}
    if "xmp-data" in picture.metadata:
        kind, xmp = picture.metadata["xmp-data"]
        picture.metadata["xmp-data"] = kind, re.sub(rb"""(tiff:Orientation(?:=["']|>))[2-8]""", rb"\g<1>1", xmp)
    if "gainmap-data" in picture.metadata and "orientation" in fields and image.get("orientation") > 1:
        kind, gainmap = picture.metadata["gainmap-data"]
        gainmap = pyvips.Image.jpegload_buffer(gainmap).copy()
        gainmap.set_type(pyvips.GValue.gint_type, "orientation", image.get("orientation"))
        picture.metadata["gainmap-data"] = kind, gainmap.autorot().jpegsave_buffer(Q=95, keep="icc")


def complete_container(path: Path, format: str, exif: bytes, resolution: tuple[float, float]) -> None:
    """Put EXIF into a JPEG, PNG or TIFF that has none, and the resolution into a JPEG."""
    if format == "jpeg":
        dots_per_inch = (min(max(round(25.4 * value), 1), 65535) for value in resolution)
        segments = struct.pack(">HH5sHBHHH", 0xFFE0, 16, b"JFIF\0", 0x0102, 1, *dots_per_inch, 0)
        if len(exif) > _MAX_SEGMENT:
            tags = _read_tiff(exif)
            tags.get(_EXIF, (0, 0, {}))[2].pop(_MAKER_NOTE, None)
            exif = _pack_exif(tags)
        data = path.read_bytes()
        start = 2
        if 0 < len(exif) <= _MAX_SEGMENT:
            segments += struct.pack(">HH6s", 0xFFE1, len(exif) + 8, b"Exif\0\0") + exif
            if data[6:10] == b"Exif":
                # beside a gain map libvips writes EXIF although it is told not to
                start += 2 + int.from_bytes(data[4:6], "big")
        path.write_bytes(data[:2] + segments + data[start:])
    elif format == "png" and exif:
        chunk = b"eXIf" + exif
        chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = path.read_bytes()
        # behind the signature and the header, which are 33 bytes
        path.write_bytes(data[:33] + chunk + data[33:])
    elif format == "tiff" and exif:
        with open(path, "r+b") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                tags = _read_tiff(data)
            end = file.seek(0, os.SEEK_END)
            end = file.seek(end + end % 2)
            file.write(_write_ifd(_without_pixel_tags(_read_tiff(exif)) | tags, end))
            file.seek(4)
            file.write(struct.pack("<I", end))


def _pack_exif(tags: dict) -> bytes:
    return b"II*\0\x08\0\0\0" + _write_ifd(tags, 8) if tags else b""


def _without_pixel_tags(tags: dict) -> dict:
    return {tag: tags[tag] for tag in tags if tag not in _PIXEL_TAGS}


def _upright_exif(exif: bytes) -> bytes:
    """EXIF from its TIFF header on, with orientation 1 and no thumbnail, and every other byte where it was."""
    exif = bytearray(exif[6:] if exif.startswith(b"Exif\0\0") else exif)
    order = _BYTE_ORDER.get(bytes(exif[:4]))
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        end = at + 2 + 12 * entries
        for entry in range(at + 2, end, 12):
            if struct.unpack_from(order + "H", exif, entry)[0] == _ORIENTATION:
                struct.pack_into(order + "HIHH", exif, entry + 2, 3, 1, 1, 0)
        struct.pack_into(order + "I", exif, end, 0)
    except (TypeError, struct.error):
        # not EXIF at all
        return b""
    return bytes(exif)


def _read_tiff(data: bytes) -> dict:
    """The tags of the first picture: {tag: (type, count, value)}. Empty if this is not a TIFF, or a BigTIFF."""
    order = _BYTE_ORDER.get(bytes(data[:4]))
    try:
        return _read_ifd(data, struct.unpack_from(order + "I", data, 4)[0], order, _POINTERS) if order else {}
    except struct.error:
        return {}


def _read_ifd(data: bytes, at: int, order: str, pointers: dict) -> dict:
    """An image file directory (TIFF 6.0). Values are little-endian bytes; that of a pointer is a directory again."""
    ifd = {}
    (entries,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind, count, offset = struct.unpack_from(order + "HHII", data, entry)
        unit = _UNITS[kind] if kind < len(_UNITS) else 0
        size = unit * count * (2 if kind in _RATIONALS else 1)
        start = offset if size > 4 else entry + 8
        value = data[start : start + size]
        if tag in pointers:
            value = _read_ifd(data, offset, order, pointers[tag])
        elif len(value) < size or not size:
            continue
        elif order == ">":
            value = np.frombuffer(value, f">u{unit}").astype(f"<u{unit}").tobytes()
        ifd[tag] = kind, count, value
    return ifd


def _write_ifd(ifd: dict, at: int) -> bytes:
    """A little-endian image file directory for offset `at`, with its values behind it."""
    entries, values = struct.pack("<H", len(ifd)), b""
    behind = at + 2 + 12 * len(ifd) + 4
    for tag, (kind, count, value) in sorted(ifd.items()):
        offset = behind + len(values)
        if isinstance(value, dict):
            value = _write_ifd(value, offset)
        if len(value) > 4:
            values += value + b"\0" * (len(value) % 2)
            value = struct.pack("<I", offset)
        entries += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return entries + b"\0\0\0\0" + values
