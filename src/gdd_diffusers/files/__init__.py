"""Read and write image files without losing anything but the noise."""

from .image_file import (
    FORMATS,
    MAX_PIXELS,
    RAW_SUFFIXES,
    ImageFile,
    ImageFileError,
    for_display,
    list_images,
    pictures_in,
    printable,
    readable_suffixes,
)
from .raw import RawOptions
from .reading import output_suffix, read_image
from .writing import check_output, copy_file, write_image


__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "RAW_SUFFIXES",
    "ImageFile",
    "ImageFileError",
    "RawOptions",
    "check_output",
    "copy_file",
    "for_display",
    "list_images",
    "output_suffix",
    "pictures_in",
    "printable",
    "read_image",
    "readable_suffixes",
    "write_image",
]
