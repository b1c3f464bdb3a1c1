"""Cut an image into bands or overlapping tiles, change each, and put them together again in place of the image."""

from collections.abc import Callable, Iterable

import torch


def plan_bands(width: int, num_pixels: int, multiple: int = 1) -> int:
    """
    Return the number of rows of bands of about `num_pixels` pixels, a multiple of `multiple`.

    Example:
        ```py
        >>> from gdd_diffusers.tiling import plan_bands

        >>> plan_bands(4000, num_pixels=2**19, multiple=16)
        128

        ```
    """
    return max(2, num_pixels // (width * multiple)) * multiple  # with fewer rows, convolutions are slow


def apply_in_bands_(
    predict: Callable[[Iterable[torch.Tensor]], Iterable[torch.Tensor]],
    function: Callable[[torch.Tensor, tuple[slice, ...]], torch.Tensor],
    image: torch.Tensor,
    num_pixels: int,
    multiple: int = 1,
):
    """
    Replace `image` by `function` of what a network predicts from it, band by band, in place.

    Args:
        predict: Called with bands `[N, C, h, W]` of some of the images. Yields predictions for the same rows in bands
            of any height, none before it has read these rows.
        function: Called with a prediction and its place in `image`, an index. Returns the new pixels.
        image (`torch.Tensor` of shape `[B, C, H, W]`): Is overwritten. H and W are multiples of `multiple`.
        num_pixels, multiple: See [`plan_bands`]. Images smaller than a band are batched up to its number of pixels.
    """
    num_rows = plan_bands(image.shape[-1], num_pixels, multiple)
    batch_size = max(1, num_pixels // image[0, 0].numel())
    for first in range(0, len(image), batch_size):
        done = 0
        batch = image[first : first + batch_size]
        for prediction in predict(batch.split(num_rows, -2)):
            rows = slice(done, done + prediction.shape[-2])
            place = (slice(first, first + batch_size), slice(None), rows)
            image[place] = function(prediction, place)
            done = rows.stop


def plan_tiles(size: int, tile_size: int, overlap: int, multiple: int = 1) -> tuple[int, list[int]]:
    """
    Place tiles along one side of an image: as few as `tile_size` allows, and then as small as possible.

    Args:
        size (`int`): Length of the side in pixels, rounded up to a multiple of `multiple`.
        tile_size (`int`): Largest length of a tile.
        overlap (`int`): Pixels that two neighbours share at least, at most half of `tile_size`.
        multiple (`int`, defaults to 1): Tiles begin at multiples of this, and their length is one.

    Returns:
        The length of all tiles, and where each begins.

    Example:
        ```py
        >>> from gdd_diffusers.tiling import plan_tiles

        >>> plan_tiles(1000, tile_size=512, overlap=64, multiple=8)
        (376, [0, 312, 624])

        ```
    """
    size = -(-size // multiple) * multiple
    tile_size = tile_size // multiple * multiple
    overlap = -(-overlap // multiple) * multiple
    if size <= tile_size:
        return size, [0]
    count = -(-(size - overlap) // (tile_size - overlap))
    tile = -(-(size - overlap) // (count * multiple)) * multiple + overlap
    return tile, [min(i * (tile - overlap), size - tile) for i in range(count)]


def tile_weights(size: int, tile: int, starts: list[int], overlap: int, smooth: bool) -> torch.Tensor:
    """
    Return the weights of the tiles in each pixel along one side; over all tiles they add up to 1.

    Args:
        size, tile, starts: The side's length and the plan of [`plan_tiles`].
        overlap (`int`): Width of the blend.
        smooth (`bool`): `False` gives each pixel to the tile in which it lies deepest, so that borders of tiles are
            discarded. `True` blends neighbours by a raised cosine.

    Returns:
        `torch.Tensor` of shape `[number of tiles, tile]`.
    """
    position = torch.arange(size)
    start = torch.tensor(starts)[:, None]
    before, after = position - start, start + tile - 1 - position
    # the image's own borders are not borders of a tile
    before = torch.where(start == 0, before + size, before)
    after = torch.where(start + tile == size, after + size, after)
    depth = torch.minimum(before, after)  # [tiles, size], negative outside of a tile
    inside = (position >= start) & (position < start + tile)
    if smooth:
        ramp = ((depth + 0.5) / max(overlap, 1)).clamp(0, 1)
        weights = torch.where(inside, 0.5 - 0.5 * torch.cos(torch.pi * ramp), 0.0)
        weights = weights / weights.sum(0)
    else:
        deepest = depth.masked_fill(~inside, -size).argmax(0)
        weights = (torch.arange(len(starts))[:, None] == deepest).float()
    return torch.stack([row[begin : begin + tile] for row, begin in zip(weights, starts, strict=True)])


def count_tiles(height: int, width: int, tile_size: int, overlap: int, multiple: int = 1) -> int:
    """Return the number of tiles that [`apply_tiled_`] makes of an image."""
    rows, columns = (plan_tiles(size, tile_size, overlap, multiple)[1] for size in (height, width))
    return len(rows) * len(columns)


def apply_tiled_(
    function: Callable[[torch.Tensor, list[tuple[slice, ...]]], torch.Tensor],
    image: torch.Tensor,
    tile_size: int,
    overlap: int,
    multiple: int = 1,
    smooth: bool = False,
    max_batch_pixels: int = 2**20,
) -> torch.Tensor:
    """
    Replace `image` by `function` of it, tile by tile, in place.

    Besides the image there is never more than one row of tiles in memory: a row of pixels is overwritten once no tile
    needs it any more.

    Args:
        function: Called with a batch of tiles `[N, C, h, w]` and the N places in `image` that they were cut from, each
            an index that gives a `[1, C, h, w]` view of any tensor of the image's size. Returns the changed tiles.
        image (`torch.Tensor` of shape `[B, C, H, W]`): Is overwritten. H and W are multiples of `multiple`.
        tile_size, overlap, multiple: See [`plan_tiles`].
        smooth (`bool`, defaults to `False`): See [`tile_weights`].
        max_batch_pixels (`int`, defaults to 1048576): Tiles are batched up to this number of pixels.
    """
    batch, _, height, width = image.shape
    tile_height, tops = plan_tiles(height, tile_size, overlap, multiple)
    tile_width, lefts = plan_tiles(width, tile_size, overlap, multiple)
    row_weights = tile_weights(height, tile_height, tops, overlap, smooth).to(image.device)
    column_weights = tile_weights(width, tile_width, lefts, overlap, smooth).to(image.device)
    batch_size = max(1, max_batch_pixels // (tile_height * tile_width))

    carried = image[:, :, :0]  # what the rows of tiles above gave to the pixels of this row
    for row, top in enumerate(tops):
        places: list[tuple[slice, ...]] = [
            (slice(b, b + 1), slice(None), slice(top, top + tile_height), slice(left, left + tile_width))
            for b in range(batch)
            for left in lefts
        ]
        weights = row_weights[row][:, None] * column_weights[:, None, :]  # [columns, h, w]
        band = torch.zeros_like(image[:, :, top : top + tile_height])
        band[:, :, : carried.shape[2]] = carried
        for i in range(0, len(places), batch_size):
            batch_places = places[i : i + batch_size]
            tiles = function(torch.cat([image[place] for place in batch_places]), batch_places)
            for j, (tile, (b, _, _, columns)) in enumerate(zip(tiles, batch_places, strict=True), start=i):
                band[b, :, :, columns] += weights[j % len(lefts)] * tile
        done = (tops[row + 1] if row + 1 < len(tops) else height) - top
        image[:, :, top : top + done] = band[:, :, :done]
        carried = band[:, :, done:]
    return image
