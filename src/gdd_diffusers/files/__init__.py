"""Image files: read and written so that nothing is lost but the noise."""

from .image_files import (
    FORMATS,
    ImageFile,
    ImageFileError,
    check_output,
    for_display,
    list_images,
    pictures_in,
    read_image,
    write_image,
)


__all__ = [
    "FORMATS",
    "ImageFile",
    "ImageFileError",
    "check_output",
    "for_display",
    "list_images",
    "pictures_in",
    "read_image",
    "write_image",
]
