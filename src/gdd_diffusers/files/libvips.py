"""Pixels and errors between NumPy and libvips, and colours between an ICC profile and sRGB."""

import re

import numpy as np
import pyvips


# libvips would keep its last operations alive, and with them the pixels of images that are long done
pyvips.cache_set_max(0)
# libvips logs the end of each load and save at a level that pyvips hears in Python called from C: a Ctrl-C meanwhile
# would raise its KeyboardInterrupt there, where it is lost. Hear only the rare levels.
_LEVELS = pyvips.GLogLevelFlags
pyvips._remove_log_handler()
pyvips._log_handler_id = pyvips.glib_lib.g_log_set_handler(
    b"VIPS",
    _LEVELS.LEVEL_WARNING | _LEVELS.LEVEL_CRITICAL | _LEVELS.LEVEL_ERROR | _LEVELS.FLAG_FATAL,
    pyvips._log_handler_cb,
    pyvips.ffi.NULL,
)

VIPS_FORMATS = {"uint8": "uchar", "uint16": "ushort", "float32": "float", "float64": "double"}
_FIELD_TYPES = {
    bytes: pyvips.GValue.blob_type,
    str: pyvips.GValue.refstr_type,
    int: pyvips.GValue.gint_type,
    float: pyvips.GValue.gdouble_type,
    list: pyvips.GValue.array_double_type,
}


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
    image = with_fields(image, {"icc-profile-data": profile} if profile else {})
    depth = 8 if image.format == "uchar" else 16
    # CMYK without a profile is taken for libvips' own
    return image.icc_transform("srgb", embedded=True, input_profile="cmyk", black_point_compensation=True, depth=depth)


def from_srgb(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    """Convert [0, 65535] in sRGB to [0, 65535] in the colours of `profile`."""
    lab = image.cast("ushort").icc_import(input_profile="srgb", embedded=False, black_point_compensation=True)
    lab = with_fields(lab, {"icc-profile-data": profile})
    return lab.icc_export(depth=16, black_point_compensation=True)


def changes_colours(profile: bytes) -> bool:
    """Whether a profile works both ways and changes any colour of a grid by more than a rounding error."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    try:
        srgb = to_numpy(to_srgb(to_vips(grid), profile))
        to_numpy(from_srgb(rescale(to_vips(srgb), 65535), profile))
    except pyvips.Error:
        return False
    return np.abs(srgb.astype(int) - grid).max() > 1


def reason(error: Exception) -> str:
    """The one line of an error that says what happened."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    system = re.search("system error: (?!Unknown)(.+)", error.detail)
    lines = [line.strip(" .") for line in error.detail.splitlines() if "bad seek" not in line]
    return system[1] if system else next(filter(None, lines), "pixels are missing")
