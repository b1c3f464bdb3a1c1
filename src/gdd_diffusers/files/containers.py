"""
Read and write what libvips leaves out of image files.

That is how a file was compressed; EXIF, which libvips rewrites without maker notes, and not at all in a TIFF; IPTC,
which it cuts off in a TIFF and does not wrap for a JPEG; long XMP in a JPEG; and text in a PNG that is not ASCII.
"""

import mmap
import os
import re
import struct
import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np
import pyvips

from .exif import (
    COMPRESSION,
    EXIF,
    IPTC,
    MAKER_NOTE,
    append_tags,
    pack_exif,
    read_tags,
    upright_exif,
    without_pixel_tags,
)
from .image_file import ImageFile
from .libvips import with_fields


MAX_XMP_IN_JPEG = 65_502
_MAX_HEADER = 2**26  # of a JPEG: extended XMP alone may take megabytes
_MAX_CHUNK = 8_000_000  # of a PNG, libpng's limit for everything but pixels
_MAX_SEGMENT = 65_500  # of a JPEG, for EXIF and Photoshop; some cameras' maker notes alone fill it
_APP0, _APP1, _APP13, _APP14, _DQT, _SOS, _END = 0xE0, 0xE1, 0xED, 0xEE, 0xDB, 0xDA, b"\xff\xd9"
_GAIN_MAP = ["max-content-boost", "min-content-boost", "gamma", "offset-sdr", "offset-hdr", "hdr-capacity-min"]
_GAIN_MAP = [f"gainmap-{name}" for name in ("data", *_GAIN_MAP, "hdr-capacity-max", "use-base-cg", "scale-factor")]
_XMP, _EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_XMP_IN_PNG = b"XML:com.adobe.xmp\0"
_PHOTOSHOP, _IPTC_IN_PHOTOSHOP = b"Photoshop 3.0\0", b"\x04\x04"


def read_container(path: Path, source: pyvips.Image, image: ImageFile) -> None:
    """
    Fill in `exif`, `saving` and `verbatim`; make XMP and the gain map agree that the image is upright.

    In a JPEG, everything that Photoshop wrote is one block that includes IPTC; in a TIFF, IPTC is kept apart.
    """
    blocks, has_profile = {}, False
    if image.format == "tiff":
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tags, incomplete = read_tags(data)
        if incomplete:
            image.notes.append("some of its tags are damaged, repeat others or share their bytes, and were left out")
        compression = int.from_bytes(tags.get(COMPRESSION, (3, 1, b"\x08"))[2], "little")
        image.saving = {"compression": {1: "none", 5: "lzw"}.get(compression, "deflate")}
        image.exif = pack_exif(without_pixel_tags(tags))
        blocks = {"iptc-data": tags[IPTC][2] if IPTC in tags else b""}
    elif source.get_typeof("exif-data"):
        image.exif = upright_exif(source.get("exif-data"))
        if not image.exif:
            image.notes.append("its EXIF is damaged and was left out")
    if image.format == "jpeg":
        with open(path, "rb") as file:
            segments, _ = _jpeg_header(file.read(_MAX_HEADER))
        contents = [content for _, content in segments]
        xmp = next((s.removeprefix(_XMP) for s in contents if s.startswith(_XMP)), b"")
        photoshop = b"".join(s.removeprefix(_PHOTOSHOP) for s in contents if s.startswith(_PHOTOSHOP))
        blocks = {"xmp-data": xmp, "photoshop-data": photoshop, "iptc-data": b""}
        image.verbatim = b"".join(_segment(_APP1, s) for s in contents if s.startswith(_EXTENDED_XMP))
        tables = b"".join(content for marker, content in segments if marker == _DQT)
        image.saving = {"interlace": bool(source.get("jpeg-multiscan")), "Q": max(95, _jpeg_quality(tables))}
        if any(b"hdrgm:" in s or s.startswith(b"urn:iso:std:iso:ts:21496") for s in contents):
            image.metadata |= _gain_map(path, source, image.notes)
        has_profile = any(s.startswith(b"ICC_PROFILE\0") for s in contents)
    elif image.format == "png":
        texts = png_chunks(path, (b"tEXt", b"zTXt", b"iTXt"), image.notes)
        has_profile = bool(png_chunks(path, (b"iCCP",)))
        image.verbatim = b"".join(text for text in texts if not text.startswith(_XMP_IN_PNG, 8))
    elif image.format == "webp":
        with open(path, "rb") as file:
            file.seek(12)
            while (head := file.read(8))[:4] not in (b"VP8L", b"VP8 ", b""):
                size = int.from_bytes(head[4:], "little")
                file.seek(size + size % 2, os.SEEK_CUR)
        image.saving = {"lossless": head[:4] == b"VP8L"}
    if has_profile and not source.get_typeof("icc-profile-data"):
        image.notes.append("its colour profile is damaged and was left out")

    for name, block in blocks.items():
        image.metadata.pop(name, None)
        image.metadata |= {name: block} if block else {}
    if "xmp-data" in image.metadata:
        xmp = re.sub(rb"""(tiff:Orientation(?:=["']|>))[2-8]""", rb"\g<1>1", image.metadata["xmp-data"])
        if "gainmap-data" in image.metadata:
            # the directory says where the gain map was; libvips writes its new place outside of XMP
            xmp = re.sub(rb"<Container:Directory>.*?</Container:Directory>", b"", xmp, flags=re.DOTALL)
        image.metadata["xmp-data"] = xmp


def _gain_map(path: Path, source: pyvips.Image, notes: list[str]) -> dict:
    """Return the fields of the gain map that makes a JPEG brighter on HDR screens, turned upright."""
    try:
        with open(path, "rb") as file:
            loaded = pyvips.Image.uhdrload_source(pyvips.Source.new_from_descriptor(file.fileno()))
        fields = {name: loaded.get(name) for name in _GAIN_MAP if loaded.get_typeof(name)}
        gain = pyvips.Image.jpegload_buffer(fields["gainmap-data"])
        if gain.width > source.width or gain.height > source.height:
            raise ValueError("no gain map is larger than its image")
        if source.get_typeof("orientation") and source.get("orientation") > 1:
            gain = with_fields(gain, {"orientation": source.get("orientation")}).autorot()
            fields["gainmap-data"] = gain.jpegsave_buffer(Q=95, keep="icc")
        return fields
    except (pyvips.Error, KeyError, ValueError):
        notes.append("its gain map for HDR screens is damaged and was left out")
        return {}


def repair_jpeg(data: bytes) -> bytes:
    """Repair what libjpeg warns of before and after the pixels, so that any other warning means lost pixels."""
    segments, start = _jpeg_header(data)
    frame = next((content for marker, content in segments if marker in (0xC0, 0xC1)), b"")
    repaired, in_one_scan = bytearray(b"\xff\xd8"), False
    for marker, content in segments:
        if marker == _APP0 and content.startswith(b"JFIF\0"):
            content = content[:5] + b"\x01\x02" + content[7:]
        if marker == _APP14 and content.startswith(b"Adobe") and content[11:12] not in (b"\0", b"\1", b"\2"):
            # libjpeg assumes YCbCr or YCCK for unknown values
            content = content[:11] + (b"\2" if frame[5:6] == b"\4" else b"\1")
        if marker == _SOS and frame:
            # a scan that is not progressive holds all 64 coefficients in full
            content = content[:-3] + b"\x00\x3f\x00"
            in_one_scan = content[:1] == frame[5:6]
        repaired += _segment(marker, content)
    # with several scans there is no telling whether the last ones are missing
    return bytes(repaired) + data[start:] + (_END if in_one_scan and data.find(_END, start) < 0 else b"")


def complete_container(path: Path, image: pyvips.Image, like: ImageFile, format: str) -> None:
    """Put EXIF, XMP, IPTC and text into a JPEG, PNG or TIFF that has none, and the resolution into a JPEG."""
    exif, verbatim = like.exif, like.verbatim if like.format == format else b""
    xmp, iptc, photoshop = (like.metadata.get(f"{name}-data", b"") for name in ("xmp", "iptc", "photoshop"))
    resources = _photoshop_resources(photoshop)
    if format == "jpeg":
        if len(exif) > _MAX_SEGMENT:
            tags, _ = read_tags(exif)
            tags.get(EXIF, (0, 0, {}))[2].pop(MAKER_NOTE, None)
            exif = pack_exif(tags)
        data = path.read_bytes()
        start = 2
        dots_per_inch = (min(max(round(25.4 * value), 1), 65535) for value in (image.xres, image.yres))
        segments = _segment(_APP0, struct.pack(">5sHBHHH", b"JFIF\0", 0x0102, 1, *dots_per_inch, 0))
        if 0 < len(exif) <= _MAX_SEGMENT:
            segments += _segment(_APP1, b"Exif\0\0" + exif)
            if data[6:10] == b"Exif":
                # with a gain map, libvips writes EXIF although it is asked not to
                start += 2 + int.from_bytes(data[4:6], "big")
        if xmp:
            segments += _segment(_APP1, _XMP + xmp)
        segments += verbatim
        if iptc:
            header = b"8BIM" + _IPTC_IN_PHOTOSHOP + struct.pack(">HI", 0, len(iptc))
            others = (resource for kind, resource, _ in resources if kind != _IPTC_IN_PHOTOSHOP)
            photoshop = header + iptc + b"\0" * (len(iptc) % 2) + b"".join(others)
        for at in range(0, len(photoshop), _MAX_SEGMENT):
            segments += _segment(_APP13, _PHOTOSHOP + photoshop[at : at + _MAX_SEGMENT])
        path.write_bytes(data[:2] + segments + data[start:])
    elif format == "png":
        chunks = _png_chunk(b"eXIf", exif) if exif else b""
        # the four bytes say: not compressed, in no language, the keyword not translated
        chunks += _png_chunk(b"iTXt", _XMP_IN_PNG + bytes(4) + xmp) if xmp else b""
        chunks += verbatim
        if chunks:
            data = path.read_bytes()
            # after the signature and the header, which are 33 bytes
            path.write_bytes(data[:33] + chunks + data[33:])
    elif format == "tiff":
        tags = without_pixel_tags(read_tags(exif)[0])
        iptc = iptc or b"".join(content for kind, _, content in resources if kind == _IPTC_IN_PHOTOSHOP)
        if iptc:
            tags[IPTC] = 7, len(iptc), iptc
        if tags:
            with open(path, "r+b") as file:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    head, tail = append_tags(data, tags)
                file.write(head)
                file.seek(0, os.SEEK_END)
                file.write(tail)


def png_chunks(path: Path, kinds: Container[bytes], notes: list[str] | None = None) -> list[bytes]:
    """Return the undamaged chunks of these kinds in a PNG file, each with its length, kind and checksum."""
    found = []
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            rest = int.from_bytes(head[:4], "big") + 4
            if head[4:] not in kinds:
                file.seek(rest, os.SEEK_CUR)
                continue
            if rest > _MAX_CHUNK:
                file.seek(rest, os.SEEK_CUR)
                chunk = bytes(4)
            else:
                chunk = head + file.read(rest)
            if chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])):
                found.append(chunk)
            elif notes is not None:
                notes.append("a text in it is damaged and was left out")
    return found


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _jpeg_header(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Return (marker, content) of the segments up to the header of the first scan, and the offset of its pixels."""
    segments, at = [], 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 4:
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            at += 1  # padding
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((marker, data[at + 4 : end]))
        at = end
        if marker == _SOS:
            break
    return segments, at


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _jpeg_quality(tables: bytes) -> int:
    """Return the quality on libjpeg's scale: above 50, (2 - q / 50) times the table K.1 of ITU-T T.81 (sum 3685)."""
    total, at = 0, 0
    while at < len(tables):
        precision, number = divmod(tables[at], 16)
        end = at + 1 + (128 if precision else 64)
        if number == 0:
            total = np.frombuffer(tables[at + 1 : end], ">u2" if precision else np.uint8).sum()
        at = end
    return 100 - int(50 * total / 3685)


def _photoshop_resources(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Split a Photoshop block (Adobe Photoshop File Formats) into [(kind, whole resource, its content)]."""
    resources, at = [], 0
    while at + 12 <= len(data):
        # after signature and kind: the length of a name, the name, padded to even, and the length of the content
        start = at + 6 + (data[at + 6] // 2 + 1) * 2 + 4
        size = int.from_bytes(data[start - 4 : start], "big")
        end = start + size + size % 2
        resources.append((data[at + 4 : at + 6], data[at:end], data[start : start + size]))
        at = end
    return resources
