"""Read image files so that nothing in them is lost but the noise."""

import os
import re
from pathlib import Path

import numpy as np
import pyvips

from .containers import png_chunks, read_container
from .image_file import FORMATS, MAX_PIXELS, ImageFile, ImageFileError
from .libvips import changes_colours, reason, to_numpy, to_srgb, to_vips


_FORMATS = {"jpeg": "jpeg", "uhdr": "jpeg", "png": "png", "tiff": "tiff", "webp": "webp", "heif": "avif"}
_COLOUR_CHANNELS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb16": 3, "cmyk": 4}
_METADATA = re.compile("(icc-profile|xmp|iptc|photoshop)-data|resolution-unit|gainmap-.*")


def read_image(path: str | Path) -> ImageFile:
    """
    Read a JPEG, PNG, TIFF, WebP or AVIF file; HEIC if libvips can decode it.

    RGB with an ICC profile is converted to sRGB, and the file's own numbers are kept beside it because sRGB cannot
    hold every colour. Grey keeps its numbers whatever its profile. CMYK becomes sRGB for good. Palettes are expanded.

    Args:
        path: The file. Its content decides on the format, not its name.

    Returns:
        [`ImageFile`]

    Raises:
        `FileNotFoundError`: If there is no such file.
        [`ImageFileError`]: If the file does not decode to the last pixel, or is of a kind that would lose something:
            several images in a file, floating point, more than 16 bits, raw.

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
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ImageFileError(f"{path} is not a file.")
    if not os.access(path, os.R_OK):
        raise ImageFileError(f"{path} cannot be read: permission denied.")
    if path.stat().st_size == 0:
        raise ImageFileError(f"{path} is empty (zero bytes).")
    try:
        source = header = _open(path, pyvips.Image.new_from_source, "")
        if header.get("vips-loader").startswith("uhdr"):
            # the loader of JPEGs with a gain map for HDR screens knows no other metadata
            source = _open(path, pyvips.Image.jpegload_source)
        format = _check_kind(path, source)
        bits = source.get("bits-per-sample") if format in ("avif", "heic") else 16 if source.format == "ushort" else 8
        image = ImageFile(np.empty(0), format, bits, resolution=(source.xres, source.yres))
        for loaded in (header, source):
            image.metadata |= {name: loaded.get(name) for name in loaded.get_fields() if _METADATA.fullmatch(name)}
        _decode(source, image)
        read_container(path, source, image)
    except pyvips.Error as error:
        if "known format" in str(error):
            message = "is no JPEG, PNG, TIFF, WebP or AVIF image, or is damaged"
        elif "not been built in" in str(error):
            message = "cannot be read: this libvips has no HEIC decoder; convert it to JPEG, PNG, TIFF or AVIF first"
        else:
            message = f"is damaged or of an unknown kind ({reason(error)})"
        raise ImageFileError(f"{path} {message}.") from error
    return image


def _open(path: Path, load, *args) -> pyvips.Image:
    # From a descriptor, because libvips takes a trailing [...] in a name for options and pyvips wants UTF-8. Fail on
    # warnings, because missing pixels are no more than that in a JPEG or a tiled TIFF.
    with open(path, "rb") as file:
        source = pyvips.Source.new_from_descriptor(file.fileno())
    return load(source, *args, fail_on="warning", access="sequential")


def _check_kind(path: Path, source: pyvips.Image) -> str:
    """Return the format, one of the values of `FORMATS`."""
    format = _FORMATS.get(source.get("vips-loader").removesuffix("_source").removesuffix("load"))
    if format is None:
        raise ImageFileError(f"{path} is no JPEG, PNG, TIFF, WebP or AVIF image.")
    if format == "avif" and source.get("heif-compression") != "av1":
        format = "heic"
    if format == "tiff" and FORMATS.get(path.suffix.lower()) != "tiff":
        # most raw formats are TIFFs that begin with a thumbnail
        raise ImageFileError(f"{path} looks like a raw file; develop it to TIFF or JPEG first.")
    pages = source.get("n-pages") if source.get_typeof("n-pages") else 1
    if format == "png":
        # libvips reads the first frame of an animation
        pages = max([int.from_bytes(chunk[8:12], "big") for chunk in png_chunks(path, (b"acTL",))], default=1)
    if pages > 1:
        raise ImageFileError(f"{path} holds {pages} images; split it up first.")
    with open(path, "rb") as file:
        # colours by code (ITU-T H.273) in AVIF and PNG: libvips drops what is not sRGB
        codes = re.search(rb"colrnclx\x00(.)\x00(.)|\x00\x00\x00\x04cICP(.)(.)", file.read(100_000), re.DOTALL)
    if codes and not source.get_typeof("icc-profile-data"):
        primaries, transfer = (code[0] for code in codes.groups() if code)
        if primaries not in (1, 2) or transfer not in (1, 2, 6, 13, 14, 15):
            raise ImageFileError(f"{path} is in HDR or wide-gamut colour without a profile; convert it first.")
    size = f"{source.width} x {source.height} pixels"
    if source.width * source.height > MAX_PIXELS:
        raise ImageFileError(f"{path} has {size}, more than {MAX_PIXELS // 10**6} million.")
    if format == "jpeg" and source.width * source.height > 512 * path.stat().st_size:
        # a block of 8x8 pixels takes at least a bit, but memory would be taken for all that the header claims
        raise ImageFileError(f"{path} is damaged: it is too short for {size}.")
    channels = _COLOUR_CHANNELS.get(source.interpretation, 0)
    if source.format not in ("uchar", "ushort") or not channels or not 0 <= source.bands - channels <= (channels < 4):
        kind = f"{source.interpretation} with {source.bands} channels of type {source.format}"
        raise ImageFileError(f"{path} is {kind}; convert it to grey, RGB or CMYK of 8 or 16 bits first.")
    return format


def _decode(source: pyvips.Image, image: ImageFile) -> None:
    """Fill in `pixels`, `native` and `cmyk`."""
    if 8 < image.bits < 16:
        # libvips leaves the low bits empty, and white would not be white
        source = source | (source >> image.bits)
    if source.get_typeof("orientation") and source.get("orientation") > 1:
        source = source.copy_memory().autorot()
    image.pixels = pixels = to_numpy(source)
    image.cmyk = source.interpretation == "cmyk"
    profile = image.metadata.get("icc-profile-data", b"")
    if image.cmyk:
        image.metadata.pop("icc-profile-data", None)
        image.pixels = to_numpy(to_srgb(to_vips(pixels).copy(interpretation="cmyk"), profile))
    elif pixels.shape[2] >= 3 and profile and changes_colours(profile):
        image.native = np.ascontiguousarray(pixels[..., :3])
        image.pixels = np.dstack([to_numpy(to_srgb(to_vips(image.native), profile)), pixels[..., 3:]])
