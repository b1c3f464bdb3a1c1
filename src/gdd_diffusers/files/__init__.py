"""Read and write image files without losing anything but the noise."""

from .image_file import (
    FORMATS,
    MAX_PIXELS,
    ImageFile,
    ImageFileError,
    for_display,
    list_images,
    pictures_in,
    printable,
)
from .reading import read_image
from .writing import check_output, write_image


__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "ImageFile",
    "ImageFileError",
    "check_output",
    "for_display",
    "list_images",
    "pictures_in",
    "printable",
    "read_image",
    "write_image",
]
