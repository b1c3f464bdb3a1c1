"""Exchange pixels and errors with libvips, and convert colours between an ICC profile and sRGB."""

import contextlib
import hashlib
import re
from collections.abc import Iterator

import numpy as np
import pyvips

from .image_file import printable


# libvips caches its last operations, and with them the pixels of images that are no longer needed
pyvips.cache_set_max(0)
# no loaders that were not written for hostile files, such as those of SVG and PDF
pyvips.block_untrusted_set(True)
# GLib prints warnings, and pyvips logs those of libvips through a Python callback, where Ctrl-C is lost and bytes that
# are not UTF-8 print a traceback. They are not needed: have GLib call a C function that does nothing.
pyvips._remove_log_handler()
_ignore = pyvips.ffi.cast("GLogFunc", pyvips.ffi.addressof(pyvips.vips_lib, "vips_error_buffer"))
for _domain in (b"VIPS", b"GLib", b"GLib-GObject", b"GLib-GIO", pyvips.ffi.NULL):
    pyvips.glib_lib.g_log_set_handler(_domain, ~0, _ignore, pyvips.ffi.NULL)

VIPS_FORMATS = {"uint8": "uchar", "uint16": "ushort", "float32": "float", "float64": "double"}
_FIELD_TYPES = {
    bytes: pyvips.GValue.blob_type,
    str: pyvips.GValue.refstr_type,
    int: pyvips.GValue.gint_type,
    float: pyvips.GValue.gdouble_type,
    list: pyvips.GValue.array_double_type,
}


@contextlib.contextmanager
def libvips_errors() -> Iterator[None]:
    """Raise every error of libvips as a `pyvips.Error`, without messages left over from an earlier file."""
    pyvips.vips_lib.vips_error_clear()
    try:
        yield
    except UnicodeDecodeError as error:
        detail = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer()).decode(errors="replace")
        raise pyvips.Error("libvips failed", detail or "damaged text") from error
    finally:
        pyvips.vips_lib.vips_error_clear()


def to_numpy(image: pyvips.Image) -> np.ndarray:
    dtype = np.uint8 if image.format == "uchar" else np.uint16
    return np.ndarray((image.height, image.width, image.bands), dtype, image.write_to_memory())


def to_vips(pixels: np.ndarray) -> pyvips.Image:
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    height, width, bands = pixels.shape
    image = pyvips.Image.new_from_memory(pixels, width, height, bands, VIPS_FORMATS[pixels.dtype.name])
    return image.copy(interpretation="srgb" if pixels.dtype == np.uint8 else "rgb16")


def with_fields(image: pyvips.Image, fields: dict) -> pyvips.Image:
    """Return the image with these metadata fields, {libvips' name: value}."""
    image = image.copy()
    for name, value in fields.items():
        image.set_type(_FIELD_TYPES[type(value)], name, value)
    return image


def rescale(image: pyvips.Image, maximum: int) -> pyvips.Image:
    """Round to whole numbers in [0, maximum], from the full range of integers or from floats in [0, 1]."""
    limit = {"uchar": 255, "ushort": 65535}.get(image.format, 1)
    return image if limit == maximum else (image * (maximum / limit)).rint()


def to_srgb(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    """Convert grey, RGB or CMYK in the colours of `profile`; grey may have a profile of RGB."""
    is_grey = image.bands == 1
    image = with_fields(_with_bands_of(profile, image), {"icc-profile-data": profile} if profile else {})
    depth = 8 if image.format == "uchar" else 16
    # CMYK without a profile gets libvips' own
    srgb = image.icc_transform("srgb", embedded=True, input_profile="cmyk", black_point_compensation=True, depth=depth)
    return srgb[1] if is_grey else srgb


def from_srgb(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    """Convert [0, 65535] in sRGB, grey or RGB, to [0, 65535] in the colours of `profile`."""
    is_grey = image.bands == 1
    image = image.cast("ushort")
    image = image.bandjoin([image, image]).copy(interpretation="rgb16") if is_grey else image
    lab = image.icc_import(input_profile="srgb", embedded=False, black_point_compensation=True)
    lab = with_fields(lab, {"icc-profile-data": profile})
    image = lab.icc_export(depth=16, black_point_compensation=True)
    return image[image.bands // 2] if is_grey else image


def _with_bands_of(profile: bytes, image: pyvips.Image) -> pyvips.Image:
    if image.bands > 1:
        return image
    wide = image.format == "ushort"
    if profile[16:20] == b"GRAY":
        return image.copy(interpretation="grey16" if wide else "b-w")
    return image.bandjoin([image, image]).copy(interpretation="rgb16" if wide else "srgb")


def display_p3() -> bytes:
    """Return the ICC profile of Display P3."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    return black.icc_transform("p3").get("icc-profile-data")


def profile_changes_colours(profile: bytes, channels: int = 3) -> bool:
    """Whether a profile works both ways and changes any colour, or grey, by more than a rounding error."""
    if not profile:
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    if channels == 1:
        grid = np.arange(256, dtype=np.uint8).reshape(1, -1, 1)
    try:
        srgb = to_numpy(to_srgb(to_vips(grid), profile))
        to_numpy(from_srgb(rescale(to_vips(srgb), 65535), profile).cast("ushort"))
    except pyvips.Error:
        return False
    return np.abs(srgb.astype(int) - grid).max() > 1


def is_damaged(profile: bytes) -> bool:
    """Whether an ICC profile contradicts its length or checksum, or a display's makes greys jump or tints them."""
    if int.from_bytes(profile[:4], "big") > len(profile):
        return True
    unsigned = profile[:44] + bytes(4) + profile[48:64] + bytes(4) + profile[68:84] + bytes(16) + profile[100:]
    if any(profile[84:100]) and profile[84:100] != hashlib.md5(unsigned, usedforsecurity=False).digest():
        return True
    if profile[12:20] not in (b"mntrRGB ", b"spacRGB "):
        return False
    greys = to_vips(np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2))
    lab = with_fields(greys, {"icc-profile-data": profile}).icc_import(embedded=True, pcs="lab").numpy()[0]
    steps = np.diff(lab[:, 0])
    return steps.min() < -1 or steps.max() > 5 or lab[-1, 0] < 90 or np.abs(lab[:, 1:]).max() > 25


def reason(error: OSError | pyvips.Error) -> str:
    """Return the line of an error's message that says what happened."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    system = re.search("system error: (?!Unknown)(.+)", error.detail)
    lines = [line.strip(" .") for line in error.detail.splitlines() if "bad seek" not in line]
    return printable(system[1] if system else next(filter(None, lines), "it breaks the rules of its format"))
