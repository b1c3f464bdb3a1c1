"""Read and write what libvips leaves out of PNG files (PNG, third edition): all chunks but those of the pixels."""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pyvips

from .image_file import ImageFile
from .photoshop import with_iptc
from .profiles import SRGB_CURVE, SRGB_PRIMARIES, build_profile, profile_of_codes, unknown_colours


_SIGNATURE = 8
_MAX_CHUNK = 8_000_000  # libpng's limit for everything but pixels
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# the pixels, and what only says how they are stored; iDOT is Apple's
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"hIST", b"acTL", b"fcTL", b"fdAT", b"iDOT")
_COLOURS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_KEPT = (*_COLOURS, b"mDCV", b"mDCv", b"cLLI", b"cLLi", b"tIME", b"bKGD", b"sBIT")
_XMP = b"XML:com.adobe.xmp"
# ImageMagick and ExifTool also write EXIF, IPTC and XMP as hexadecimal digits of a text
_RAW_PROFILE = re.compile(rb"Raw profile type (exif|app1|iptc|8bim|xmp)", re.IGNORECASE)
_EXIF_IN_JPEG, _XMP_IN_JPEG = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def read_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield (kind, content) of the chunks to the end; the content is `None` if it is pixels, damaged or huge."""
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"fdAT") or size > _MAX_CHUNK:
            file.seek(size + 4, os.SEEK_CUR)
            yield kind, None
        else:
            content, checksum = file.read(size), file.read(4)
            yield kind, content if checksum == struct.pack(">I", zlib.crc32(kind + content)) else None


def number_of_frames(path: Path) -> int:
    with open(path, "rb") as file:
        file.seek(_SIGNATURE)
        frames = [content for kind, content in read_chunks(file) if kind == b"acTL"]
    return max((int.from_bytes(content[:4], "big") for content in frames if content), default=1)


def read_png(path: Path, source: pyvips.Image, image: ImageFile) -> bytes:
    """
    Return the EXIF of a PNG, and fill in profiles, XMP, IPTC and `verbatim`, wherever their chunks stand.

    Raises:
        [`ImageFileError`]: If the colours are HDR.
    """
    blocks: dict[str, bytes] = {}
    first: dict[bytes, bytes] = {}
    texts: list[bytes] = []
    left_out = set()
    with open(path, "rb") as file:
        file.seek(_SIGNATURE)
        for kind, content in read_chunks(file):
            if kind in _PIXELS:
                first.setdefault(kind, content or b"")
                continue
            name = kind.decode("ascii", "backslashreplace")
            try:
                field = _read_metadata(kind, content)
            except (ValueError, zlib.error):
                field, content = None, None
            if content is None:
                what = {b"iCCP": "its colour profile"}.get(kind, "a text in it" if kind in _TEXTS else f"its {name}")
                image.notes.append(f"{what} is damaged and was left out")
            elif field:
                blocks.setdefault(*field)
                if kind == b"iCCP":
                    # counts before sRGB, gAMA and cHRM, and stays beside cICP
                    first.setdefault(kind, content)
            elif kind in _TEXTS:
                texts.append(png_chunk(kind, content))
            elif kind in _KEPT or kind[3:].islower():
                # a small fourth letter says that a chunk holds even if the pixels change
                first.setdefault(kind, content)
            else:
                left_out.add(name)
    profile = blocks.get("icc-profile-data", b"")
    if profile and not source.get_typeof("icc-profile-data") and not (source.bands < 3 and profile[16:20] == b"RGB "):
        # libpng takes only sound ones, but none of RGB for a grey image
        del blocks["icc-profile-data"], first[b"iCCP"]
        image.notes.append("its colour profile is damaged and was left out")
    if left_out:
        image.notes.append(f"what belongs to the old pixels was left out ({', '.join(sorted(left_out))})")
    depth, colour_type = first.get(b"IHDR", b"").ljust(10, b"\0")[8:10]
    if depth < 8 or colour_type == 3 or b"tRNS" in first:
        # these have another form, now that palette and transparent colour are expanded
        first = {kind: content for kind, content in first.items() if kind not in (b"bKGD", b"sBIT")}
    kept = b"".join(png_chunk(kind, content) for kind, content in first.items() if kind not in _PIXELS)
    image.verbatim = kept + b"".join(texts)
    for name in ("icc-profile-data", "xmp-data", "iptc-data", "photoshop-data"):
        image.metadata.pop(name, None)
    if first.get(b"pHYs", b"")[8:] != b"\1":
        # libvips takes the one in EXIF, or a ratio without a unit
        image.resolution = (1.0, 1.0)
    exif = blocks.pop("exif-data", b"")
    image.metadata |= blocks
    image.implied_profile = _implied_profile(path, first)
    return exif


def _read_metadata(kind: bytes, content: bytes | None) -> tuple[str, bytes] | None:
    """Return (libvips' name, value) of a chunk with EXIF, XMP, IPTC or a profile; `None` for any other."""
    if content is None:
        return None
    if kind == b"eXIf":
        return "exif-data", content
    keyword, _, rest = content.partition(b"\0")
    if kind == b"iCCP":
        return "icc-profile-data", _inflate(rest[1:])
    raw = _RAW_PROFILE.fullmatch(keyword)
    if kind not in _TEXTS or not (raw or keyword == _XMP):
        return None
    if kind == b"zTXt":
        text = _inflate(rest[1:])
    elif kind == b"iTXt":
        # the language and the translated keyword end in a zero
        _, _, text = rest[2:].split(b"\0", 2)
        text = _inflate(text) if rest[:1] == b"\1" else text
    else:
        text = rest
    if not raw:
        return "xmp-data", text
    # a name and a length stand before the digits
    _, _, digits = text.lstrip().split(b"\n", 2)
    profile = bytes.fromhex(digits.decode())
    name = raw[1].lower()
    if name == b"exif" or profile.startswith(_EXIF_IN_JPEG):
        return "exif-data", profile
    if name in (b"xmp", b"app1"):
        return "xmp-data", profile.removeprefix(_XMP_IN_JPEG)
    return "photoshop-data" if profile.startswith(b"8BIM") else "iptc-data", profile


def _inflate(data: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(data, _MAX_CHUNK)
    if not decompressor.eof:
        raise ValueError("too long, or not whole")
    return text


def _implied_profile(path: Path, chunks: dict[bytes, bytes]) -> bytes:
    """Return the profile that says what cICP says, or gAMA and cHRM where nothing else states the colours."""
    if len(codes := chunks.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, full_range = codes
        profile = profile_of_codes(primaries, transfer) if (matrix, full_range) == (0, 1) else None
        if profile is None:
            raise unknown_colours(path)
        return profile
    if b"iCCP" in chunks or b"sRGB" in chunks:
        return b""
    gamma, primaries = SRGB_CURVE, SRGB_PRIMARIES
    if (
        len(content := chunks.get(b"gAMA", b"")) == 4
        and 10_000 <= (value := int.from_bytes(content, "big")) <= 1_000_000
    ):
        gamma = 100_000 / value
    if len(content := chunks.get(b"cHRM", b"")) == 32:
        values = [value / 100_000 for value in struct.unpack(">8I", content)]
        primaries = tuple(zip(values[::2], values[1::2], strict=True))
    if (gamma, primaries) == (SRGB_CURVE, SRGB_PRIMARIES):
        return b""
    return build_profile(primaries, gamma)


def complete_png(path: Path, image: ImageFile, exif: bytes, xmp: bytes, profile: bytes) -> None:
    """Put metadata, profile and the chunks kept byte for byte into a PNG, in place of those of libvips."""
    verbatim = image.verbatim if image.format == "png" else b""
    kept = {kind: content for kind, content in read_chunks(BytesIO(verbatim)) if content is not None}
    if b"iCCP" in kept and "icc-profile-data" not in image.metadata:
        # it is damaged
        verbatim = verbatim.replace(png_chunk(b"iCCP", kept[b"iCCP"]), b"")
    chunks = b""
    if profile and not any(kind in kept for kind in _COLOURS):
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    chunks += verbatim
    chunks += png_chunk(b"eXIf", exif) if exif else b""
    # the four bytes say: not compressed, in no language, the keyword not translated
    chunks += png_chunk(b"iTXt", _XMP + bytes(5) + xmp) if xmp else b""
    if photoshop := with_iptc(image.metadata.get("photoshop-data", b""), image.metadata.get("iptc-data", b"")):
        digits = b"\niptc\n%8d\n" % len(photoshop) + photoshop.hex("\n", 36).encode() + b"\n"
        chunks += png_chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(digits))

    data = path.read_bytes()
    left_out = (b"iCCP", b"sRGB", *((b"pHYs",) if b"pHYs" in kept or not image.has_resolution else ()))
    file = BytesIO(data)
    file.seek(_SIGNATURE)
    own = b""
    for kind, content in read_chunks(file):
        if content is None:
            # the pixels
            break
        start = file.tell()
        if kind == b"IHDR":
            own += png_chunk(kind, content) + chunks
        elif kind not in left_out:
            own += png_chunk(kind, content)
    path.write_bytes(data[:_SIGNATURE] + own + data[start:])


def png_losses(image: ImageFile) -> Iterator[str]:
    """Yield what of a PNG no other format can hold; others state colours and resolution in their own ways."""
    for kind in dict.fromkeys(kind for kind, _ in read_chunks(BytesIO(image.verbatim))):
        if kind in _TEXTS:
            yield "text"
        elif kind not in (*_COLOURS, b"pHYs", b"bKGD", b"sBIT"):
            yield kind.decode("ascii", "backslashreplace")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
