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
_DIRECTORY, _END_OF_DIRECTORY = b"<Container:Directory", b"</Container:Directory>"


def stated_orientation(exif: bytes, xmp: bytes) -> int:
    """Return how an image is turned, 1 to 8: as EXIF says, or XMP where EXIF says nothing."""
    orientation = number(read_tags(exif.removeprefix(b"Exif\0\0"))[0], ORIENTATION)
    if not orientation and (found := _ORIENTATION.search(xmp)):
        orientation = int(found[2])
    return orientation if 1 <= orientation <= 8 else 1


def upright_xmp(xmp: bytes) -> bytes:
    return _ORIENTATION.sub(rb"\g<1>1", xmp)


def without_attached(xmp: bytes) -> bytes:
    """Remove what describes second pictures and videos in a file that no longer holds them."""
    kept, at = [], 0
    while (start := xmp.find(_DIRECTORY, at)) >= 0 and (end := xmp.find(_END_OF_DIRECTORY, start)) >= 0:
        kept.append(xmp[at:start])
        at = end + len(_END_OF_DIRECTORY)
    return _ELEMENT.sub(b"", _ATTRIBUTE.sub(b"", b"".join(kept) + xmp[at:]))


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
                if image.orientation > 1:
                    copy.write_bytes(upright_xmp(copy.read_bytes()))
            except OSError as error:
                image.notes.append(f"{printable(sidecar.name)} could not be copied along: {error.strerror}")
