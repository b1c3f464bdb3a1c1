"""Formats of image files, how to find them, and what is kept of one."""

import glob
import importlib.util
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


FORMATS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg")
FORMATS |= {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
FORMATS |= {".avif": "avif", ".heic": "heic", ".heif": "heic", ".hif": "heic"}
RAW = ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srw .x3f"
# of files that are read, but never written
RAW_SUFFIXES = frozenset(RAW.split())
# the largest sensors have 151 million; eight shots of a shifted sensor make 241
MAX_PIXELS = 250_000_000


class ImageFileError(OSError):
    """An image file cannot be read or written; the message is one sentence for the user."""


@dataclass
class ImageFile:
    """
    The pixels of an image file, and everything needed to write other pixels in their place.

    Args:
        pixels: [H, W, C] uint8 or uint16, upright; C is 1 (grey), 2 (grey, alpha), 3 (sRGB) or 4 (sRGB, alpha).
        format: One of the values of `FORMATS`.
        bits: Bits per channel in the file: 8, 10, 12 or 16.
        metadata: Header fields to write back, {libvips' name: value}.
        resolution: Pixels per millimetre, horizontal and vertical.
        orientation: How the image was turned in the file, 1 to 8 as in EXIF.
        exif: The EXIF block from its TIFF header on, with orientation 1 and no thumbnail.
        implied_profile: An ICC profile of the colours that the file states in another way, as gAMA in a PNG.
        native: [H, W, 1 or 3], the file's own numbers if its profile is not sRGB.
        extra_samples: What the last of 2 or 4 channels is, as in TIFF: 2 transparency, 1 transparency that the colours
            are multiplied with, 0 anything else.
        cmyk: Whether the file was CMYK; `pixels`, and what is written, are sRGB.
        saving: How the file was compressed, as options of libvips' saver.
        verbatim: Bytes that only the same format can hold: chunks of a PNG, segments of a JPEG.
        attached: What stands behind the image in a JPEG: (what it is, its bytes).
        notes: What was wrong with the file or could not be kept, to tell the user.
    """

    pixels: np.ndarray
    format: str
    bits: int
    metadata: dict = field(default_factory=dict)
    resolution: tuple[float, float] = (1.0, 1.0)
    orientation: int = 1
    exif: bytes = b""
    implied_profile: bytes = b""
    native: np.ndarray | None = None
    cmyk: bool = False
    saving: dict = field(default_factory=dict)
    extra_samples: int = 2
    verbatim: bytes = b""
    attached: list[tuple[str, bytes]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def profile(self) -> bytes:
        return self.implied_profile or self.metadata.get("icc-profile-data", b"")

    @property
    def has_resolution(self) -> bool:
        # libvips' value for unknown
        return self.resolution != (1.0, 1.0)

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[-1] in (2, 4)


def printable(name: str | Path) -> str:
    """Return a file name for a message: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def readable_suffixes() -> set[str]:
    """List the extensions of files that this installation reads: raw ones need rawpy."""
    return {*FORMATS, *(RAW_SUFFIXES if importlib.util.find_spec("rawpy") else ())}


def list_images(inputs: Iterable[str | Path], recursive: bool = False) -> list[Path]:
    """
    List the images in files, folders and globs, sorted, each once; `recursive` includes subfolders.

    A file counts whatever its name. In folders, and among what a glob matches, files count that have one of the
    [`readable_suffixes`] and are not hidden.

    Raises:
        `FileNotFoundError`: If an input does not exist or holds no image.
        [`ImageFileError`]: If a folder may not be read.
    """
    found, suffixes = set(), readable_suffixes()
    for given in map(str, inputs):
        if os.path.lexists(given) and not os.path.isdir(given):
            found.add(Path(given))
            continue
        matches = [given] if os.path.isdir(given) else glob.glob(given, recursive=True)
        if not matches:
            raise FileNotFoundError(f"{printable(given)} does not exist.")
        images = [file for file in map(Path, matches) if file.is_file() and file.suffix.lower() in suffixes]
        for folder in filter(os.path.isdir, matches):
            try:
                images += pictures_in(folder, suffixes, recursive)
            except OSError as error:
                raise ImageFileError(f"{printable(folder)} cannot be read: {error.strerror}.") from error
        if not images:
            raise FileNotFoundError(
                f"{printable(given)} holds no image: no file there ends in {', '.join(sorted(suffixes))}."
            )
        found.update(images)
    return sorted(found)


def pictures_in(folder: str | Path, suffixes: Container[str], recursive: bool) -> list[Path]:
    """List the files of a folder that end in one of the `suffixes` and are not hidden, sorted."""
    folder = Path(folder)
    return sorted(
        file
        for file in (folder.rglob("*") if recursive else folder.iterdir())
        if file.suffix.lower() in suffixes and file.is_file()
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def for_display(pixels: np.ndarray) -> np.ndarray:
    """Reduce [H, W, C] to the 8 bits that Pillow takes, [H, W, C] or [H, W] for one channel."""
    pixels = (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
