import pytest
import torch
from torch.testing import assert_close

from gdd_diffusers.data import sensor
from gdd_diffusers.data.cameras import Draw


def draws(batch_size=1):
    return Draw(batch_size, torch.Generator().manual_seed(0), torch.device("cpu"))


def one_phone(draw, iso, black=0.0, row=0.0, bits=16.0):
    p = draw.camera(["phone"]) | {"black": black, "row": row, "bits": bits}
    p = {key: torch.as_tensor(value).view(1, 1, 1, 1) for key, value in p.items()}
    shot = iso * p["shot_per_iso"]
    return p | {"shot": shot, "read": p["read_factor"] * shot ** p["read_power"]}


@pytest.mark.parametrize("malvar", [0.0, 1.0])
def test_demosaicing_returns_flat_colours_and_ramps(malvar):
    masks = sensor.bayer_masks((17, 20), draws(8))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    assert_close(masks.sum(1), torch.ones(8, 17, 20))
    colours = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1) + torch.linspace(0, 0.2, 20)
    colours = colours.expand(8, 3, 17, 20)
    mosaic = (colours * masks).sum(1, keepdim=True)
    inner = (..., slice(3, -3), slice(3, -3))
    assert_close(sensor.demosaic(mosaic, masks, torch.tensor(malvar))[inner], colours[inner])


def test_malvar_demosaicing_is_closer_on_detail():
    masks = sensor.bayer_masks((64, 64), draws())
    detail = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(1, 3, 64, 64)
    detail = torch.nn.functional.avg_pool2d(detail, 3, 1, 1)
    mosaic = (detail * masks).sum(1, keepdim=True)
    error = [(sensor.demosaic(mosaic, masks, torch.tensor(m)) - detail).square().mean() for m in (0.0, 1.0)]
    assert error[1] < 0.5 * error[0]


def test_sensor_noise_has_the_stated_variance():
    """Var = shot x + read, without row noise; quantisation and clipping are out of reach here."""
    draw = draws()
    p = one_phone(draw, iso=400)
    for level in (0.3, 0.6):
        raw = sensor.add_noise(torch.full((1, 1, 500, 500), level), p, draw)
        assert raw.var().item() == pytest.approx((p["shot"] * level + p["read"]).item(), rel=0.02)
        assert raw.mean().item() == pytest.approx(level, abs=1e-3)


@pytest.mark.parametrize("black", [0.0, -1 / 16])
@pytest.mark.parametrize("iso", [100, 1600, 12800])
@pytest.mark.parametrize("level", [0.0, 0.002, 0.01, 0.1, 0.97, 1.0])
def test_the_mean_of_clipped_recordings_is_that_of_many_draws(level, iso, black):
    draw = draws()
    p = one_phone(draw, iso, black, row=1.0)
    light = torch.full((1, 1, 1000, 400), level)
    recorded = sensor.add_noise(light, p, draw)
    sigma = (p["shot"] * level + 2 * p["read"]).sqrt().item()
    mean = sensor.mean_recorded(light[..., :1, :1], p).item()
    assert mean == pytest.approx(recorded.mean().item(), abs=0.06 * sigma + 1e-6)


def test_ground_truth_is_the_light_or_the_mean_of_recordings():
    draw = draws()
    p = one_phone(draw, iso=3200)
    p["mean_of_raw"] = torch.tensor([False, True]).view(2, 1, 1, 1)
    light = torch.full((2, 1, 8, 8), 1e-3)
    truth, _ = sensor.expose(light, p, draw)
    assert torch.equal(truth[0], light[0])
    assert (truth[1] > 2 * light[1]).all()
