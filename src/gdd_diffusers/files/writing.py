"""Write image files with the format, depth, colours and metadata of the file that the image came from."""

import contextlib
import functools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips


try:
    import fcntl
except ImportError:
    # Windows, where no open file can be deleted anyway
    fcntl = None  # type: ignore[assignment]

from .containers import PLACEHOLDER, complete_container, fitting_exif, fitting_xmp, losses
from .image_file import FORMATS, ImageFile, ImageFileError, printable
from .jpeg import EXTENDED_XMP, MAX_XMP_IN_JPEG
from .libvips import VIPS_FORMATS, from_srgb, libvips_errors, reason, rescale, to_vips, with_fields


_MAX_SIDE = {"jpeg": 65_535, "webp": 16_383, "avif": 16_384, "heic": 16_384}
_MAX_BITS = {"jpeg": 8, "webp": 8, "avif": 12, "heic": 12}
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_LOSSY = ("jpeg", "webp", "avif", "heic")
_WITHOUT_GREY = ("webp", "avif", "heic")
_HEIF_COMPRESSION = {"avif": "av1", "heic": "hevc"}


def check_output(
    path: str | Path,
    pixels: np.ndarray,
    like: ImageFile | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> str:
    """
    Raise what [`write_image`] would raise for these arguments, so that nothing is denoised in vain.

    Returns:
        `str`: The format to write, one of the values of `FORMATS`.
    """
    path = Path(path)
    name = printable(path)
    extension = f".{format.lower()}" if format else path.suffix.lower()
    if extension in FORMATS:
        format = FORMATS[extension]
    elif like is not None and not extension:
        format = like.format
    else:
        raise ValueError(f"{name} cannot be written as {extension or 'it is'}: use one of {', '.join(FORMATS)}.")

    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
        raise ValueError(f"Pixels must be [height, width, 1 to 4 channels], but are {list(pixels.shape)}.")
    if pixels.dtype.name not in VIPS_FORMATS:
        raise ValueError(f"Pixels must be uint8, uint16, or float in [0, 1], but are {pixels.dtype}.")
    if pixels.dtype.kind == "f" and not np.isfinite([pixels.min(), pixels.max()]).all():
        raise ValueError("Pixels must be finite, but some are NaN or infinite.")
    if like is not None and pixels.shape != like.pixels.shape:
        raise ValueError(
            f"Pixels are {list(pixels.shape)}, but those of the file to follow are {list(like.pixels.shape)}."
        )

    problem = None
    opaque = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    has_alpha = pixels.shape[2] in (2, 4) and not (like and like.extra_samples == 0)
    if max(pixels.shape[:2]) > _MAX_SIDE.get(format, np.inf):
        problem = f"{format} holds at most {_MAX_SIDE[format]} pixels a side"
    elif format == "jpeg" and has_alpha and pixels[..., -1].min() < 0.998 * opaque:
        problem = "jpeg has no transparency; use png, tiff, webp or avif"
    elif like and format == "jpeg" and len(like.metadata.get("xmp-data", b"")) > MAX_XMP_IN_JPEG:
        problem = "its XMP is too long for jpeg; use png, tiff, webp or avif"
    elif like and like.format == "jpeg" != format and EXTENDED_XMP in like.verbatim:
        problem = f"{format} cannot hold XMP of several parts; use jpeg"
    elif path.exists() and not path.is_file():
        problem = "it is not a file"
    elif path.exists() and not overwrite:
        raise FileExistsError(_exists(path))
    elif not path.parent.is_dir():
        raise FileNotFoundError(f"{name} cannot be written: there is no folder {printable(path.parent)}.")
    else:
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
            if format in _HEIF_COMPRESSION:
                with libvips_errors():
                    pyvips.Image.black(16, 16).heifsave_buffer(compression=_HEIF_COMPRESSION[format])
        except OSError as error:
            problem = error.strerror
        except pyvips.Error:
            problem = f"this libvips has no {format} encoder"
    if problem:
        raise ImageFileError(f"{name} cannot be written: {problem}.")
    return format


def write_image(
    path: str | Path,
    pixels: np.ndarray,
    like: ImageFile | None = None,
    format: str | None = None,
    quality: int | None = None,
    overwrite: bool = False,
) -> None:
    """
    Write an image file next to its target and move it into place, so that a crash leaves the old file or the new one.

    With `like`, the new file gets the bit depth, ICC profile and metadata of the old one, and its compression if the
    format is the same. If the profile is not sRGB, the change from `like.pixels` to `pixels` is converted to it and
    added to the file's own numbers, so that colours outside sRGB survive and unchanged pixels keep their exact values.

    Args:
        path: The target.
        pixels: [H, W, C] uint8, uint16, or float in [0, 1]; C is 1 (grey), 2 (grey, alpha), 3 (sRGB) or 4 (sRGB,
            alpha). Bits that the format cannot hold are rounded away; opaque alpha is left out of a JPEG.
        like: The file that the image came from.
        format: An extension of `FORMATS`, without the dot. Defaults to that of `path` or, if it has none, of `like`.
        quality: 1 to 100, for JPEG, WebP and AVIF. Defaults to 95, or to that of the old JPEG if higher; lossless WebP
            stays lossless. JPEG and AVIF keep the full resolution of colour (4:4:4).
        overwrite: Whether to replace an existing file.

    Raises:
        `FileExistsError`: If there is such a file and `overwrite` is not set.
        `FileNotFoundError`: If its folder does not exist.
        [`ImageFileError`]: If the format cannot hold the image or its XMP, or the disk is full or read-only.
        `ValueError`: If an argument is wrong.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"Quality must be 1 to 100, but is {quality}.")
    format = check_output(path, pixels, like, format, overwrite)
    # a symbolic link stays one: the file behind it is replaced
    path = Path(os.path.realpath(path))

    like = like or ImageFile(pixels, format, bits=16 if pixels.dtype.name == "uint16" else 8)
    bits = min(like.bits, _MAX_BITS.get(format, 16))
    if bits > 8 and format in ("png", "tiff"):
        bits = 16
    like.notes += [note for note in losses(like, format, bits) if note not in like.notes]
    image, profile = _encode(pixels, like, bits, format)
    # the other formats get these afterwards
    fields = {"icc-profile-data": profile, "xmp-data": fitting_xmp(like, format)}
    fields["exif-data"] = PLACEHOLDER if fitting_exif(like, format) else b""
    if format in _WITHOUT_GREY:
        image = with_fields(image, {name: value for name, value in fields.items() if value})
    defaults: dict[str, dict[str, Any]] = {
        "jpeg": {"Q": 95, "subsample_mode": "off"},
        "png": {"bitdepth": bits},
        "tiff": {"compression": "deflate", "predictor": "horizontal", "bigtiff": pixels.size * bits > 32_000_000_000},
        "webp": {"Q": 95, "exact": True},
        # more effort costs ten times the time and makes photographs no smaller
        "avif": {"Q": 95, "subsample_mode": "off", "bitdepth": bits, "compression": "av1", "effort": 2},
        "heic": {"Q": 95, "subsample_mode": "off", "bitdepth": bits, "compression": "hevc"},
    }
    options = defaults[format]
    options["keep"] = "none"
    if format in _WITHOUT_GREY:
        # without any, libvips would make EXIF up
        options["keep"] = "icc|xmp|exif" if image.get_typeof("exif-data") else "icc|xmp"
    if like.format == format:
        options |= like.saving
    if quality is not None and "Q" in options:
        options |= {"Q": quality, "lossless": False} if format == "webp" else {"Q": quality}

    save = getattr(image, ("heif" if format in _HEIF_COMPRESSION else format) + "save_target")
    try:
        with libvips_errors(), _part_beside(path) as (part, file):
            save(pyvips.Target.new_to_descriptor(file.fileno()), **options)
            complete_container(part, like, format, profile)
            os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, part)
            if fcntl is None:
                # Windows moves no open file
                file.close()
            _move(part, path, overwrite)
    except FileExistsError:
        raise
    except (pyvips.Error, OSError) as error:
        raise ImageFileError(f"{printable(path)} could not be written: {reason(error)}.") from error


def copy_file(source: Path, path: Path) -> None:
    """Copy a file next to its target and move it into place, so that a crash leaves the old file or the new one."""
    with _part_beside(path) as (part, file), open(source, "rb") as original:
        shutil.copyfileobj(original, file)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            # Windows moves no open file
            file.close()
        os.replace(part, path)


@contextlib.contextmanager
def _part_beside(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """
    Open a temporary `.*.part` file in the folder of `path`, and delete those that killed programs left behind.

    The files in use are locked, and the system releases the locks of a program however it ends.
    """
    _delete_abandoned_parts(path.parent)
    while True:
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with open(part, "x+b") as file:
            try:
                with contextlib.suppress(OSError):
                    _lock(file)
                if fcntl is None or part.exists():
                    yield part, file
                    return
                # another program deleted it before it was locked
            finally:
                part.unlink(missing_ok=True)


@functools.cache  # listing a folder of a million files takes most of a second
def _delete_abandoned_parts(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        if _PART.fullmatch(part.name):
            with contextlib.suppress(OSError), open(part, "r+b") as file:
                _lock(file)
                part.unlink()


def _lock(file: BinaryIO) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _move(part: Path, path: Path, overwrite: bool) -> None:
    """Move a file into place; without `overwrite`, only if no other file has appeared there in the meantime."""
    if not overwrite:
        try:
            os.link(part, path)
            return
        except FileExistsError as error:
            raise FileExistsError(_exists(path)) from error
        except OSError:
            # memory cards have no links
            if path.exists():
                raise FileExistsError(_exists(path)) from None
    os.replace(part, path)


def _exists(path: Path) -> str:
    return f"{printable(path)} exists already; overwrite it on purpose or choose another name."


def _encode(pixels: np.ndarray, like: ImageFile, bits: int, format: str) -> tuple[pyvips.Image, bytes]:
    """Give pixels the colours of `like`, in the high `bits` of 16 or in 8, and return the profile to embed, too."""
    maximum, channels = 2**bits - 1, 3 if pixels.shape[2] >= 3 else 1
    image, profile = rescale(to_vips(pixels), maximum), like.profile
    if format in _WITHOUT_GREY and profile[16:20] == b"GRAY":
        profile = b""
    elif like.native is not None:
        before, after = (from_srgb(rescale(to_vips(p[..., :channels]), 65535), profile) for p in (like.pixels, pixels))
        is_outside = (rescale(to_vips(like.native), 65535) - before).abs().max() > 0.01 * 65535
        if like.implied_profile and format in _LOSSY and not is_outside:
            # in few bits sRGB is better than a linear profile, and the file embeds none that would be missed
            profile = b""
        else:
            colours = (rescale(to_vips(like.native), maximum) + (after - before) * (maximum / 65535)).rint()
            image = colours.bandjoin(image[channels]) if image.bands > channels else colours
    if image.bands > channels and format != "tiff" and like.extra_samples == 1:
        # libvips would undo the multiplication in 8 bits only
        alpha = image[channels]
        image = (alpha > 0).ifthenelse(image[:channels] * maximum / alpha, 0).rint().bandjoin(alpha)
    if image.bands > channels and (format == "jpeg" or (format != "tiff" and like.extra_samples == 0)):
        image = image[:channels]
    image = image.cast("uchar") if bits == 8 else image.cast("ushort") << (16 - bits)
    grey, wide = channels == 1, bits > 8
    xres, yres = like.resolution if like.has_resolution else (72 / 25.4, 72 / 25.4)
    interpretation = ("grey16" if wide else "b-w") if grey else ("rgb16" if wide else "srgb")
    return image.copy(interpretation=interpretation, xres=xres, yres=yres), profile
