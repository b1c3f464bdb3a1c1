"""
The bytes of picture files themselves, for what libvips leaves out.

That is how a file was compressed; EXIF, which libvips writes anew without maker's notes, and in a TIFF not at all;
IPTC, which it cuts in a TIFF and does not wrap for a JPEG; long XMP in a JPEG; and text in a PNG that is not ASCII.
"""

import contextlib
import mmap
import os
import re
import struct
import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np
import pyvips
from PIL.JpegImagePlugin import JpegImageFile


# TIFF 6.0, BigTIFF and EXIF 2.3: bytes per number of the types 0 to 18, and the tags that point to further directories
_UNITS = (0, 1, 1, 2, 4, 4, 1, 1, 2, 4, 4, 4, 8, 4, 0, 0, 8, 8, 8)
_RATIONALS = (5, 10)
_ORIENTATION, _EXIF, _GPS, _INTEROPERABILITY, _MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_POINTERS = {_EXIF: {_INTEROPERABILITY: {}}, _GPS: {}}
# how a directory begins: the byte order, and as struct's letters the number of entries and all counts and offsets
_LAYOUTS = {b"II*\0": "<HI", b"MM\0*": ">HI", b"II+\0": "<QQ", b"MM\0+": ">QQ"}
_MAX_SEGMENT = 65_500  # of a JPEG, for EXIF and Photoshop; some cameras' notes alone fill it
MAX_XMP_IN_JPEG = 65_502
_XMP, _EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_XMP_IN_PNG = b"XML:com.adobe.xmp\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC, _IPTC_IN_PHOTOSHOP = 33723, b"\x04\x04"
# what a TIFF says about how its pixels lie, and what goes another way: XMP, IPTC, Photoshop, ICC
_PIXEL_TAGS = {*range(254, 267), *range(273, 285), *range(288, 298), 301, *range(317, 348), *range(512, 533)}
_PIXEL_TAGS |= {700, _IPTC, 34377, 34675, 37724}


def read_container(path: Path, image: pyvips.Image, picture) -> None:
    """
    Fill in `exif`, `saving` and `verbatim`; make XMP and the gain map agree that the picture is upright.

    Of a JPEG, all that Photoshop wrote is kept as one block, IPTC in it; of a TIFF, IPTC is kept apart from it.
    """
    fields = image.get_fields()
    if picture.format == "tiff":
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tags = _read_tiff(data)
        compression = int.from_bytes(tags[259][2], "little") if 259 in tags else 8
        picture.saving = {"compression": {1: "none", 5: "lzw"}.get(compression, "deflate")}
        picture.exif = _pack_exif(_without_pixel_tags(tags))
        _set_block(picture, "iptc-data", tags[_IPTC][2] if _IPTC in tags else b"")
    elif "exif-data" in fields:
        picture.exif = _upright_exif(image.get("exif-data"))
    if picture.format == "jpeg":
        picture.saving = {"interlace": bool(image.get("jpeg-multiscan"))}
        with contextlib.suppress(OSError, SyntaxError, KeyError), JpegImageFile(path) as jpeg:
            segments = [content for _, content in jpeg.applist]
            _set_block(picture, "xmp-data", next((s[len(_XMP) :] for s in segments if s.startswith(_XMP)), b""))
            photoshop = b"".join(s.removeprefix(_PHOTOSHOP) for s in segments if s.startswith(_PHOTOSHOP))
            _set_block(picture, "photoshop-data", photoshop)
            _set_block(picture, "iptc-data", b"")
            picture.verbatim = b"".join(_segment(0xE1, s) for s in segments if s.startswith(_EXTENDED_XMP))
            # quality q > 50 is (2 - q / 50) times the standard luminance table, which sums to 3685 (ITU-T T.81, K.1)
            picture.saving["Q"] = max(95, 100 - int(50 * sum(jpeg.quantization[0]) / 3685))
    if picture.format == "png":
        texts = png_chunks(path, (b"tEXt", b"zTXt", b"iTXt"))
        picture.verbatim = b"".join(text for text in texts if not text.startswith(_XMP_IN_PNG, 8))
    if picture.format == "webp":
        data, at = path.read_bytes(), 12
        while data[at : at + 4] not in (b"VP8L", b"VP8 ", b""):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
        picture.saving = {"lossless": data[at : at + 4] == b"VP8L"}
    if "xmp-data" in picture.metadata:
        xmp = re.sub(rb"""(tiff:Orientation(?:=["']|>))[2-8]""", rb"\g<1>1", _block(picture, "xmp-data"))
        if "gainmap-data" in picture.metadata:
            # the directory says where the gain map was; where it comes to lie, libvips writes outside of XMP
            xmp = re.sub(rb"<Container:Directory>.*?</Container:Directory>", b"", xmp, flags=re.DOTALL)
        _set_block(picture, "xmp-data", xmp)
    if "gainmap-data" in picture.metadata and "orientation" in fields and image.get("orientation") > 1:
        kind, gainmap = picture.metadata["gainmap-data"]
        gainmap = pyvips.Image.jpegload_buffer(gainmap).copy()
        gainmap.set_type(pyvips.GValue.gint_type, "orientation", image.get("orientation"))
        picture.metadata["gainmap-data"] = kind, gainmap.autorot().jpegsave_buffer(Q=95, keep="icc")


def complete_container(path: Path, image: pyvips.Image, picture, format: str) -> None:
    """Put EXIF, XMP, IPTC and text into a JPEG, PNG or TIFF that has none, and the resolution into a JPEG."""
    exif, xmp, iptc = picture.exif, _block(picture, "xmp-data"), _block(picture, "iptc-data")
    photoshop = _block(picture, "photoshop-data")
    verbatim = picture.verbatim if picture.format == format else b""
    if format == "jpeg":
        dots_per_inch = (min(max(round(25.4 * value), 1), 65535) for value in (image.xres, image.yres))
        segments = _segment(0xE0, struct.pack(">5sHBHHH", b"JFIF\0", 0x0102, 1, *dots_per_inch, 0))
        if len(exif) > _MAX_SEGMENT:
            tags = _read_tiff(exif)
            tags.get(_EXIF, (0, 0, {}))[2].pop(_MAKER_NOTE, None)
            exif = _pack_exif(tags)
        data = path.read_bytes()
        start = 2
        if 0 < len(exif) <= _MAX_SEGMENT:
            segments += _segment(0xE1, b"Exif\0\0" + exif)
            if data[6:10] == b"Exif":
                # beside a gain map libvips writes EXIF although it is told not to
                start += 2 + int.from_bytes(data[4:6], "big")
        if xmp:
            segments += _segment(0xE1, _XMP + xmp)
        segments += verbatim
        if iptc:
            others = (whole for kind, whole, _ in _photoshop_resources(photoshop) if kind != _IPTC_IN_PHOTOSHOP)
            header = b"8BIM" + _IPTC_IN_PHOTOSHOP + struct.pack(">HI", 0, len(iptc))
            photoshop = header + iptc + b"\0" * (len(iptc) % 2) + b"".join(others)
        for at in range(0, len(photoshop), _MAX_SEGMENT):
            segments += _segment(0xED, _PHOTOSHOP + photoshop[at : at + _MAX_SEGMENT])
        path.write_bytes(data[:2] + segments + data[start:])
    elif format == "png":
        chunks = _chunk(b"eXIf", exif) if exif else b""
        # the four bytes say: not compressed, in no language, the keyword not translated
        chunks += _chunk(b"iTXt", _XMP_IN_PNG + bytes(4) + xmp) if xmp else b""
        chunks += verbatim
        if chunks:
            data = path.read_bytes()
            # behind the signature and the header, which are 33 bytes
            path.write_bytes(data[:33] + chunks + data[33:])
    elif format == "tiff":
        new = _without_pixel_tags(_read_tiff(exif))
        iptc = iptc or b"".join(c for kind, _, c in _photoshop_resources(photoshop) if kind == _IPTC_IN_PHOTOSHOP)
        if iptc:
            new[_IPTC] = 7, len(iptc), iptc
        if new:
            with open(path, "r+b") as file:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    layout = _LAYOUTS[data[:4]]
                    tags = _read_tiff(data)
                end = file.seek(0, os.SEEK_END)
                end = file.seek(end + end % 2)
                file.write(_write_ifd(new | tags, end, layout))
                pointer = struct.pack("<" + layout[2], end)
                file.seek(len(pointer))
                file.write(pointer)


def png_chunks(path: Path, kinds: Container[bytes]) -> list[bytes]:
    """The sound chunks of these kinds in a PNG file: length, kind, content and checksum of each."""
    found = []
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            behind = int.from_bytes(head[:4], "big") + 4
            if head[4:] not in kinds:
                file.seek(behind, os.SEEK_CUR)
                continue
            chunk = head + file.read(behind)
            if chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])):
                found.append(chunk)
    return found


def _block(picture, name: str) -> bytes:
    return picture.metadata.get(name, (None, b""))[1]


def _set_block(picture, name: str, block: bytes) -> None:
    picture.metadata.pop(name, None)
    if block:
        picture.metadata[name] = pyvips.GValue.blob_type, block


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _photoshop_resources(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """What a block of Photoshop consists of (Adobe Photoshop File Formats): [(kind, all of it, its content)]."""
    resources, at = [], 0
    while at + 12 <= len(data):
        # behind signature and kind a name with its length before it, padded to even, and the length of the content
        start = at + 6 + (data[at + 6] // 2 + 1) * 2 + 4
        size = int.from_bytes(data[start - 4 : start], "big")
        end = start + size + size % 2
        resources.append((data[at + 4 : at + 6], data[at:end], data[start : start + size]))
        at = end
    return resources


def _pack_exif(tags: dict) -> bytes:
    return b"II*\0\x08\0\0\0" + _write_ifd(tags, 8, "<HI") if tags else b""


def _without_pixel_tags(tags: dict) -> dict:
    return {tag: tags[tag] for tag in tags if tag not in _PIXEL_TAGS}


def _upright_exif(exif: bytes) -> bytes:
    """EXIF from its TIFF header on, with orientation 1 and no thumbnail, and every other byte where it was."""
    exif = bytearray(exif[6:] if exif.startswith(b"Exif\0\0") else exif)
    try:
        order = _LAYOUTS.get(bytes(exif[:4]))[0]
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
    """The tags of the first picture: {tag: (type, count, value)}. Empty if this is not a TIFF."""
    layout = _LAYOUTS.get(bytes(data[:4]))
    if layout is None:
        return {}
    order, _, word = layout
    try:
        # the first offset lies at 4 in a TIFF and at 8 in a BigTIFF, as many bytes as it takes
        (at,) = struct.unpack_from(order + word, data, struct.calcsize(order + word))
        return _read_ifd(data, at, layout, _POINTERS)
    except (struct.error, OverflowError):
        return {}


def _read_ifd(data: bytes, at: int, layout: str, pointers: dict) -> dict:
    """An image file directory (TIFF 6.0). Values are little-endian bytes; that of a pointer is a directory again."""
    order, counter, word = layout
    width = struct.calcsize(order + word)
    ifd = {}
    (entries,) = struct.unpack_from(order + counter, data, at)
    first = at + struct.calcsize(order + counter)
    step = 4 + 2 * width
    for entry in range(first, first + step * entries, step):
        tag, kind, count, offset = struct.unpack_from(order + "HH" + word + word, data, entry)
        unit = _UNITS[kind] if kind < len(_UNITS) else 0
        size = unit * count * (2 if kind in _RATIONALS else 1)
        start = offset if size > width else entry + 4 + width
        value = data[start : start + size]
        if len(value) < size or not size:
            continue
        if order == ">" and tag != _IPTC:
            # IPTC is bytes, though it may be called numbers
            value = np.frombuffer(value, f">u{unit}").astype(f"<u{unit}").tobytes()
        if tag in pointers:
            value = _read_ifd(data, int.from_bytes(value, "little"), layout, pointers[tag])
        ifd[tag] = kind, count, value
    return ifd


def _write_ifd(ifd: dict, at: int, layout: str) -> bytes:
    """A little-endian image file directory for offset `at`, with its values behind it."""
    _, counter, word = layout
    width = struct.calcsize("<" + word)
    entries, values = struct.pack("<" + counter, len(ifd)), b""
    behind = at + len(entries) + (4 + 2 * width) * len(ifd) + width
    for tag, (kind, count, value) in sorted(ifd.items()):
        offset = behind + len(values)
        if isinstance(value, dict):
            kind = 4 if width == 4 else 16
            value = _write_ifd(value, offset, layout)
        if len(value) > width:
            values += value + b"\0" * (len(value) % 2)
            value = struct.pack("<" + word, offset)
        entries += struct.pack("<HH" + word, tag, kind, count) + value.ljust(width, b"\0")
    return entries + bytes(width) + values
