"""
Reading and writing picture files, so that nothing is lost but the noise.

A picture comes in upright and in sRGB, as a network expects it, and goes out in the format, bit depth, colour profile
and metadata that it had. Nothing here knows of networks.
"""

import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyvips

from .image_metadata import MAX_XMP_IN_JPEG, complete_container, png_chunks, read_container


# libvips would keep its last operations alive, and with them the pixels of pictures that are long done
pyvips.cache_set_max(0)
# libvips also logs the end of each load and save, which pyvips hears in Python that C calls: a Ctrl-C meanwhile would
# raise its KeyboardInterrupt there, where it is lost. What pyvips hears without that is rare.
_levels = pyvips.GLogLevelFlags
_heard = _levels.LEVEL_WARNING | _levels.LEVEL_CRITICAL | _levels.LEVEL_ERROR | _levels.FLAG_FATAL
pyvips._remove_log_handler()
pyvips._log_handler_id = pyvips.glib_lib.g_log_set_handler(b"VIPS", _heard, pyvips._log_handler_cb, pyvips.ffi.NULL)

FORMATS = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
}
FORMATS |= {".webp": "webp", ".avif": "avif", ".heic": "heic", ".heif": "heic"}
MAX_PIXELS = 1_000_000_000

_LOADERS = {"jpeg": "jpeg", "uhdr": "jpeg", "png": "png", "tiff": "tiff", "webp": "webp", "heif": "avif"}
_VIPS_FORMATS = {"uint8": "uchar", "uint16": "ushort", "float32": "float", "float64": "double"}
_COLOUR_CHANNELS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb16": 3, "cmyk": 4}
_MAX_SIDE = {"jpeg": 65_535, "webp": 16_383, "avif": 16_384, "heic": 16_384}
_HEIF_COMPRESSION = {"avif": "av1", "heic": "hevc"}
_METADATA = re.compile("(icc-profile|xmp|iptc|photoshop)-data|resolution-unit|gainmap-.*")


class ImageFileError(OSError):
    """A picture file cannot be read or written; the message is one sentence for the user."""


@dataclass
class ImageFile:
    """
    The pixels of a picture file, and what it takes to write others in their place.

    Args:
        pixels: [H, W, C] uint8 or uint16, upright; C is 1 (grey), 2 (grey, alpha), 3 (sRGB) or 4 (sRGB, alpha).
        format: One of the values of `FORMATS`.
        bits: Bits per channel in the file: 8, 10, 12 or 16.
        metadata: Header fields to write back, {libvips' name: (GType, value)}.
        resolution: Pixels per millimetre, horizontal and vertical.
        exif: The EXIF block from its TIFF header on; it calls the picture upright and holds no thumbnail.
        native: [H, W, 3], the file's own numbers, when its profile means other colours than sRGB.
        cmyk: Whether the file's colours were inks; `pixels`, and what is written, are sRGB.
        saving: How the file was compressed, in options of libvips' saver.
        verbatim: What only the same format can take, byte for byte: the text of a PNG, the extended XMP of a JPEG.
    """

    pixels: np.ndarray
    format: str
    bits: int
    metadata: dict = field(default_factory=dict)
    resolution: tuple[float, float] = (1.0, 1.0)
    exif: bytes = b""
    native: np.ndarray | None = None
    cmyk: bool = False
    saving: dict = field(default_factory=dict)
    verbatim: bytes = b""


def list_images(inputs: Iterable[str | Path], recursive: bool = False) -> list[Path]:
    """
    Find the pictures that files, folders and globs stand for.

    Args:
        inputs: A file is taken whatever its name; of a folder, or of what a glob matches, those files that have an
            extension of `FORMATS` and are not hidden.
        recursive: Whether to look into folders within folders.

    Returns:
        `list[Path]`: Sorted, each file once.

    Raises:
        `FileNotFoundError`: When an input does not exist or has no picture in it.
    """
    found = set()
    for given in map(str, inputs):
        if os.path.isfile(given):
            found.add(Path(given))
            continue
        roots = [given] if os.path.isdir(given) else glob.glob(given, recursive=True)
        if not roots:
            raise FileNotFoundError(f"{given} does not exist.")
        pictures = [file for file in map(Path, roots) if file.is_file() and file.suffix.lower() in FORMATS]
        for folder in filter(os.path.isdir, roots):
            pictures += pictures_in(folder, FORMATS, recursive)
        if not pictures:
            raise FileNotFoundError(f"{given} holds no picture: no file there ends in {', '.join(FORMATS)}.")
        found.update(pictures)
    return sorted(found)


def pictures_in(folder: str | Path, suffixes: Container[str], recursive: bool) -> list[Path]:
    """The files in a folder that end in one of the `suffixes`, sorted, but for those that are hidden."""
    folder = Path(folder)
    return sorted(
        file
        for file in (folder.rglob("*") if recursive else folder.iterdir())
        if file.suffix.lower() in suffixes and file.is_file()
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def read_image(path: str | Path) -> ImageFile:
    """
    Read a JPEG, PNG, TIFF, WebP or AVIF file; HEIC if libvips was built to decode it.

    RGB with a colour profile is converted to sRGB, and the file's own numbers are kept beside it, for sRGB cannot hold
    every colour. Grey keeps its numbers whatever its profile. CMYK becomes sRGB for good. Palettes are expanded.

    Args:
        path: The file; its content says what it is, not its name.

    Returns:
        [`ImageFile`]

    Raises:
        `FileNotFoundError`: When there is no such file.
        [`ImageFileError`]: When it does not decode to the last pixel, or is of a kind that would lose something on the
            way: several pictures in a file, floating point, more than 16 bits, raw.

    Example:
        ```py
        >>> import tempfile
        >>> from pathlib import Path

        >>> import numpy as np
        >>> from gdd_diffusers.files import read_image, write_image

        >>> folder = Path(tempfile.mkdtemp())
        >>> write_image(folder / "noisy.png", np.full((2, 3, 3), 1000, np.uint16))
        >>> picture = read_image(folder / "noisy.png")
        >>> picture.pixels.shape, picture.pixels.dtype
        ((2, 3, 3), dtype('uint16'))
        >>> write_image(folder / "clean.tif", picture.pixels // 2, like=picture)

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
        image = header = _open(path, pyvips.Image.new_from_source, "")
        if header.get("vips-loader").startswith("uhdr"):
            # a JPEG with a gain map for HDR screens, whose loader knows little else
            image = _open(path, pyvips.Image.jpegload_source)
        format = _check_kind(path, image)
        picture = ImageFile(
            pixels=np.empty(0),
            format=format,
            bits=image.get("bits-per-sample") if format in ("avif", "heic") else 16 if image.format == "ushort" else 8,
            metadata={
                name: (source.get_typeof(name), source.get(name))
                for source in (header, image)
                for name in source.get_fields()
                if _METADATA.fullmatch(name)
            },
            resolution=(image.xres, image.yres),
        )
        _decode(image, picture)
        read_container(path, image, picture)
    except pyvips.Error as error:
        if "known format" in str(error):
            message = "is no JPEG, PNG, TIFF, WebP or AVIF picture, or is damaged"
        elif "not been built in" in str(error):
            message = "cannot be read: this libvips has no HEIC decoder; convert it to JPEG, PNG, TIFF or AVIF first"
        else:
            message = f"is damaged or of an unknown kind ({_reason(error)})"
        raise ImageFileError(f"{path} {message}.") from error
    return picture


def for_display(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 [H, W, C] as the 8 bits that Pillow takes: [H, W, C], or [H, W] of one channel."""
    pixels = np.uint8(pixels // 257) if pixels.dtype == np.uint16 else pixels
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def check_output(
    path: str | Path,
    pixels: np.ndarray,
    like: ImageFile | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> str:
    """
    Raise what [`write_image`] would raise for these arguments, before the work instead of after it.

    Returns:
        `str`: The format to write, one of the values of `FORMATS`.
    """
    path = Path(path)
    extension = f".{format.lower()}" if format else path.suffix.lower()
    if extension not in FORMATS and (extension or like is None):
        raise ValueError(f"{path} cannot be written as {extension or 'it is'}: use one of {', '.join(FORMATS)}.")
    format = FORMATS[extension] if extension else like.format

    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
        raise ValueError(f"Pixels must be [height, width, 1 to 4 channels], but are {list(pixels.shape)}.")
    if pixels.dtype.name not in _VIPS_FORMATS:
        raise ValueError(f"Pixels must be uint8, uint16, or float in [0, 1], but are {pixels.dtype}.")
    if pixels.dtype.kind == "f" and not np.isfinite([pixels.min(), pixels.max()]).all():
        raise ValueError("Pixels must be finite, but some are NaN or infinite.")
    if like is not None and pixels.shape != like.pixels.shape:
        raise ValueError(
            f"Pixels are {list(pixels.shape)}, but those of the file to follow are {list(like.pixels.shape)}."
        )

    if max(pixels.shape[:2]) > _MAX_SIDE.get(format, MAX_PIXELS):
        raise ImageFileError(f"{path} cannot be written: {format} holds at most {_MAX_SIDE[format]} pixels a side.")
    opaque = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    if format == "jpeg" and pixels.shape[2] in (2, 4) and pixels[..., -1].min() < 0.998 * opaque:
        raise ImageFileError(f"{path} cannot be written: jpeg has no transparency; use png, tiff, webp or avif.")
    if format in ("avif", "heic"):
        try:
            pyvips.Image.black(16, 16).heifsave_buffer(compression=_HEIF_COMPRESSION[format])
        except pyvips.Error as error:
            raise ImageFileError(f"{path} cannot be written: this libvips has no {format} encoder.") from error
    if like and format == "jpeg" and len(like.metadata.get("xmp-data", (None, b""))[1]) > MAX_XMP_IN_JPEG:
        raise ImageFileError(f"{path} cannot be written: its XMP is too long for jpeg; use png, tiff, webp or avif.")
    if like and like.format == "jpeg" != format and like.verbatim:
        raise ImageFileError(f"{path} cannot be written: {format} cannot hold XMP of several parts; use jpeg.")

    if path.exists() and not path.is_file():
        raise ImageFileError(f"{path} cannot be written: it is not a file.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; overwrite it on purpose or choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror}.") from error
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
    Write a picture file: beside its target, then into its place, so that a crash leaves the old file or the new one.

    With `like`, the new file gets the bit depth, colour profile and metadata of the old one, and its compression if
    the format is the same. If the profile is not sRGB, what is written is the file's own numbers plus the change from
    `like.pixels` to `pixels` in terms of the profile: colours beyond sRGB stay, and unchanged pixels stay to the bit.

    Args:
        path: The target.
        pixels: [H, W, C] uint8, uint16, or float in [0, 1]; C is 1 (grey), 2 (grey, alpha), 3 (sRGB) or 4 (sRGB,
            alpha). Bits that the format cannot hold are rounded away; opaque alpha is left out of a JPEG.
        like: The file that the picture came from.
        format: An extension of `FORMATS`, without the dot. By default that of `path`, or if it has none, of `like`.
        quality: 1 to 100, for JPEG, WebP and AVIF. By default 95, or what the old JPEG had if more; WebP that was
            lossless stays so. Colour keeps its full resolution in JPEG and AVIF (4:4:4).
        overwrite: Whether to replace an existing file.

    Raises:
        `FileExistsError`: When there is such a file, and `overwrite` is not set.
        `FileNotFoundError`: When its folder does not exist.
        [`ImageFileError`]: When the format cannot hold the picture or its XMP, or the disk is full or cannot be
            written to.
        `ValueError`: When an argument is wrong.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"Quality must be 1 to 100, but is {quality}.")
    format = check_output(path, pixels, like, format, overwrite)
    # a symbolic link stays one: the file behind it is replaced
    path = Path(os.path.realpath(path))

    like = like or ImageFile(pixels, format, bits=16 if pixels.dtype.name == "uint16" else 8)
    bits = like.bits
    if format in ("jpeg", "webp"):
        bits = 8
    elif format in ("avif", "heic"):
        bits = min(bits, 12)
    elif bits > 8:
        bits = 16
    image = _encode(pixels, like, bits)
    if format == "jpeg":
        image = image[: 1 if image.bands < 3 else 3]
    options = {
        "jpeg": {"Q": 95, "subsample_mode": "off"},
        "png": {"bitdepth": bits},
        "tiff": {"compression": "deflate", "predictor": "horizontal", "bigtiff": pixels.size * bits > 32_000_000_000},
        "webp": {"Q": 95, "exact": True},
        # more effort costs ten times the time and makes photographs no smaller
        "avif": {"Q": 95, "subsample_mode": "off", "bitdepth": bits, "compression": "av1", "effort": 2},
        "heic": {"Q": 95, "subsample_mode": "off", "bitdepth": bits, "compression": "hevc"},
    }[format]
    options["keep"] = "icc|other|gainmap"
    if like.format == format:
        options |= like.saving
    if quality is not None and "Q" in options:
        options |= {"Q": quality, "lossless": False} if format == "webp" else {"Q": quality}
    if format not in ("jpeg", "png"):
        options["keep"] += "|xmp"
    if like.exif and format in ("webp", "avif", "heic"):
        image.set_type(pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + like.exif)
        options["keep"] += "|exif"

    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        save = getattr(image, {"avif": "heif", "heic": "heif"}.get(format, format) + "save_target")
        with open(part, "w+b") as file:
            save(pyvips.Target.new_to_descriptor(file.fileno()), **options)
        complete_container(part, image, like, format)
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    except (pyvips.Error, OSError) as error:
        raise ImageFileError(f"{path} could not be written: {_reason(error)}.") from error
    finally:
        part.unlink(missing_ok=True)


def _open(path: Path, load, *args) -> pyvips.Image:
    # From a descriptor, for in a file's name libvips takes a trailing [...] for options, and pyvips wants UTF-8. On
    # warnings, for that is all that missing pixels are in a JPEG or a tiled TIFF.
    with open(path, "rb") as file:
        source = pyvips.Source.new_from_descriptor(file.fileno())
    return load(source, *args, fail_on="warning", access="sequential")


def _check_kind(path: Path, image: pyvips.Image) -> str:
    """The format, one of the values of `FORMATS`."""
    fields = image.get_fields()
    format = _LOADERS.get(image.get("vips-loader").removesuffix("_source").removesuffix("load"))
    if format is None:
        raise ImageFileError(f"{path} is no JPEG, PNG, TIFF, WebP or AVIF picture.")
    if format == "avif" and image.get("heif-compression") != "av1":
        format = "heic"
    if format == "tiff" and FORMATS.get(path.suffix.lower()) != "tiff":
        # most raw formats are TIFFs that begin with a thumbnail
        raise ImageFileError(f"{path} looks like a raw file; develop it to TIFF or JPEG first.")
    pages = image.get("n-pages") if "n-pages" in fields else 1
    if format == "png":
        # libvips takes an animation for its first picture
        pages = max([int.from_bytes(chunk[8:12], "big") for chunk in png_chunks(path, (b"acTL",))], default=1)
    if pages > 1:
        raise ImageFileError(f"{path} holds {pages} pictures; split it up first.")
    with open(path, "rb") as file:
        # colours by code (ITU-T H.273), in AVIF and PNG: libvips drops what is not sRGB
        codes = re.search(rb"colrnclx\x00(.)\x00(.)|\x00\x00\x00\x04cICP(.)(.)", file.read(100_000), re.DOTALL)
    if codes and "icc-profile-data" not in fields:
        primaries, transfer = (code[0] for code in codes.groups() if code)
        if primaries not in (1, 2) or transfer not in (1, 2, 6, 13, 14, 15):
            raise ImageFileError(f"{path} is in HDR or wide-gamut colour without a profile; convert it first.")
    if image.width * image.height > MAX_PIXELS:
        raise ImageFileError(
            f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million."
        )
    if format == "jpeg" and image.width * image.height > 512 * path.stat().st_size:
        # a block of 8x8 pixels takes a bit at least; memory would be taken for all that the header claims
        raise ImageFileError(f"{path} is damaged: it is too short for {image.width} x {image.height} pixels.")
    channels = _COLOUR_CHANNELS.get(image.interpretation, 0)
    if image.format not in ("uchar", "ushort") or not channels or not 0 <= image.bands - channels <= (channels < 4):
        kind = f"{image.interpretation} with {image.bands} channels of type {image.format}"
        raise ImageFileError(f"{path} is {kind}; convert it to grey, RGB or CMYK of 8 or 16 bits first.")
    return format


def _decode(image: pyvips.Image, picture: ImageFile) -> None:
    """Fill in `pixels` and `native`."""
    if 8 < picture.bits < 16:
        # libvips leaves the low bits empty, and white would not be white
        image = image | (image >> picture.bits)
    if "orientation" in image.get_fields() and image.get("orientation") > 1:
        image = image.copy_memory().autorot()
    pixels = _to_numpy(image)
    profile = picture.metadata.get("icc-profile-data", (None, b""))[1]
    picture.cmyk = image.interpretation == "cmyk"
    if picture.cmyk:
        picture.metadata.pop("icc-profile-data", None)
        pixels = _to_numpy(_to_srgb(_to_vips(pixels).copy(interpretation="cmyk"), profile))
    elif pixels.shape[2] >= 3 and profile and _means_other_colours(profile):
        picture.native = np.ascontiguousarray(pixels[..., :3])
        srgb = _to_numpy(_to_srgb(_to_vips(picture.native), profile))
        pixels = np.dstack([srgb, pixels[..., 3:]]) if pixels.shape[2] == 4 else srgb
    picture.pixels = pixels


def _encode(pixels: np.ndarray, like: ImageFile, bits: int) -> pyvips.Image:
    """The image to save, with the colours and the metadata of `like`; fewer than 16 bits are the high ones of 16."""
    maximum = 2**bits - 1
    image = _rescale(_to_vips(pixels), maximum)
    if like.native is not None:
        profile = like.metadata["icc-profile-data"][1]
        before, after = (_from_srgb(_rescale(_to_vips(p[..., :3]), 65535), profile) for p in (like.pixels, pixels))
        colours = (_rescale(_to_vips(like.native), maximum) + (after - before) * (maximum / 65535)).rint()
        image = colours.bandjoin(image[3]) if image.bands == 4 else colours
    image = image.cast("uchar") if bits == 8 else image.cast("ushort") << (16 - bits)
    grey, wide = image.bands < 3, bits > 8
    image = image.copy(interpretation=("grey16" if wide else "b-w") if grey else ("rgb16" if wide else "srgb"))
    xres, yres = like.resolution
    if xres == yres == 1.0:
        # libvips' word for unknown, but written it would say 25 dots per inch
        xres = yres = 72 / 25.4
    image = image.copy(xres=xres, yres=yres)
    for name, (kind, value) in like.metadata.items():
        image.set_type(kind, name, value)
    return image


def _to_numpy(image: pyvips.Image) -> np.ndarray:
    dtype = np.uint8 if image.format == "uchar" else np.uint16
    return np.ndarray((image.height, image.width, image.bands), dtype, image.write_to_memory())


def _to_vips(pixels: np.ndarray) -> pyvips.Image:
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    height, width, bands = pixels.shape
    image = pyvips.Image.new_from_memory(pixels, width, height, bands, _VIPS_FORMATS[pixels.dtype.name])
    return image.copy(interpretation="srgb" if pixels.dtype == np.uint8 else "rgb16")


def _rescale(image: pyvips.Image, maximum: int) -> pyvips.Image:
    limit = {"uchar": 255, "ushort": 65535}.get(image.format, 1)
    return image if limit == maximum else (image * (maximum / limit)).rint()


def _to_srgb(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    image = _with_profile(image, profile) if profile else image
    depth = 8 if image.format == "uchar" else 16
    # CMYK without a profile is taken for the press that libvips knows
    return image.icc_transform("srgb", embedded=True, input_profile="cmyk", black_point_compensation=True, depth=depth)


def _from_srgb(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    """From [0, 65535] in sRGB to [0, 65535] in the colours of `profile`."""
    lab = image.cast("ushort").icc_import(input_profile="srgb", embedded=False, black_point_compensation=True)
    return _with_profile(lab, profile).icc_export(depth=16, black_point_compensation=True)


def _with_profile(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    image = image.copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image


def _means_other_colours(profile: bytes) -> bool:
    """Whether a profile is usable both ways and changes any colour of a grid by more than a rounding error."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    try:
        srgb = _to_numpy(_to_srgb(_to_vips(grid), profile))
        _to_numpy(_from_srgb(_rescale(_to_vips(srgb), 65535), profile))
    except pyvips.Error:
        return False
    return np.abs(srgb.astype(int) - grid).max() > 1


def _reason(error: Exception) -> str:
    """The one line of an error that says what happened."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    system = re.search("system error: (?!Unknown)(.+)", error.detail)
    lines = [line.strip(" .") for line in error.detail.splitlines() if "bad seek" not in line]
    return system[1] if system else next(filter(None, lines), "pixels are missing")
