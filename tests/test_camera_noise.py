import pytest
import torch
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


def of_one_kind(monkeypatch, preset, **shares):
    for key, share in shares.items():
        monkeypatch.setitem(camera_noise.PRESETS[preset], key, (share, share))


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
def test_the_result_depends_on_the_seed_alone(preset):
    simulate, photos = CameraNoise(preset), scenes()
    first, again, other = (simulate(photos, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_global_generator_and_the_input_are_untouched(preset):
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


def test_images_of_a_batch_differ_in_camera_and_light():
    clean, noisy = CameraNoise("mixed")(grey(), generator())
    strengths = (noisy - clean).square().mean((1, 2, 3))
    assert strengths.unique().numel() > 12
    assert clean.mean((2, 3)).std() > 0.05


def test_mixed_keeps_half_of_the_clean_images_as_sharp_as_before():
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
    of_one_kind(monkeypatch, "phone", stacked_raw=0.0, stacked_files=0.0)
    photos = grey(8) + torch.linspace(-0.3, 0.3, 96)
    clean, _ = CameraNoise("phone")(photos, generator())
    assert_close(clean[..., 2:-2, 2:-2], photos[..., 2:-2, 2:-2], atol=4 / 255, rtol=0)


@pytest.mark.parametrize("level", [0.02, 0.1, 0.2])
def test_noise_is_darker_than_the_mean_of_raw_files(monkeypatch, level):
    of_one_kind(monkeypatch, "phone", stacked_raw=1.0, tone_curve=0.0)
    clean, noisy = CameraNoise("phone")(grey(level=level), generator(), iso=3200)
    assert (noisy - clean).mean() < -2 / 255
    assert (clean == 0).float().mean() < 0.01


def test_noise_has_the_brightness_of_the_mean_of_developed_files(monkeypatch):
    shift = {}
    for files in (0.0, 1.0):
        of_one_kind(monkeypatch, "phone", stacked_raw=1 - files, stacked_files=files)
        clean, noisy = CameraNoise("phone")(grey(level=0.2), generator(), iso=400)
        shift[files] = (noisy - clean).mean().abs()
    assert shift[1.0] < 0.2 * shift[0.0]


def test_dark_noise_is_brighter_than_an_exposure_at_low_iso_and_clips_at_black(monkeypatch):
    of_one_kind(monkeypatch, "phone", stacked_raw=0.0, stacked_files=0.0, tone_curve=1.0)
    clean, noisy = CameraNoise("phone")(grey(level=0.02), generator(), iso=6400)
    assert (noisy == 0).float().mean() > 0.1
    assert (noisy - clean).mean() > 2 / 255


@pytest.mark.parametrize("preset, share", [("phone", 0.06), ("camera", 0.06), ("mixed", 0.12), ("gaussian", 0.2)])
def test_a_share_of_images_is_grey_and_so_is_its_noise(preset, share):
    photos = scenes(16, 16).repeat(40, 1, 1, 1)
    clean, noisy = CameraNoise(preset)(photos, generator())
    is_grey = [(x == x[:, :1]).flatten(1).all(1) for x in (clean, noisy)]
    assert share * 0.5 < is_grey[0].float().mean() < share * 1.5
    assert is_grey[1][is_grey[0]].all()
    if preset != "gaussian":
        clean, _ = CameraNoise(preset)(photos, generator(), iso=800)
        assert not (clean == clean[:, :1]).flatten(1).all(1).any()


@pytest.mark.parametrize("preset", PRESETS)
def test_photographs_of_one_channel_stay_so(preset):
    photos = scenes(32, 32)[:, :1]
    clean, noisy = CameraNoise(preset)(photos, generator())
    assert clean.shape == noisy.shape == photos.shape
    in_colour = psnr(*CameraNoise(preset)(photos.expand(-1, 3, -1, -1), generator()))
    assert_close(psnr(clean, noisy).median(), in_colour.median(), atol=3, rtol=0)


@pytest.mark.parametrize("preset, iso", [("phone", 800), ("camera", 12800)])
def test_grey_noise_is_that_of_a_colour_file_turned_grey_or_of_a_monochrome_sensor(monkeypatch, preset, iso):
    simulate, photos = CameraNoise(preset), grey()
    noise = {}
    for share in (0, 1):
        monkeypatch.setattr(camera_noise, "MONOCHROME_SHARE", share)
        clean, noisy = simulate(photos[:, :1], generator(), iso)
        noise[share] = noisy - clean
    clean, noisy = simulate(photos, generator(), iso)
    in_colour = noisy - clean
    turned_grey = (in_colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert_close(noise[0].std((1, 2, 3)), turned_grey.std((1, 2, 3)), atol=0.5 / 255, rtol=0.05)
    # A pixel of a monochrome sensor is not interpolated from others: its noise is stronger than luma, and finer.
    assert 1.1 < noise[1].std() / noise[0].std() < 1.5
    assert autocorrelation(noise[1], 1) < autocorrelation(noise[0], 1) - 0.1


def test_speckle_grows_with_the_signal_and_keeps_its_mean(monkeypatch):
    monkeypatch.setattr(camera_noise, "SPECKLE_SHARE", 1.0)
    monkeypatch.setattr(camera_noise, "AS_IS_SHARE", 0.0)
    monkeypatch.setattr(camera_noise, "SPECKLE_WHITE_SIGMA", (0.0, 0.0))
    strength = []
    for level in (0.1, 0.3):
        clean, noisy = CameraNoise("mixed")(grey(64, level=level), generator())
        assert torch.equal(noisy, noisy[:, :1].expand_as(noisy))
        assert (noisy - clean).mean().abs() < 0.03 * level
        strength.append((noisy - clean).std())
    assert 2.5 < strength[1] / strength[0] < 3.1


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
        (torch.rand(1, 4, 32, 32), r"\[B, 1, H, W\] if grey"),
        (torch.rand(1, 3, 7, 32), "at least 8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide 8-bit images by 255"),
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
