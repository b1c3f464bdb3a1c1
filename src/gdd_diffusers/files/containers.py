"""
Read and write what libvips leaves out of image files, or changes: everything but the pixels.

libvips rewrites EXIF without the tags that it does not know, and with some that were not there; it stops reading a PNG
at its pixels; it drops the profile of a grey image, IPTC, comments, text that is not ASCII, and second pictures. So it
encodes pixels only, and the rest is put into its files, as the bytes that they were.
"""

import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pyvips

from .exif import (
    COMPRESSION,
    EXIF,
    EXIF_SIDES,
    EXTRA_SAMPLES,
    ICC,
    IPTC,
    PHOTOSHOP,
    PHOTOSHOP_LAYERS,
    RESOLUTION_UNIT,
    SUB_IMAGES,
    X_RESOLUTION,
    XMP,
    Y_RESOLUTION,
    append_tags,
    exif_resolution,
    full_pages,
    number,
    pack_exif,
    read_tags,
    upright_exif,
    without_pixel_tags,
)
from .image_file import ImageFile
from .jpeg import MAX_PROFILE, MAX_SEGMENT, complete_jpeg, jpeg_losses, read_jpeg
from .photoshop import iptc_of, without_iptc, without_thumbnails
from .png import complete_png, png_losses, read_png
from .profiles import profile_of_codes, unknown_colours
from .xmp import stated_orientation, upright_xmp, without_attached


_EXIF_HEADER = b"Exif\0\0"
# EXIF of which a writer of WebP and AVIF makes room for the true one
PLACEHOLDER = _EXIF_HEADER + b"II*\0\x08\0\0\0" + bytes(6)


def read_container(path: Path, source: pyvips.Image, image: ImageFile, page: int = 0) -> None:
    """
    Fill in everything but the pixels, as of an image that is upright.

    In a JPEG, everything that Photoshop wrote is one block that includes IPTC; in a TIFF, IPTC is kept apart.

    Raises:
        [`ImageFileError`]: If the colours are HDR.
    """
    if image.format == "jpeg":
        exif = read_jpeg(path, source, image)
    elif image.format == "png":
        exif = read_png(path, source, image)
    elif image.format == "tiff":
        exif = _read_tiff(path, image, page)
        image.resolution = exif_resolution(exif)
    else:
        exif = source.get("exif-data") if source.get_typeof("exif-data") else b""
        image.resolution = exif_resolution(exif)
        if image.format == "webp":
            image.saving = {"lossless": _is_lossless_webp(path)}
        else:
            _read_codes(path, image)
    xmp = image.metadata.get("xmp-data", b"")
    if image.format in ("avif", "heic"):
        # these are turned by their own boxes, and by their decoder; iPhones state the sides as they were before
        _, _, camera = read_tags(exif.removeprefix(_EXIF_HEADER))[0].get(EXIF, (0, 0, {}))
        swap_sides = [number(camera, side) for side in EXIF_SIDES] == [source.height, source.width]
    else:
        image.orientation = stated_orientation(exif, xmp)
        swap_sides = image.orientation > 4
    image.exif = upright_exif(exif, swap_sides)
    if exif and not image.exif:
        image.notes.append("its EXIF is damaged and was left out")
    if xmp:
        image.metadata["xmp-data"] = upright_xmp(xmp, swap_sides)
    if photoshop := image.metadata.get("photoshop-data"):
        image.metadata["photoshop-data"] = without_thumbnails(photoshop)


def complete_container(path: Path, image: ImageFile, format: str, profile: bytes) -> None:
    """Put everything but the pixels into a file of libvips."""
    exif, xmp = fitting_exif(image, format), fitting_xmp(image, format)
    if format == "jpeg":
        complete_jpeg(path, image, exif, xmp, profile)
    elif format == "png":
        complete_png(path, image, exif, xmp, profile)
    elif format == "tiff":
        _complete_tiff(path, image, exif, xmp, profile)
    elif exif and format == "webp":
        _complete_webp(path, exif)
    elif exif:
        _complete_avif(path, exif)


def fitting_xmp(image: ImageFile, format: str) -> bytes:
    """Return the XMP for a file: it describes what stands behind the image only where that is kept."""
    xmp = image.metadata.get("xmp-data", b"")
    return xmp if image.attached and format == image.format else without_attached(xmp)


def fitting_exif(image: ImageFile, format: str) -> bytes:
    """Return the EXIF for a file: with the resolution if that has no other place, and no more than a JPEG can hold."""
    exif = image.exif
    if format in ("webp", "avif", "heic") and image.has_resolution:
        tags, _ = read_tags(exif)
        if X_RESOLUTION not in tags:
            x, y = (struct.pack("<II", round(2540 * value), 100) for value in image.resolution)
            tags |= {X_RESOLUTION: (5, 1, x), Y_RESOLUTION: (5, 1, y), RESOLUTION_UNIT: (3, 1, b"\2\0")}
            exif = pack_exif(tags)
    elif format == "jpeg" and len(exif) > MAX_SEGMENT:
        exif = _shortened(exif)
    return exif


def _shortened(exif: bytes) -> bytes:
    """Leave out the longest values of an EXIF block, until it fits into a JPEG."""
    tags, _ = read_tags(exif)
    length = len(pack_exif(tags))
    directories = [tags, *(value for _, _, value in tags.values() if isinstance(value, dict))]
    values = [(directory, tag, directory[tag][2]) for directory in directories for tag in directory]
    values = [value for value in values if isinstance(value[2], bytes)]
    for directory, tag, value in sorted(values, key=lambda item: len(item[2]), reverse=True):
        if length <= MAX_SEGMENT:
            break
        del directory[tag]
        length -= 12 + (len(value) if len(value) > 4 else 0)
    return pack_exif(tags)


def losses(image: ImageFile, format: str, bits: int) -> Iterator[str]:
    """Yield a note on everything in an image that a file of this format will not hold."""
    if image.cmyk:
        yield "it was CMYK, and its result is sRGB"
    if bits < image.bits:
        yield f"its {image.bits} bits became {bits}, all that {format} holds"
    if image.format != format:
        parts = {"jpeg": jpeg_losses, "png": png_losses}.get(image.format, lambda _: ())(image)
        if names := ", ".join(dict.fromkeys(parts)):
            yield f"what only a {image.format} holds was left out ({names})"
    if format in ("webp", "avif", "heic"):
        if image.metadata.get("iptc-data") or iptc_of(image.metadata.get("photoshop-data", b"")):
            yield f"its IPTC was left out, which {format} has no place for"
        if image.profile[16:20] == b"GRAY":
            yield f"its grey profile was left out and its pixels are sRGB, since {format} has no grey"
    if image.has_alpha and image.extra_samples == 0 and format != "tiff":
        yield f"its extra channel, which is not transparency, was left out, since {format} has no place for it"
    if format == "jpeg" and len(image.exif) > MAX_SEGMENT:
        yield "the longest tags of its EXIF were left out, since jpeg holds 64 KB of it"
    if format == "jpeg" and len(image.profile) > MAX_PROFILE:
        yield "its colour profile was left out, since jpeg holds 16 MB of it"


def _read_tiff(path: Path, image: ImageFile, page: int) -> bytes:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tags, incomplete = read_tags(data, page)
        _, pages = full_pages(data)
    if pages > 1:
        # only then are they not refused
        image.notes.append("the smaller copies or masks on its other pages were left out")
    if incomplete:
        image.notes.append("some of its tags are damaged, repeat others or share their bytes, and were left out")
    if SUB_IMAGES in tags:
        image.notes.append("the smaller or further images within it were left out")
    if PHOTOSHOP_LAYERS in tags:
        image.notes.append("its Photoshop layers were left out")
    image.saving = {"compression": {1: "none", 5: "lzw"}.get(number(tags, COMPRESSION, 8), "deflate")}
    image.extra_samples = number(tags, EXTRA_SAMPLES, 2)
    image.metadata.pop("iptc-data", None)
    if IPTC in tags:
        iptc, in_photoshop = tags[IPTC][2], iptc_of(image.metadata.get("photoshop-data", b""))
        # ImageMagick cuts off the tag
        image.metadata["iptc-data"] = in_photoshop if in_photoshop.startswith(iptc) else iptc
    return pack_exif(without_pixel_tags(tags))


def _complete_tiff(path: Path, image: ImageFile, exif: bytes, xmp: bytes, profile: bytes) -> None:
    tags = without_pixel_tags(read_tags(exif)[0])
    photoshop = image.metadata.get("photoshop-data", b"")
    iptc = image.metadata.get("iptc-data") or iptc_of(photoshop)
    blocks = {(XMP, 1): xmp, (IPTC, 7): iptc, (PHOTOSHOP, 1): without_iptc(photoshop), (ICC, 7): profile}
    tags |= {tag: (kind, len(block), block) for (tag, kind), block in blocks.items() if block}
    if not image.has_resolution and X_RESOLUTION not in tags:
        one = struct.pack("<II", 1, 1)
        tags |= {X_RESOLUTION: (5, 1, one), Y_RESOLUTION: (5, 1, one), RESOLUTION_UNIT: (3, 1, b"\1\0")}
    if image.has_alpha:
        tags[EXTRA_SAMPLES] = 3, 1, struct.pack("<H", image.extra_samples)
    if tags:
        with open(path, "r+b") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                head, tail = append_tags(data, tags)
            file.write(head)
            file.seek(0, os.SEEK_END)
            file.write(tail)


def _is_lossless_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(12)
        while (head := file.read(8))[:4] not in (b"VP8L", b"VP8 ", b""):
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)
    return head[:4] == b"VP8L"


def _complete_webp(path: Path, exif: bytes) -> None:
    """Put EXIF in the place of the placeholder."""
    data, at = path.read_bytes(), 12
    while data[at : at + 4] != b"EXIF":
        at = _behind(data, at)
    chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    data = data[:at] + chunk + data[_behind(data, at) :]
    path.write_bytes(b"RIFF" + struct.pack("<I", len(data) - 8) + data[8:])


def _behind(webp: bytes, at: int) -> int:
    """Return the offset behind a chunk."""
    size = int.from_bytes(webp[at + 4 : at + 8], "little")
    return at + 8 + size + size % 2


def _complete_avif(path: Path, exif: bytes) -> None:
    """Append EXIF in a box of its own, and have the table of items (`iloc`) point there, not to the placeholder."""
    data = path.read_bytes()
    # before the EXIF stands where its TIFF header is
    start = data.rindex(b"\0\0\0\6" + PLACEHOLDER[:14])
    entry = data.index(struct.pack(">IHI", start, 1, 0), 0, start)
    item = b"\0\0\0\6" + _EXIF_HEADER + exif
    box = struct.pack(">I4s", 8 + len(item), b"mdat") + item
    moved = struct.pack(">IHII", len(data) + 8, 1, 0, len(item))
    path.write_bytes(data[:entry] + moved + data[entry + len(moved) :] + box)


def _read_codes(path: Path, image: ImageFile) -> None:
    """Take the colours that an AVIF states by codes of ITU-T H.273, of which libvips keeps none but sRGB."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while (box := data[at : at + 16])[4:8] not in (b"meta", b""):
            size = int.from_bytes(box[8:16] if box[:4] == b"\0\0\0\1" else box[:4], "big")
            at += size if size >= 8 else len(data)
        meta = data[at : at + int.from_bytes(box[:4], "big")]
    codes = re.search(rb"colrnclx\0(.)\0(.)", meta, re.DOTALL)
    if codes and not image.profile:
        profile = profile_of_codes(codes[1][0], codes[2][0])
        if profile is None:
            raise unknown_colours(path)
        image.implied_profile = profile
