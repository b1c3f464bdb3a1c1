"""Read and write what libvips leaves out of JPEG files: metadata, comments, and what stands behind the image."""

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyvips

from .exif import exif_resolution, read_tags
from .image_file import ImageFile
from .libvips import with_fields
from .photoshop import with_iptc
from .xmp import stated_orientation


MAX_XMP_IN_JPEG = 65_502
MAX_SEGMENT = 65_500  # for EXIF, Photoshop and profiles; some cameras' maker notes alone fill it
MAX_PROFILE = 255 * MAX_SEGMENT
_MAX_HEADER = 2**26  # extended XMP alone may take megabytes
_APP0, _APP1, _APP2, _APP11, _APP13, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE, 0xEF
_COMMENT, _DQT, _SOS, _SOI, _END = 0xFE, 0xDB, 0xDA, b"\xff\xd8", b"\xff\xd9"
# any marker in the pixels but a restart; a zero behind the byte says that it is none
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_UNITS = {1: 25.4, 2: 10.0}  # of a density, in millimetres
_JFIF, _EXIF, _PHOTOSHOP, _PROFILE = b"JFIF\0", b"Exif\0", b"Photoshop 3.0\0", b"ICC_PROFILE\0"
_XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
# of Adobe and Google, of ISO 21496-1, and of Apple
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496"
_GAIN_MAP = re.compile(rb"hdrgm:|urn:iso:std:iso:ts:21496|HDRGainMap")
_NO_PADDING, _STATED_PADDING = re.compile(rb"[^\0]"), re.compile(rb"""(Item:Padding\s?=\s?["'])\d+""")
_MAX_DESCRIPTION = 200_000
_MAX_PARTS = 100
_MPF, _NUMBER_OF_PICTURES, _PICTURES, _THUMBNAILS = b"MPF\0", 0xB001, 0xB002, (0x010001, 0x010002)


def read_jpeg(path: Path, source: pyvips.Image, image: ImageFile) -> bytes:
    """Return the EXIF of a JPEG, and fill in XMP, IPTC, `saving`, `verbatim` and `attached`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        segments, _ = _header(data[:_MAX_HEADER])
        parts = _parts_behind(data)
        pictures = next((content for _, content in segments if content.startswith(_MPF)), b"")
        start = data.find(pictures) + len(_MPF)
    contents = [content for _, content in segments]
    exif = next((content for content in contents if content.startswith(_EXIF)), b"")
    xmp = next((content.removeprefix(_XMP) for content in contents if content.startswith(_XMP)), b"")
    photoshop = b"".join(content.removeprefix(_PHOTOSHOP) for content in contents if content.startswith(_PHOTOSHOP))
    tables = b"".join(content for marker, content in segments if marker == _DQT)
    image.saving = {"interlace": bool(source.get("jpeg-multiscan")), "Q": max(95, _quality(tables))}
    if any(content.startswith(_PROFILE) for content in contents) and not source.get_typeof("icc-profile-data"):
        image.notes.append("its colour profile is damaged and was left out")

    for name, start_of in (("EXIF", _EXIF), ("XMP", _XMP)):
        if sum(content.startswith(start_of) for content in contents) > 1:
            image.notes.append(f"all but the first segment of its {name} was left out")

    # libvips makes 72 dots per inch of unknown
    image.resolution = exif_resolution(exif)
    for content in contents:
        if content.startswith(_JFIF) and len(content) >= 12 and not image.has_resolution:
            unit, x, y = struct.unpack_from(">BHH", content, 7)
            if unit in _UNITS and x and y:
                image.resolution = x / _UNITS[unit], y / _UNITS[unit]

    # behind the image: the pictures of the list in its order, then all else
    listed, others = [], dict(parts)
    try:
        entries = _entries(pictures)
    except struct.error:
        entries = []
    for entry in entries[1:]:
        part = others.pop(start + entry[2], None)
        if entry[0] & 0xFFFFFF in _THUMBNAILS:
            image.notes.append("a smaller copy of the old pixels was left out")
        elif part:
            listed.append((entry, part))
    orientation = stated_orientation(exif, xmp)
    kept_entries, has_gain_map = entries[:1], False
    for entry, part in [*listed, *((None, part) for part in others.values())]:
        what = _describe(part)
        if what == "gain map" and orientation > 1:
            turned = _turned(part, orientation, source)
            if turned is None:
                image.notes.append("its gain map for HDR screens is damaged and was left out")
                continue
            # where the directory of the parts says how long each is
            xmp = xmp.replace(b'Item:Length="%d"' % len(part), b'Item:Length="%d"' % len(turned))
            part = turned
        has_gain_map |= what == "gain map"
        image.attached.append((what, part))
        kept_entries += [entry] if entry else []

    for marker, content in segments:
        if content.startswith(_JFIF):
            content = content[:12] + bytes(2)  # no thumbnail
        elif content.startswith(_MPF) and len(kept_entries) > 1:
            content = _with_entries(content, kept_entries)
        elif marker == _APP11 and content.startswith(b"JP"):
            image.notes.append("its content credentials, which vouch for the old pixels, were left out")
            continue
        elif (
            not (_APP1 <= marker <= _APP15 or marker == _COMMENT)
            or marker == _APP14
            or content.startswith((_EXIF, _XMP, _PHOTOSHOP, _PROFILE, _MPF))
            or (content.startswith(_ISO_GAIN_MAP) and not has_gain_map)
        ):
            continue
        image.verbatim += _segment(marker, content)
    # the directory of the parts counts what fills up the space between them, which is left out
    xmp = _STATED_PADDING.sub(rb"\g<1>0", xmp)
    image.metadata.pop("iptc-data", None)
    for name, block in {"xmp-data": xmp, "photoshop-data": photoshop}.items():
        image.metadata.pop(name, None)
        image.metadata |= {name: block} if block else {}
    return exif


def complete_jpeg(path: Path, image: ImageFile, exif: bytes, xmp: bytes, profile: bytes) -> None:
    """Put metadata, profile, the segments kept byte for byte and what stood behind the old image into a JPEG."""
    is_jpeg = image.format == "jpeg"
    kept, _ = _header(_SOI + image.verbatim + bytes(4)) if is_jpeg else ([], 0)
    segments = [segment for segment in kept if segment[1].startswith(_JFIF)]
    if not segments and not (is_jpeg and exif):
        unit, densities = 0, [1, 1]
        if image.has_resolution:
            unit, densities = 1, [min(max(round(25.4 * value), 1), 65535) for value in image.resolution]
        segments = [(_APP0, struct.pack(">5sHBHHH", _JFIF, 0x0102, unit, *densities, 0))]
    segments += [(_APP1, b"Exif\0\0" + exif)] if exif else []
    segments += [(_APP1, _XMP + xmp)] if xmp else []
    segments += [segment for segment in kept if not segment[1].startswith(_JFIF)]
    photoshop = with_iptc(image.metadata.get("photoshop-data", b""), image.metadata.get("iptc-data", b""))
    segments += [(_APP13, _PHOTOSHOP + part) for part in _pieces(photoshop)]
    pieces = _pieces(profile) if len(profile) <= MAX_PROFILE else []
    segments += [(_APP2, _PROFILE + bytes([i, len(pieces)]) + part) for i, part in enumerate(pieces, 1)]

    data = path.read_bytes()
    # libvips' own JFIF comes first
    start = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    data = _SOI + b"".join(_segment(*segment) for segment in segments) + data[start:]
    parts = [part for _, part in image.attached] if is_jpeg else []
    for _, content in kept:
        if content.startswith(_MPF):
            # the place of a picture counts from behind the name of this segment
            offset = len(data) - data.index(content) - len(_MPF)
            first, *entries = _entries(content)
            placed = [(first[0], len(data), *first[2:])]
            for entry, part in zip(entries, parts, strict=False):
                placed.append((entry[0], len(part), offset, *entry[3:]))
                offset += len(part)
            data = data.replace(content, _with_entries(content, placed), 1)
    path.write_bytes(data + b"".join(parts))


def repair_jpeg(data: bytes) -> bytes:
    """Repair what libjpeg warns of before and after the pixels, so that any other warning means lost pixels."""
    segments, start = _header(data)
    frame = next((content for marker, content in segments if marker in (0xC0, 0xC1)), b"")
    repaired, in_one_scan = bytearray(_SOI), False
    for marker, content in segments:
        if marker == _APP0 and content.startswith(_JFIF):
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


def jpeg_losses(image: ImageFile) -> Iterator[str]:
    """Yield what of a JPEG no other format can hold."""
    yield from dict.fromkeys(what for what, _ in image.attached)
    segments, _ = _header(_SOI + image.verbatim + bytes(4))
    for marker in sorted(
        {marker for marker, content in segments if not content.startswith((_JFIF, _MPF, _ISO_GAIN_MAP))}
    ):
        yield "comment" if marker == _COMMENT else f"APP{marker - _APP0} segment"


def _header(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
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


def _pieces(data: bytes) -> list[bytes]:
    return [data[at : at + MAX_SEGMENT] for at in range(0, len(data), MAX_SEGMENT)]


def _quality(tables: bytes) -> int:
    """Return the quality on libjpeg's scale: above 50, (2 - q / 50) times the table K.1 of ITU-T T.81 (sum 3685)."""
    total, at = 0, 0
    while at < len(tables):
        precision, number = divmod(tables[at], 16)
        end = at + 1 + (128 if precision else 64)
        if number == 0:
            total = np.frombuffer(tables[at + 1 : end], ">u2" if precision else np.uint8).sum()
        at = end
    return 100 - int(50 * total / 3685)


def _parts_behind(data: mmap.mmap) -> dict[int, bytes]:
    """Return what stands behind an image, {offset: bytes}: other JPEGs, then whatever is no JPEG, as a video."""
    parts, at = {}, _end(data, 2)
    while (found := _NO_PADDING.search(data, at)) and len(parts) < _MAX_PARTS:
        start = found.start()
        if data[start : start + 2] != _SOI:
            break
        at = _end(data, start + 2)
        parts[start] = data[start:at]
    if found:
        # a video begins with zeros of its own
        parts[at] = data[at:]
    return parts


def _end(data: mmap.mmap, at: int) -> int:
    """Return the offset behind a JPEG, from any of its markers on."""
    while found := _MARKER.search(data, at):
        at = found.end()
        if found[1] == _END[1:]:
            return at
        at += int.from_bytes(data[at : at + 2], "big")
    return len(data)


def _describe(part: bytes) -> str:
    if part.startswith(_SOI):
        return "gain map" if _GAIN_MAP.search(part, 0, _MAX_DESCRIPTION) else "second picture"
    return "video" if re.search(rb"ftyp|MotionPhoto_Data", part[:_MAX_DESCRIPTION]) else "data behind the image"


def _turned(part: bytes, orientation: int, source: pyvips.Image) -> bytes | None:
    """Return a gain map turned upright as its image, or `None` if it does not decode."""
    try:
        gain = pyvips.Image.jpegload_buffer(part)
        if gain.width > source.width or gain.height > source.height:
            return None  # no gain map is larger than its image
        gain = with_fields(gain, {"orientation": orientation}).autorot().jpegsave_buffer(Q=95, keep="none")
    except pyvips.Error:
        return None
    # its own segments say what it means
    segments = [segment for segment in _header(part)[0] if _APP1 <= segment[0] <= _APP15 and segment[0] != _APP14]
    return gain[:2] + b"".join(_segment(*segment) for segment in segments) + gain[2:]


def _entries(pictures: bytes) -> list[tuple]:
    """Return (kind, size, offset, and two numbers) of each picture in a list (CIPA DC-007, multi-picture format)."""
    value = read_tags(pictures.removeprefix(_MPF))[0].get(_PICTURES, (0, 0, b""))[2]
    order = "<" if pictures.startswith(_MPF + b"II") else ">"
    return list(struct.iter_unpack(order + "IIIHH", value))


def _with_entries(pictures: bytes, entries: list[tuple]) -> bytes:
    """Write as many or fewer entries into a list of pictures."""
    block, order, start = bytearray(pictures), "<" if pictures.startswith(_MPF + b"II") else ">", len(_MPF)
    at = start + struct.unpack_from(order + "I", block, start + 4)[0]
    (count,) = struct.unpack_from(order + "H", block, at)
    for tag_at in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(order + "H", block, tag_at)
        if tag == _NUMBER_OF_PICTURES:
            struct.pack_into(order + "I", block, tag_at + 8, len(entries))
        if tag == _PICTURES:
            struct.pack_into(order + "I", block, tag_at + 4, 16 * len(entries))
            (value_at,) = struct.unpack_from(order + "I", block, tag_at + 8)
            block[start + value_at : start + value_at + 16 * len(entries)] = b"".join(
                struct.pack(order + "IIIHH", *entry) for entry in entries
            )
    return bytes(block)
