"""Keep XMP true to the image: how it is turned, and what else its file holds."""

import re
import shutil
from pathlib import Path

from .exif import ORIENTATION, number, read_tags
from .image_file import RAW_SUFFIXES, ImageFile, printable


_ORIENTATION = re.compile(rb"""(tiff:Orientation\s*(?:=\s*["']|>)\s*)([1-8])""")
# of Google's motion photos, of gain maps (Adobe's and Google's, Apple's)
_ATTACHED = rb"(?:GCamera:(?:MotionPhoto|MicroVideo)\w*|hdrgm:\w+|HDRGainMap:\w+)"
_ATTRIBUTE = re.compile(rb"\s" + _ATTACHED + rb"""\s*=\s*(?:"[^"]*"|'[^']*')""")
_ELEMENT = re.compile(rb"<(" + _ATTACHED + rb")>[^<]*</\1>")
_SIDES = re.compile(rb"(?:tiff:Image(?:Width|Length)|exif:Pixel[XY]Dimension)\b")
_OTHER_SIDE = {b"tiff:ImageWidth": b"tiff:ImageLength", b"exif:PixelXDimension": b"exif:PixelYDimension"}
_OTHER_SIDE |= {height: width for width, height in _OTHER_SIDE.items()}


def stated_orientation(exif: bytes, xmp: bytes) -> int:
    """Return how an image is turned, 1 to 8: as EXIF says, or XMP where EXIF says nothing."""
    orientation = number(read_tags(exif.removeprefix(b"Exif\0\0"))[0], ORIENTATION)
    if not orientation and (found := _ORIENTATION.search(xmp)):
        orientation = int(found[2])
    return orientation if 1 <= orientation <= 8 else 1


def upright_xmp(xmp: bytes, swap_sides: bool = False) -> bytes:
    """
    Set the orientation of XMP to 1 and drop its thumbnails.

    `swap_sides` also exchanges the width and the height that it states.
    """
    if swap_sides:
        xmp = _SIDES.sub(lambda side: _OTHER_SIDE[side[0]], xmp)
    return _without_element(_ORIENTATION.sub(rb"\g<1>1", xmp), b"xmp:Thumbnails")


def without_attached(xmp: bytes) -> bytes:
    """Remove what describes second pictures and videos in a file that no longer holds them."""
    return _ELEMENT.sub(b"", _ATTRIBUTE.sub(b"", _without_element(xmp, b"Container:Directory")))


def _without_element(xmp: bytes, name: bytes) -> bytes:
    """Remove an element and all within it, wherever it stands."""
    # a regular expression would take very long where many elements begin and none ends
    opening, closing = b"<" + name, b"</" + name + b">"
    kept, at = [], 0
    while (start := xmp.find(opening, at)) >= 0 and (end := xmp.find(closing, start)) >= 0:
        kept.append(xmp[at:start])
        at = end + len(closing)
    return b"".join(kept) + xmp[at:]


def copy_sidecars(path: Path, target: Path, image: ImageFile) -> None:
    """
    Copy the XMP files beside an image, `a.xmp` or `a.jpg.xmp`, to a result in another folder.

    One that says how the image was turned says the same of the result as the image itself: that it is upright. Files
    that exist are kept. Those of raw files stay where they are, since they say how to develop them.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        return
    if target.parent.resolve() == path.parent.resolve():
        return
    for suffix in (".xmp", ".XMP"):
        for sidecar, copy in (
            (path.with_suffix(suffix), target.with_suffix(suffix)),
            (path.with_name(path.name + suffix), target.with_name(target.name + suffix)),
        ):
            if not sidecar.is_file() or copy.exists():
                continue
            try:
                shutil.copy2(sidecar, copy)
                if image.orientation > 1 or image.format in ("avif", "heic"):
                    copy.write_bytes(upright_xmp(copy.read_bytes(), swap_sides=image.orientation > 4))
            except OSError as error:
                image.notes.append(f"{printable(sidecar.name)} could not be copied along: {error.strerror}")
