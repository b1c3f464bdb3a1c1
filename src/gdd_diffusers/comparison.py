"""Draw images side by side, whole and enlarged."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


GAP = 8


def compare(
    images: dict[str, Image.Image], width: int = 1600, zoom: int = 3, box: tuple[int, int] | None = None
) -> Image.Image:
    """
    Put images side by side, each with its name above and an enlarged crop below.

    Args:
        images: Names and images of one size (`ValueError` otherwise).
        width: Maximum width of the result in pixels. Small images are not enlarged.
        zoom: By how much the crop is enlarged.
        box: Left and top of the crop. By default, where detail of the last image differs most from the first.
    """
    images = {name: image.convert("RGB") for name, image in images.items()}
    if len({image.size for image in images.values()}) != 1:
        raise ValueError(f"Images to compare must have one size, not {[image.size for image in images.values()]}.")
    first, *_, last = images.values()
    column = min(first.width, (width - GAP * (len(images) - 1)) // len(images))
    row = max(1, round(first.height * column / first.width))
    crop_width, crop_height = (max(1, min(side, column // zoom)) for side in first.size)
    crop_height = min(crop_height, max(1, round(crop_width * 2 / 3)))
    left, top = box or most_different([first, last], crop_width, crop_height)[0]

    columns = {}
    for name, image in images.items():
        crop = image.crop((left, top, left + crop_width, top + crop_height))
        crop = crop.resize((crop_width * zoom, crop_height * zoom), Image.Resampling.NEAREST)
        columns[name] = stack([image.resize((column, row), Image.Resampling.LANCZOS), crop], GAP)
    return grid(columns, len(columns))


def grid(images: dict[str, Image.Image], num_columns: int) -> Image.Image:
    """Arrange images of one size in rows, each with its name above, of one line or more."""
    width, height = next(iter(images.values())).size
    label = 5 + 20 * max(name.count("\n") + 1 for name in images)
    num_rows = -(-len(images) // num_columns)
    size = (num_columns * (width + GAP) - GAP, num_rows * (label + height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for i, (name, image) in enumerate(images.items()):
        x, y = i % num_columns * (width + GAP), i // num_columns * (label + height + GAP)
        draw.text((x + 2, y + 2), name, fill="black", font=font)
        sheet.paste(image, (x, y + label))
    return sheet


def stack(images: list[Image.Image], gap: int = 16) -> Image.Image:
    """Put images of any size below each other on white, `gap` pixels apart."""
    height = sum(image.height + gap for image in images) - gap
    sheet = Image.new("RGB", (max(image.width for image in images), height), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + gap
    return sheet


def most_different(images: list[Image.Image], width: int, height: int) -> tuple[tuple[int, int], float]:
    """
    Find the box in which the detail of RGB images differs most: its left and top, and the mean range of values there.

    Detail is where the last image has edges: in a patch of even colour there is nothing to see but noise.
    """
    difference = np.ptp(np.stack([np.asarray(image) for image in images]), axis=0).mean(-1)
    edges = np.asarray(images[-1].convert("L").filter(ImageFilter.FIND_EDGES))
    boxes = [
        (left, top)
        for top in range(0, difference.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, difference.shape[1] - width + 1, max(1, width // 2))
    ]
    means = [difference[top : top + height, left : left + width].mean() for left, top in boxes]
    details = [1 + edges[top : top + height, left : left + width].mean() for left, top in boxes]
    best = int(np.argmax(np.multiply(means, details)))
    return boxes[best], means[best]
