from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from gdd_diffusers.data import camera_noise
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.metrics import psnr


PRESETS = ["phone", "camera", "mixed", "gaussian"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grey(batch_size=16, size=96, level=0.4):
    return torch.full((batch_size, 3, size, size), level)


def scenes(batch_size=16, size=96):
    """Smooth colours with edges in them."""
    x = torch.rand(batch_size, 3, 6, 6, generator=generator(1))
    x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic").clamp(0, 1)
    x[:, :, size // 2 :] = 1 - x[:, :, size // 2 :]
    return x


def autocorrelation(noise, lag):
    noise = noise - noise.mean((2, 3), keepdim=True)
    return ((noise[..., :-lag] * noise[..., lag:]).mean((2, 3)) / noise.square().mean((2, 3))).mean()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(8, 8), (9, 31), (64, 48)])
def test_pairs_keep_the_shape_and_come_out_of_8_bit_files(preset, size):
    clean, noisy = CameraNoise(preset)(torch.rand(3, 3, *size, generator=generator()), generator())
    for x in (clean, noisy):
        assert x.shape == (3, 3, *size) and x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1
        assert torch.equal(x, (x * 255).round() / 255)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_seed_gives_one_result_and_another_seed_another(preset):
    simulate, photos = CameraNoise(preset), scenes()
    first, again, other = (simulate(photos, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_global_generator_and_the_input_stay_as_they_were(preset):
    photos = scenes(4)
    before, state = photos.clone(), torch.get_rng_state()
    CameraNoise(preset)(photos, generator())
    assert torch.equal(photos, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("preset", PRESETS)
def test_without_a_generator_the_global_seed_counts(preset):
    simulate, photos = CameraNoise(preset), scenes(2)
    torch.manual_seed(3)
    first = simulate(photos)[1]
    torch.manual_seed(3)
    assert torch.equal(first, simulate(photos)[1])


@pytest.mark.parametrize("preset", ["phone", "camera"])
def test_noise_grows_with_iso(preset):
    levels = [psnr(*CameraNoise(preset)(grey(), generator(), iso=iso)).mean() for iso in (100, 1600, 25600)]
    assert levels[0] > levels[1] + 3 > levels[2] + 6


def test_strength_covers_what_phones_and_cameras_record():
    photos = scenes(64, 48)
    phone, camera = (psnr(*CameraNoise(preset)(photos, generator())) for preset in ("phone", "camera"))
    assert torch.quantile(phone, 0.1) < 20 and torch.quantile(phone, 0.75) > 28
    assert torch.quantile(camera, 0.1) > 25 and 29 < camera.median() < 40


def test_pictures_of_a_batch_differ_in_camera_and_light():
    clean, noisy = CameraNoise("mixed")(grey(), generator())
    strengths = (noisy - clean).square().mean((1, 2, 3))
    assert strengths.unique().numel() > 12
    assert clean.mean((2, 3)).std() > 0.05


def test_mixed_leaves_half_of_the_clean_pictures_as_sharp_as_they_came():
    photos = (torch.arange(64) % 2).expand(64, 3, 64, 64) * 0.2 + 0.4
    contrast = {}
    for preset in ("phone", "mixed"):
        clean = CameraNoise(preset)(photos, generator())[0][..., 8:-8, 8:-8]
        contrast[preset] = clean.diff(dim=-1).abs().mean((1, 2, 3)) / clean.mean((1, 2, 3))
    sharp = contrast["phone"].max() * 1.2
    assert 0.35 < (contrast["mixed"] > sharp).float().mean() < 0.6


def test_mixed_has_photographs_as_they_are_without_noise_and_with_white_noise_unless_iso_is_given():
    photos = (scenes(16, 16).repeat(50, 1, 1, 1) * 255).round() / 255
    clean, noisy = CameraNoise("mixed")(photos, generator())
    as_is = (clean == photos).flatten(1).all(1)
    assert 0.15 < as_is.float().mean() < 0.25
    noise = (noisy - clean)[as_is]
    assert 0.15 < (noise == 0).flatten(1).all(1).float().mean() < 0.4
    assert autocorrelation(noise[noise.std((1, 2, 3)) > 0.02], 1).abs() < 0.05
    clean, _ = CameraNoise("mixed")(photos, generator(), iso=1600)
    assert not (clean == photos).flatten(1).all(1).any()


def test_saving_again_leaves_less_of_the_finest_noise(monkeypatch):
    finest = {}
    for share in (0, 1):
        monkeypatch.setattr(camera_noise, "RESAVED_SHARE", share)
        clean, noisy = CameraNoise("mixed")(grey(), generator(), iso=800)
        finest[share] = (noisy - clean).mean(1).diff(n=2).square().mean((1, 2))
    assert finest[1].median() < 0.8 * finest[0].median()


def test_the_mean_of_many_files_of_one_scene_is_the_clean_twin():
    """As real clean pictures are made: with the noise reduction and the sharpening that each file had."""
    checks = (torch.arange(64) // 2 % 2).expand(1, 3, 64, 64) * 0.2 + 0.4
    camera = {"luma_denoise": (2.0, 2.0), "sharpen": (1.0, 1.0), "enlarging": (1.0, 1.0), "jpeg_share": (0.0, 0.0)}
    # one camera takes them all: each range is its middle
    with pytest.MonkeyPatch.context() as patch:
        fixed = {key: (sum(ends) / 2,) * 2 for key, ends in camera_noise.PRESETS["camera"].items()} | camera
        patch.setitem(camera_noise.PRESETS, "camera", fixed)
        clean, noisy = CameraNoise("camera")(checks.expand(64, 3, 64, 64), generator(), iso=12800)
    bias = (noisy - clean).mean((0, 1))[8:-8, 8:-8]
    assert bias.std() < 0.2 * clean[..., 8:-8, 8:-8].std()


def test_a_few_percent_of_pairs_are_without_noise_unless_iso_is_given():
    photos = scenes(16, 16).repeat(50, 1, 1, 1)
    clean, noisy = CameraNoise("phone")(photos, generator())
    share = (clean == noisy).all(3).all(2).all(1).float().mean()
    assert 0.02 < share < 0.09
    clean, noisy = CameraNoise("phone")(photos, generator(), iso=1600)
    assert not (clean == noisy).all(3).all(2).all(1).any()


def test_phone_noise_is_short_and_camera_noise_is_correlated_over_pixels_and_colours():
    def noise(preset, iso):
        clean, noisy = CameraNoise(preset)(grey(32, 128), generator(), iso)
        return noisy - clean

    def channels(noise):
        pictures = (noise - noise.mean((2, 3), keepdim=True)).flatten(2)
        return torch.stack([torch.corrcoef(x)[0, 1] for x in pictures]).mean()

    phone, camera = noise("phone", 400), noise("camera", 6400)
    assert autocorrelation(phone, 1) > 0.2 and autocorrelation(phone, 4).abs() < 0.1
    assert autocorrelation(camera, 2) > 0.15 and autocorrelation(camera, 4) > 0.08
    assert channels(camera) > channels(phone) + 0.2


def test_gaussian_is_white_and_leaves_colours_alone():
    photos = grey(64)
    clean, noisy = CameraNoise("gaussian")(photos, generator())
    assert_close(clean, photos)  # 0.4 = 102 / 255
    sigma = (noisy - clean).std((1, 2, 3)) * 255
    assert sigma.min() < 5 and 48 < sigma.max() < 56 and 20 < sigma.mean() < 35
    assert autocorrelation(noisy - clean, 1).abs() < 0.02


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_clean_black_and_white_stay_grey(level):
    clean, _ = CameraNoise("camera")(grey(level=level), generator())
    # Brooks' saturation of highlights tints what is just below white by a few steps.
    assert (clean.amax(1) - clean.amin(1)).max() <= 8 / 255


def test_the_clean_twin_goes_through_the_colour_path_of_the_noisy_one():
    """At the lowest ISO little but that path is left, so the two must be alike, however dark the exposure."""
    clean, noisy = CameraNoise("phone")(scenes(), generator(), iso=0.01)
    assert psnr(clean, noisy).min() > 36


def test_clean_twin_is_the_photograph_apart_from_sharpness_when_the_light_is_right(monkeypatch):
    monkeypatch.setitem(camera_noise.PRESETS["phone"], "exposure", (1.0, 1.0))
    photos = grey(8) + torch.linspace(-0.3, 0.3, 96)
    clean, _ = CameraNoise("phone")(photos, generator())
    assert_close(clean[..., 2:-2, 2:-2], photos[..., 2:-2, 2:-2], atol=4 / 255, rtol=0)


def test_dark_noise_lifts_the_mean_and_clips_at_black():
    """Gamma and clipping move the mean, which a denoiser has to learn: the simulation must not hide it."""
    clean, noisy = CameraNoise("phone")(grey(level=0.02), generator(), iso=6400)
    assert (noisy == 0).float().mean() > 0.1
    assert (noisy - clean).mean() > 2 / 255


@pytest.mark.parametrize("malvar", [0.0, 1.0])
def test_demosaicing_returns_flat_colours_and_ramps(malvar):
    draw = camera_noise._Draw(8, generator(), torch.device("cpu"))
    masks = camera_noise._bayer_masks((17, 20), draw)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    assert_close(masks.sum(1), torch.ones(8, 17, 20))
    colours = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1) + torch.linspace(0, 0.2, 20)
    colours = colours.expand(8, 3, 17, 20)
    mosaic = (colours * masks).sum(1, keepdim=True)
    inner = (..., slice(3, -3), slice(3, -3))
    assert_close(camera_noise._demosaic(mosaic, masks, torch.tensor(malvar))[inner], colours[inner])


def test_malvar_demosaicing_is_closer_on_detail():
    draw = camera_noise._Draw(1, generator(), torch.device("cpu"))
    masks = camera_noise._bayer_masks((64, 64), draw)
    detail = torch.rand(1, 1, 64, 64, generator=generator()).expand(1, 3, 64, 64)
    detail = torch.nn.functional.avg_pool2d(detail, 3, 1, 1)
    mosaic = (detail * masks).sum(1, keepdim=True)
    error = [(camera_noise._demosaic(mosaic, masks, torch.tensor(m)) - detail).square().mean() for m in (0.0, 1.0)]
    assert error[1] < 0.5 * error[0]


def test_sensor_noise_has_the_stated_variance():
    """Var = shot x + read, with the row noise beside it; quantisation and clipping are out of reach here."""
    draw = camera_noise._Draw(1, generator(), torch.device("cpu"))
    p = draw.camera(["phone"])
    p["row"], p["bits"] = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 16.0)
    p["iso"] = torch.full((1, 1, 1, 1), 400.0)
    shot = (p["iso"] * p["shot_per_iso"]).item()
    read = p["read_factor"].item() * shot ** p["read_power"].item()
    for level in (0.3, 0.6):
        level_raw = torch.full((1, 1, 500, 500), level)
        raw = camera_noise._add_sensor_noise(level_raw, p, torch.tensor([True]), draw)
        assert raw.var().item() == pytest.approx(shot * level + read, rel=0.02)
        assert raw.mean().item() == pytest.approx(level, abs=1e-3)


@pytest.mark.parametrize("lam", [-0.1, 0.0, 0.14, 0.3])
def test_read_noise_has_unit_variance_and_heavier_tails_for_smaller_lambda(lam):
    x = camera_noise._Draw(1, generator(), torch.device("cpu")).tukey((500, 500), torch.tensor(lam))
    assert x.var().item() == pytest.approx(1, rel=0.02)
    kurtosis = x.pow(4).mean().item()
    assert kurtosis > 3.7 if lam < 0.05 else kurtosis < 3.2


def test_tone_and_gamma_are_undone_by_their_inverses():
    x = torch.linspace(0, 1, 256)
    assert_close(camera_noise._srgb_encode(camera_noise._srgb_decode(x)), x, atol=1e-5, rtol=0)
    assert_close(camera_noise._s_curve(camera_noise._s_curve(x, 1.5), 1 / 1.5), x, atol=1e-5, rtol=0)


def test_enlarging_keeps_the_centre_and_is_left_out_at_1():
    x = scenes(2, 64)
    same = camera_noise._zoom(x, torch.ones(2, 1, 1, 1))
    assert torch.equal(same, x)
    factor = torch.tensor([1.0, 1.5]).view(2, 1, 1, 1)
    back = camera_noise._zoom(camera_noise._zoom(x, 1 / factor), factor)
    assert torch.equal(back[0], x[0])
    assert (back[1] - x[1]).abs().mean() < 0.02


def test_double_precision_and_views_are_taken():
    photos = scenes(2, 32).double().transpose(2, 3)
    clean, noisy = CameraNoise("camera")(photos, generator())
    assert clean.dtype == noisy.dtype == torch.float32


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="phone, camera, mixed or gaussian, but is 'fone'"):
        CameraNoise("fone")


@pytest.mark.parametrize(
    "clean, message",
    [
        (torch.rand(3, 32, 32), r"\[B, 3, H, W\]"),
        (torch.rand(1, 1, 32, 32), r"\[B, 3, H, W\]"),
        (torch.rand(1, 3, 7, 32), "at least 8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide 8-bit pictures by 255"),
        (torch.full((1, 3, 32, 32), 1.5), r"in \[0, 1\]"),
        (torch.full((1, 3, 32, 32), float("nan")), r"in \[0, 1\]"),
    ],
)
def test_photographs_that_do_not_fit_are_refused(clean, message):
    with pytest.raises(ValueError, match=message):
        CameraNoise()(clean)


@pytest.mark.parametrize("iso", [0, -100, float("nan"), float("inf")])
def test_an_iso_that_cannot_be_is_refused(iso):
    with pytest.raises(ValueError, match="iso must be a positive number"):
        CameraNoise("phone")(scenes(1, 16), iso=iso)


def test_statistics_example_prints_the_table_and_writes_the_crops(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import noise_statistics

    for folder in ("photos", "pairs/clean", "pairs/noisy"):
        (tmp_path / folder).mkdir(parents=True)
    clean, noisy = CameraNoise("phone")(scenes(3, 64), generator(), iso=800)
    for i in range(3):
        for folder, x in (("photos", clean), ("pairs/clean", clean), ("pairs/noisy", noisy)):
            pixels = (x[i] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    noise_statistics.main(
        [str(tmp_path / "pairs"), str(tmp_path / "photos"), "-o", str(tmp_path / "out.png"), "--crop", "48"]
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + 1 + 1 + 4 + 8
    real = next(line for line in lines if "standard deviation R G B" in line).split("|")[4]
    expected = ((noisy - clean) * 255).std((2, 3), correction=0).mean(0)
    assert_close(torch.tensor([float(x) for x in real.split()]), expected, atol=0.01, rtol=0)
    assert np.asarray(Image.open(tmp_path / "out.png")).shape == (6 * 128, 8 * 128, 3)
