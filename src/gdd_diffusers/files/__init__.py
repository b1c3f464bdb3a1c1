"""Read and write image files so that nothing in them is lost but the noise."""

from .image_file import FORMATS, ImageFile, ImageFileError, for_display, list_images, pictures_in
from .reading import read_image
from .writing import check_output, write_image


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
