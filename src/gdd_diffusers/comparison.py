"""Pictures of pictures: before and after, whole and enlarged."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def compare(
    pictures: dict[str, Image.Image], width: int = 1600, zoom: int = 3, box: tuple[int, int] | None = None
) -> Image.Image:
    """
    Puts pictures side by side, each above an enlarged crop of it, with its name on top.

    Args:
        pictures (`dict[str, PIL.Image.Image]`): Names and pictures of one size.
        width (`int`, defaults to 1600): Width of the result in pixels, at most; small pictures are not enlarged.
        zoom (`int`, defaults to 3): How many pixels one pixel of the crop is wide.
        box (`tuple[int, int]`, *optional*): Left and top of the crop; where the pictures differ most if not given.

    Returns:
        `PIL.Image.Image`: in RGB.

    Raises:
        `ValueError`: When the pictures differ in size.

    Example:
        ```py
        >>> from PIL import Image
        >>> from gdd_diffusers.comparison import compare

        >>> before, after = Image.new("RGB", (300, 200), "grey"), Image.new("RGB", (300, 200), "white")
        >>> compare({"noisy": before, "denoised": after}).size
        (608, 434)

        ```
    """
    images = {name: image.convert("RGB") for name, image in pictures.items()}
    if len({image.size for image in images.values()}) != 1:
        raise ValueError(f"Pictures to compare must have one size, not {[image.size for image in images.values()]}.")
    gap, label = 8, 25
    first, *_, last = images.values()
    column = min(first.width, (width - gap * (len(images) - 1)) // len(images))
    row = max(1, round(first.height * column / first.width))
    crop_width, crop_height = (max(1, min(side, column // zoom)) for side in first.size)
    crop_height = min(crop_height, max(1, round(crop_width * 2 / 3)))
    left, top = box or _largest_difference(first, last, crop_width, crop_height)

    height = label + row + gap + crop_height * zoom
    sheet = Image.new("RGB", (len(images) * (column + gap) - gap, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for i, (name, image) in enumerate(images.items()):
        x = i * (column + gap)
        draw.text((x + 2, 2), name, fill="black", font=font)
        sheet.paste(image.resize((column, row), Image.Resampling.LANCZOS), (x, label))
        crop = image.crop((left, top, left + crop_width, top + crop_height))
        sheet.paste(
            crop.resize((crop_width * zoom, crop_height * zoom), Image.Resampling.NEAREST), (x, label + row + gap)
        )
    return sheet


def stack(pictures: list[Image.Image], gap: int = 16) -> Image.Image:
    """
    Puts pictures below each other, on white.

    Args:
        pictures (`list[PIL.Image.Image]`): Of any sizes.
        gap (`int`, defaults to 16): Pixels between them.

    Example:
        ```py
        >>> from PIL import Image
        >>> from gdd_diffusers.comparison import stack

        >>> stack([Image.new("RGB", (300, 200)), Image.new("RGB", (200, 100))]).size
        (300, 316)

        ```
    """
    height = sum(picture.height + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def _largest_difference(a: Image.Image, b: Image.Image, width: int, height: int) -> tuple[int, int]:
    """Left and top of the box, of those on a grid of half its size, in which two pictures differ most."""
    difference = np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean(-1)
    lefts = range(0, a.width - width + 1, max(1, width // 2))
    tops = range(0, a.height - height + 1, max(1, height // 2))
    return max(
        ((left, top) for top in tops for left in lefts),
        key=lambda corner: difference[corner[1] : corner[1] + height, corner[0] : corner[0] + width].mean(),
    )
