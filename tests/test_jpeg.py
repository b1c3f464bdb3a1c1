import io

import numpy as np
import pytest
import torch
from PIL import Image

from gdd_diffusers.data.jpeg import jpeg_round_trip


def picture(height=61, width=83):
    """Smooth colours with noise on them, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(40, 216, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return (np.asarray(smooth) + rng.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)


def through_pillow(pixels, quality, subsampling):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file)).astype(int)


def through_torch(pixels, quality, subsampling, offset=(0, 0)):
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    quality = None if quality is None else torch.tensor([quality])
    out = jpeg_round_trip(batch, quality, subsampling, offset)
    assert out.shape == batch.shape and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, (out * 255).round() / 255)
    return (out[0] * 255).round().int().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 98])
def test_an_image_comes_out_as_from_a_file(quality, subsampling):
    pixels = picture()
    file, ours = through_pillow(pixels, quality, subsampling), through_torch(pixels, quality, subsampling)
    # Integers rounded the other way move a coefficient by a step here and there, and a block with it.
    assert np.abs(ours - file).mean() < 0.2 + 0.08 * np.abs(file - pixels).mean()


def test_grey_has_nothing_but_luma_and_is_that_of_a_file():
    pixels = picture()[..., :1].repeat(3, axis=2)
    difference = np.abs(through_torch(pixels, 85, 2) - through_pillow(pixels, 85, 2))
    assert (difference == 0).mean() > 0.85 and difference.mean() < 0.2


def test_without_a_quality_only_the_resolution_of_the_colours_is_lost():
    pixels = picture()
    assert np.abs(through_torch(pixels, None, 0) - pixels).max() <= 1
    ours, best = through_torch(pixels, None, 2), through_pillow(pixels, 100, 2)
    assert np.abs(ours - best).mean() < 0.6
    luma = [0.299, 0.587, 0.114]
    assert np.abs((ours - pixels.astype(int)) @ luma).mean() < 0.5 < np.abs(ours - pixels.astype(int)).mean()


def test_the_grid_of_blocks_begins_before_the_image():
    whole = picture(96, 96)
    # A part of a file that begins within a block, and ends with one: what lies beyond does not matter
    part = through_torch(whole, 30, 0)[21:80, 5:88]
    ours = through_torch(whole[21:80, 5:88], 30, 0, offset=(5, 5))
    assert np.array_equal(part[3:, 3:], ours[3:, 3:])
    assert not np.array_equal(part, through_torch(whole[21:80, 5:88], 30, 0))


def test_every_image_of_a_batch_has_its_own_quality():
    batch = torch.from_numpy(picture()).permute(2, 0, 1).expand(3, -1, -1, -1) / 255
    quality = torch.tensor([95, 20, 60])
    together = jpeg_round_trip(batch, quality, 2)
    for i in range(3):
        assert torch.equal(together[i], jpeg_round_trip(batch[i : i + 1], quality[i : i + 1], 2)[0])
    best, worst, middle = (together - batch).abs().mean((1, 2, 3))
    assert best < middle < worst
