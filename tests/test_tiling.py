import pytest
import torch
from torch.testing import assert_close

from gdd_diffusers.tiling import apply_tiled_, count_tiles, plan_tiles, tile_weights


SIZES = [(8, 64, 16), (64, 64, 16), (72, 64, 16), (104, 64, 16), (200, 64, 32), (1000, 64, 16), (4000, 512, 64)]


@pytest.mark.parametrize("size, tile_size, overlap", SIZES)
def test_plan_covers_the_side_on_the_grid(size, tile_size, overlap):
    tile, starts = plan_tiles(size, tile_size, overlap, multiple=8)
    assert starts[0] == 0 and starts[-1] + tile == size
    assert tile <= tile_size and tile % 8 == 0 and all(start % 8 == 0 for start in starts)
    assert all(a + tile - b >= overlap for a, b in zip(starts, starts[1:], strict=False))


def test_plan_takes_the_fewest_tiles():
    assert len(plan_tiles(512, 512, 64)[1]) == 1
    assert len(plan_tiles(960, 512, 64)[1]) == 2
    assert len(plan_tiles(961, 512, 64)[1]) == 3


def test_plan_rounds_sizes_to_the_grid():
    tile, starts = plan_tiles(160, 70, 9, multiple=8)
    assert tile <= 64 and all(a + tile - b >= 16 for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("size, tile_size, overlap", SIZES)
def test_weights_add_up_to_one_in_each_pixel(size, tile_size, overlap, smooth):
    tile, starts = plan_tiles(size, tile_size, overlap, multiple=8)
    total = torch.zeros(size)
    for start, weights in zip(starts, tile_weights(size, tile, starts, overlap, smooth), strict=True):
        total[start : start + tile] += weights
    assert_close(total, torch.ones(size))


def test_core_weights_discard_half_of_the_overlap_at_each_border():
    tile, starts = plan_tiles(112, 64, 16, multiple=8)
    first, second = tile_weights(112, tile, starts, 16, smooth=False)
    assert starts == [0, 48]
    assert first.tolist() == [1.0] * 56 + [0.0] * 8
    assert second.tolist() == [0.0] * 8 + [1.0] * 56


def test_smooth_weights_rise_over_the_overlap():
    tile, starts = plan_tiles(112, 64, 16, multiple=8)
    first, second = tile_weights(112, tile, starts, 16, smooth=True)
    assert (second[:16].diff() > 0).all() and (first[-16:].diff() < 0).all()
    assert (second[16:] == 1).all() and (first[:-16] == 1).all()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 1, 8, 400), (2, 3, 104, 200), (1, 3, 304, 64)])
def test_pointwise_function_is_applied_once_everywhere(shape, smooth):
    picture = torch.rand(shape)
    expected = 2 * picture + 1
    result = apply_tiled_(lambda tiles, places: 2 * tiles + 1, picture, 64, 16, 8, smooth)
    assert result is picture
    assert_close(result, expected)


@pytest.mark.parametrize("max_batch_pixels", [1, 3 * 64 * 64, 10**9])
def test_neighbourhood_function_never_sees_what_was_already_overwritten(max_batch_pixels):
    picture = torch.rand(2, 1, 232, 168)
    kernel = torch.ones(1, 1, 17, 17) / 17**2
    blur = lambda x: torch.nn.functional.conv2d(x, kernel, padding=8)  # noqa: E731
    expected = blur(picture)
    result = apply_tiled_(lambda tiles, places: blur(tiles), picture, 64, 16, 8, max_batch_pixels=max_batch_pixels)
    assert_close(result, expected)


def test_places_say_where_tiles_were_cut():
    picture = torch.rand(2, 3, 104, 136)
    other = picture.clone() + 5
    result = apply_tiled_(lambda t, places: torch.cat([other[p] for p in places]) - t, picture, 64, 16, 8)
    assert_close(result, torch.full_like(result, 5.0))


def test_count_tiles():
    calls = []
    apply_tiled_(lambda t, p: (calls.extend(p), t)[1], torch.rand(1, 1, 200, 304), 64, 16, 8)
    assert len(calls) == count_tiles(200, 304, 64, 16, 8)
