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

from .containers import png_chunks, read_container, repair_jpeg
from .exif import COMPRESSION, read_tags, with_pixel_tags_only
from .heic import decode_heic
from .image_file import FORMATS, MAX_PIXELS, RAW_SUFFIXES, ImageFile, ImageFileError, printable
from .libvips import (
    display_p3,
    is_damaged,
    libvips_errors,
    profile_changes_colours,
    reason,
    to_numpy,
    to_srgb,
    to_vips,
    with_fields,
)
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
_DISPLAY_P3 = 12, 13  # its primaries and its curve, by their codes
_METADATA = ("icc-profile-data", "xmp-data", "iptc-data", "photoshop-data", "resolution-unit")


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, raw: RawOptions | None = None) -> ImageFile:
    """
    Read a JPEG, PNG, TIFF, WebP, AVIF or HEIC file, or develop a raw one.

    RGB with an ICC profile is converted to sRGB, and the file's own numbers are kept beside it because sRGB cannot
    hold every colour. Grey keeps its numbers whatever its profile. CMYK becomes sRGB for good. Palettes are expanded.

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
    if kind == "tiff" and FORMATS.get(path.suffix.lower()) != "tiff":
        # most raw formats are TIFFs that begin with a thumbnail
        return "raw"
    return kind


def _read(path: Path, kind: str, repaired: bytes | None, max_pixels: int) -> ImageFile:
    with libvips_errors():
        if repaired is None:
            # not by name: libvips would take a trailing [...] for options, and pyvips insists on UTF-8
            with open(path, "rb") as file:
                source = pyvips.Source.new_from_descriptor(file.fileno())
        else:
            source = pyvips.Source.new_from_memory(repaired)
        # fail on warnings: missing pixels in a JPEG or a tiled TIFF raise nothing worse
        load, options = getattr(pyvips.Image, f"{kind}load_source"), {"fail_on": "warning", "access": "sequential"}
        loaded = load(source, **options)
        if kind == "heif":
            loaded = load(source, page=loaded.get("heif-primary"), **options)
            if _colour_codes(path) == _DISPLAY_P3 and not loaded.get_typeof("icc-profile-data"):
                loaded = with_fields(loaded, {"icc-profile-data": display_p3()})
        format = _check_kind(path, kind, loaded)
        _check_size(path, format, loaded, max_pixels)
        bits = loaded.get("bits-per-sample") if kind == "heif" else 16 if loaded.format == "ushort" else 8
        image = ImageFile(np.empty(0), format, bits, resolution=(loaded.xres, loaded.yres))
        image.metadata = {name: loaded.get(name) for name in _METADATA if loaded.get_typeof(name)}
        _decode(decode_heic(path, image) if format == "heic" else loaded, image)
        read_container(path, loaded, image)
    return image


def _repair(path: Path, kind: str) -> bytes | None:
    """Return the bytes of a file without the faults that affect no pixel, or `None` if they cannot be repaired."""
    if os.path.getsize(path) > _MAX_BYTES_TO_MEND:
        return None
    try:
        return {"jpeg": repair_jpeg, "tiff": with_pixel_tags_only}[kind](path.read_bytes())
    except (KeyError, struct.error):
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
        pages = max([int.from_bytes(chunk[8:12], "big") for chunk in png_chunks(path, (b"acTL",))], default=1)
    if pages > 1 and format != "heic":
        raise ImageFileError(f"{name} holds {pages} images; split it up first.")
    if not loaded.get_typeof("icc-profile-data"):
        primaries, transfer = _colour_codes(path)
        if primaries not in (1, 2) or transfer not in (1, 2, 6, 13, 14, 15):
            raise ImageFileError(f"{name} is in HDR or wide-gamut colour without a profile; convert it first.")
    channels = _COLOUR_CHANNELS.get(loaded.interpretation, 0)
    if loaded.format not in ("uchar", "ushort") or not channels or not 0 <= loaded.bands - channels <= (channels < 4):
        what = f"{loaded.interpretation} with {loaded.bands} channels of type {loaded.format}"
        raise ImageFileError(f"{name} is {what}; convert it to grey, RGB or CMYK of 8 or 16 bits first.")
    return format


def _colour_codes(path: Path) -> tuple[int, int]:
    """Return the primaries and the curve of the colours (ITU-T H.273) of AVIF, HEIC and PNG; libvips drops them."""
    with open(path, "rb") as file:
        codes = re.search(rb"colrnclx\x00(.)\x00(.)|\x00\x00\x00\x04cICP(.)(.)", file.read(100_000), re.DOTALL)
    if codes is None:
        return 2, 2  # unspecified
    primaries, transfer = (code[0] for code in codes.groups() if code)
    return primaries, transfer


def _check_size(path: Path, format: str, loaded: pyvips.Image, max_pixels: int) -> None:
    """Refuse, by the header alone, files that would take far more memory or time than their pixels are worth."""
    name, bytes_in_file = printable(path), os.path.getsize(path)
    pixels, size = loaded.width * loaded.height, f"{loaded.width} x {loaded.height} pixels"
    pixels_per_byte = _MAX_PIXELS_PER_BYTE.get(format, np.inf)
    if format == "tiff":
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            compression = read_tags(data)[0].get(COMPRESSION, (3, 1, b"\1"))[2]
        pixels_per_byte = _MAX_PIXELS_PER_BYTE_IN_TIFF.get(int.from_bytes(compression, "little"), np.inf)
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
    if loaded.get_typeof("orientation") and loaded.get("orientation") > 1:
        loaded = loaded.copy_memory().autorot()
    image.pixels = pixels = to_numpy(loaded)
    image.cmyk = loaded.interpretation == "cmyk"
    profile = image.metadata.get("icc-profile-data", b"")
    changes_pixels = image.cmyk or (pixels.shape[2] >= 3 and profile_changes_colours(profile))
    if changes_pixels and is_damaged(profile):
        del image.metadata["icc-profile-data"]
        image.notes.append("its colour profile is damaged and was left out")
        profile, changes_pixels = b"", image.cmyk
    if image.cmyk:
        image.metadata.pop("icc-profile-data", None)
        image.pixels = to_numpy(to_srgb(to_vips(pixels).copy(interpretation="cmyk"), profile))
    elif changes_pixels:
        image.native = np.ascontiguousarray(pixels[..., :3])
        image.pixels = np.dstack([to_numpy(to_srgb(to_vips(image.native), profile)), pixels[..., 3:]])
