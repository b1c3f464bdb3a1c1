"""Read image files without losing anything in them."""

import errno
import mmap
import os
import re
import stat
import struct
from pathlib import Path

import numpy as np
import pyvips

from .containers import read_container
from .exif import COMPRESSION, EXTRA_SAMPLES, full_pages, number, read_tags, with_number, with_pixel_tags_only
from .heic import decode_heic
from .image_file import FORMATS, MAX_PIXELS, RAW_SUFFIXES, ImageFile, ImageFileError, printable
from .jpeg import repair_jpeg
from .libvips import (
    is_damaged,
    libvips_errors,
    profile_changes_colours,
    reason,
    to_numpy,
    to_srgb,
    to_vips,
    with_fields,
)
from .png import number_of_frames
from .raw import RawOptions, read_raw


_SIGNATURES = {
    "jpeg": rb"\xff\xd8",
    "png": rb"\x89PNG\r\n\x1a\n",
    "tiff": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "webp": rb"RIFF....WEBP",
    "heif": rb"....ftyp(avi[fs]|he[iv][cmsx]|mif1|msf1)",
    # Fujifilm, Olympus, Panasonic, Canon (twice), Minolta, Sigma; the others' raw files are TIFFs
    "raw": rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|....ftypcrx |II\x1a\0\0\0HEAPCCDR|\0MRM|FOVb",
}
_FILE_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
_FILE_KINDS |= {stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
MAX_SIDE = 1_000_000
# a block of 8x8 pixels of a JPEG takes at least a bit; deflate packs 1032 bytes into one, LZW 2730, PackBits 64
_MAX_PIXELS_PER_BYTE = {"jpeg": 512, "png": 8 * 1032}
_MAX_PIXELS_PER_BYTE_IN_TIFF = {1: 8, 5: 8 * 2730, 7: 512, 8: 8 * 1032, 32773: 8 * 64, 32946: 8 * 1032}
# libjpeg visits all pixels in every scan, however few bytes the scan has
_MAX_SCANNED_PIXELS = 50_000_000_000
_MAX_BYTES_TO_MEND = 500_000_000
_COLOUR_CHANNELS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb16": 3, "cmyk": 4}
_METADATA = ("icc-profile-data", "xmp-data", "iptc-data", "photoshop-data")


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, raw: RawOptions | None = None) -> ImageFile:
    """
    Read a JPEG, PNG, TIFF, WebP, AVIF or HEIC file, or develop a raw one.

    RGB and grey with an ICC profile, or what says the same, are converted to sRGB, and the file's own numbers are kept
    beside them because sRGB cannot hold every colour. CMYK becomes sRGB for good. Palettes are expanded.

    Args:
        path: The file. Its content decides the format, not its name.
        max_pixels: The largest width times height to read; half of it for progressive JPEG, AVIF, HEIC and raw
            files, whose decoders hold the whole image more than once.
        raw: How to develop raw files.

    Returns:
        [`ImageFile`]; its `notes` say what was wrong with the file and left out.

    Raises:
        `FileNotFoundError`: If there is no such file.
        [`ImageFileError`]: If some pixels do not decode; if something would be lost, as of several images in a file,
            floating point or more than 16 bits; or if there are more than `max_pixels`, or a million a side.

    Example:
        ```py
        >>> import tempfile
        >>> from pathlib import Path

        >>> import numpy as np
        >>> from gdd_diffusers.files import read_image, write_image

        >>> folder = Path(tempfile.mkdtemp())
        >>> write_image(folder / "noisy.png", np.full((2, 3, 3), 1000, np.uint16))
        >>> image = read_image(folder / "noisy.png")
        >>> image.pixels.shape, image.pixels.dtype
        ((2, 3, 3), dtype('uint16'))
        >>> write_image(folder / "clean.tif", image.pixels // 2, like=image)

        ```
    """
    path = Path(path)
    kind = _identify(path)
    if kind == "raw":
        return read_raw(path, max_pixels, raw or RawOptions())
    try:
        try:
            return _read(path, kind, None, max_pixels)
        except pyvips.Error:
            repaired = _repair(path, kind)
            if repaired is None:
                raise
            image = _read(path, kind, repaired, max_pixels)
            image.notes.append("it breaks rules of its format, but no pixel is missing")
            return image
    except pyvips.Error as error:
        raise ImageFileError(f"{printable(path)} is damaged or of an unknown kind ({reason(error)}).") from error


def output_suffix(path: Path) -> str:
    """
    Return the extension that a result of this file has by default: its own, if there is a writer for its format.

    A raw file becomes a TIFF. HEIC becomes a JPEG, or a PNG if it has 10 bits or transparency, which no JPEG has; both
    open everywhere.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        return ".tif"
    if FORMATS.get(path.suffix.lower()) != "heic":
        return path.suffix
    try:
        with libvips_errors(), open(path, "rb") as file:
            image = pyvips.Image.heifload_source(pyvips.Source.new_from_descriptor(file.fileno()))
            return ".jpg" if image.format == "uchar" and image.bands == 3 else ".png"
    except (OSError, pyvips.Error):
        # which reading it will say
        return ".jpg"


def _identify(path: Path) -> str:
    """Return the name of libvips' loader for the content of a file, and refuse what it has none for."""
    name = printable(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = _FILE_KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise ImageFileError(f"{name} is not a file but a {kind}.")
        if status.st_size == 0:
            raise ImageFileError(f"{name} is empty (zero bytes).")
        with open(path, "rb") as file:
            head = file.read(16)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise FileNotFoundError(f"{name} {what}.") from error
    except ImageFileError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ImageFileError(f"{name} is a symbolic link that leads back to itself.") from error
        raise ImageFileError(f"{name} cannot be read: {str(error.strerror).lower()}.") from error
    kind = next((kind for kind, start in _SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        raise ImageFileError(f"{name} is no JPEG, PNG, TIFF, WebP, AVIF, HEIC or raw image, or is damaged.")
    if head[8:12] == b"avis":
        raise ImageFileError(f"{name} is an animation; split it up first.")
    if kind == "tiff" and path.suffix.lower() not in FORMATS:
        # most raw formats are TIFFs that begin with a thumbnail
        return "raw"
    return kind


def _read(path: Path, kind: str, repaired: bytes | None, max_pixels: int) -> ImageFile:
    options = {}
    page = _full_page(path) if kind == "tiff" else 0
    if page and repaired is None:
        options["page"] = page
    with libvips_errors():
        if repaired is None and kind == "tiff":
            repaired = _without_premultiplication(path, page)
        if repaired is None:
            # not by name: libvips would take a trailing [...] for options, and pyvips insists on UTF-8
            with open(path, "rb") as file:
                source = pyvips.Source.new_from_descriptor(file.fileno())
        else:
            source = pyvips.Source.new_from_memory(repaired)
        # fail on warnings: missing pixels in a JPEG or a tiled TIFF raise nothing worse
        loader = getattr(pyvips.Image, f"{kind}load_source")
        loaded = loader(source, fail_on="warning", access="sequential", **options)
        if kind == "heif" and (page_of_main := loaded.get("heif-primary")):
            loaded = loader(source, fail_on="warning", access="sequential", page=page_of_main)
        format = _check_kind(path, kind, loaded)
        _check_size(path, format, loaded, max_pixels, page)
        bits = loaded.get("bits-per-sample") if kind == "heif" else 16 if loaded.format == "ushort" else 8
        image = ImageFile(np.empty((0, 0, loaded.bands)), format, bits, resolution=(loaded.xres, loaded.yres))
        image.metadata = {name: loaded.get(name) for name in _METADATA if loaded.get_typeof(name)}
        read_container(path, loaded, image, page)
        _decode(decode_heic(path, image) if format == "heic" else loaded, image)
    return image


def _full_page(path: Path) -> int:
    """Return the one page of a TIFF that is no smaller copy of another, as thumbnails are; 0 if there are several."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pages, _ = full_pages(data)
    return pages[0] if len(pages) == 1 else 0


def _without_premultiplication(path: Path, page: int) -> bytes | None:
    """Return the bytes of a TIFF whose colours are multiplied with their transparency, as if they were not."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # libvips would divide them by it, and lose 16 bits
        is_multiplied = number(read_tags(data, page)[0], EXTRA_SAMPLES) == 1
        return with_number(data[:], page, EXTRA_SAMPLES, 2) if is_multiplied else None


def _repair(path: Path, kind: str) -> bytes | None:
    """Return the bytes of a file without the faults that affect no pixel, or `None` if they cannot be repaired."""
    if os.path.getsize(path) > _MAX_BYTES_TO_MEND:
        return None
    try:
        data = path.read_bytes()
        return with_pixel_tags_only(data, _full_page(path)) if kind == "tiff" else {"jpeg": repair_jpeg}[kind](data)
    except (KeyError, ValueError, struct.error):
        return None


def _check_kind(path: Path, kind: str, loaded: pyvips.Image) -> str:
    """Return the format, one of the values of `FORMATS`."""
    name = printable(path)
    format = kind
    if kind == "heif":
        format = "avif" if loaded.get("heif-compression") == "av1" else "heic"
    pages = loaded.get("n-pages") if loaded.get_typeof("n-pages") else 1
    if kind == "png":
        # libvips reads the first frame of an animation
        pages = number_of_frames(path)
    if kind == "tiff" and pages > 1:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pages = len(full_pages(data)[0])
    if pages > 1 and format != "heic":
        raise ImageFileError(f"{name} holds {pages} images; split it up first.")
    channels = _COLOUR_CHANNELS.get(loaded.interpretation, 0)
    if loaded.format not in ("uchar", "ushort") or not channels or not 0 <= loaded.bands - channels <= (channels < 4):
        what = f"is {loaded.interpretation} with {loaded.bands} channels of type {loaded.format}"
        if loaded.format in ("float", "double"):
            what = "holds floating-point pixels, whose white is not known"
        raise ImageFileError(f"{name} {what}; convert it to grey, RGB or CMYK of 8 or 16 bits first.")
    return format


def _check_size(path: Path, format: str, loaded: pyvips.Image, max_pixels: int, page: int) -> None:
    """Refuse, by the header alone, files that would take far more memory or time than their pixels are worth."""
    name, bytes_in_file = printable(path), os.path.getsize(path)
    pixels, size = loaded.width * loaded.height, f"{loaded.width} x {loaded.height} pixels"
    pixels_per_byte = _MAX_PIXELS_PER_BYTE.get(format, np.inf)
    if format == "tiff":
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            compression = number(read_tags(data, page)[0], COMPRESSION, 1)
        pixels_per_byte = _MAX_PIXELS_PER_BYTE_IN_TIFF.get(compression, np.inf)
    if pixels > pixels_per_byte * bytes_in_file:
        raise ImageFileError(f"{name} is damaged: it is too short for {size}.")
    progressive = format == "jpeg" and loaded.get("jpeg-multiscan")
    if progressive or format in ("avif", "heic"):
        # their decoders hold the whole image, and more than once
        max_pixels //= 2
    if pixels > max_pixels:
        kind = "a progressive JPEG" if progressive else format.upper()
        limit = f"the limit for {kind} is {max_pixels / 1e6:g} million (max_pixels)"
        raise ImageFileError(f"{name} has {size}, which is {pixels / 1e6:.0f} million; {limit}.")
    if max(loaded.width, loaded.height) > MAX_SIDE:
        raise ImageFileError(f"{name} has {size}, more than {MAX_SIDE // 10**6} million a side.")
    if progressive:
        length = min(bytes_in_file, _MAX_BYTES_TO_MEND)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as data:
            scans = sum(1 for _ in re.finditer(b"\xff\xda", data))
        if scans * pixels > _MAX_SCANNED_PIXELS:
            raise ImageFileError(f"{name} has {scans} scans, far more than any camera or program writes.")


def _decode(loaded: pyvips.Image, image: ImageFile) -> None:
    """Fill in `pixels`, `native` and `cmyk`."""
    if 8 < image.bits < 16:
        # libvips leaves the low bits 0, so that white would fall short of 65535
        loaded = loaded | (loaded >> image.bits)
    if image.orientation > 1:
        loaded = with_fields(loaded.copy_memory(), {"orientation": image.orientation}).autorot()
    image.pixels = pixels = to_numpy(loaded)
    image.cmyk = loaded.interpretation == "cmyk"
    channels, profile = 3 if pixels.shape[2] >= 3 else 1, image.profile
    changes_pixels = image.cmyk or profile_changes_colours(profile, channels)
    if changes_pixels and not image.implied_profile and is_damaged(profile):
        del image.metadata["icc-profile-data"]
        image.notes.append("its colour profile is damaged and was left out")
        profile, changes_pixels = b"", image.cmyk
    if image.cmyk:
        image.metadata.pop("icc-profile-data", None)
        image.pixels = to_numpy(to_srgb(to_vips(pixels).copy(interpretation="cmyk"), profile))
    elif changes_pixels:
        image.native = np.ascontiguousarray(pixels[..., :channels])
        image.pixels = np.dstack([to_numpy(to_srgb(to_vips(image.native), profile)), pixels[..., channels:]])
