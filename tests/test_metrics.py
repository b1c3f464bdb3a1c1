import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gdd_diffusers.metrics import psnr, psnr_fitted, psnr_texture, ssim, ssim_matlab, ssim_texture


METRICS = [psnr, ssim, ssim_matlab, psnr_fitted, psnr_texture, ssim_texture]


def images(count=10, channels=3, height=37, width=52):
    """Smooth images, and the same with noise that grows from image to image; uint8, [B, H, W, C]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    pairs = []
    for i in range(count):
        phase = rng.uniform(0, 6, channels)
        clean = 128 + 100 * np.sin(x[..., None] / (3 + i) + y[..., None] / 7 + phase)
        noisy = clean + rng.normal(0, 2 + 5 * i, clean.shape)
        pairs.append([np.clip(np.round(p), 0, 255).astype(np.uint8) for p in (clean, noisy)])
    clean, noisy = zip(*pairs, strict=True)
    return np.stack(clean), np.stack(noisy)


def as_tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_equals_scikit_image(channels):
    clean, noisy = images(channels=channels)
    expected = [peak_signal_noise_ratio(c, n) for c, n in zip(clean, noisy, strict=True)]
    np.testing.assert_allclose(psnr(as_tensor(clean), as_tensor(noisy)), expected, rtol=0, atol=1e-6)


def test_known_noise_gives_known_psnr():
    clean = torch.full((1, 3, 64, 64), 100 / 255)
    sign = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2 - 1  # +1 and -1 like a chess board
    for amplitude in (1, 5, 25):
        expected = 20 * math.log10(255 / amplitude)
        assert psnr(clean, clean + sign * amplitude / 255).item() == pytest.approx(expected, abs=1e-6)


def test_psnr_of_equal_images_is_infinite():
    clean = torch.rand(1, 3, 8, 8)
    assert psnr(clean, clean).item() == math.inf


def test_images_are_rounded_and_clipped_as_a_file_would_be():
    clean = torch.tensor([0.0, 1.0, 100 / 255]).repeat_interleave(3 * 64).view(1, 3, 3, 64)
    within_half_a_step = clean + torch.tensor([-3.0, 3.0, 0.4 / 255]).repeat_interleave(3 * 64).view(1, 3, 3, 64)
    assert psnr(clean, within_half_a_step).item() == math.inf


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(channels):
    clean, noisy = images(channels=channels)
    expected = [
        structural_similarity(
            c, n, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
        )
        for c, n in zip(clean, noisy, strict=True)
    ]
    np.testing.assert_allclose(ssim(as_tensor(clean), as_tensor(noisy)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_matlab_equals_a_volumetric_computation(channels):
    clean, noisy = images(channels=channels)

    def filtered(volume):
        window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        for axis in range(3):
            volume = correlate1d(volume, window / window.sum(), axis=axis, mode="nearest")
        return volume

    expected = []
    for c, n in zip(clean.astype(float), noisy.astype(float), strict=True):
        mu_c, mu_n = filtered(c), filtered(n)
        var_c = filtered(c**2) - mu_c**2
        var_n = filtered(n**2) - mu_n**2
        cov = filtered(c * n) - mu_c * mu_n
        C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mu_c * mu_n + C1) / (mu_c**2 + mu_n**2 + C1)
        expected.append((luminance * (2 * cov + C2) / (var_c + var_n + C2)).mean())
    actual = ssim_matlab(as_tensor(clean), as_tensor(noisy))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)
    # the variant is another number, not a copy of ssim
    if channels == 3:
        assert (actual - ssim(as_tensor(clean), as_tensor(noisy))).abs().max() > 0.01


@pytest.mark.parametrize("metric", METRICS)
def test_batch_equals_singles_and_order_does_not_matter(metric):
    clean, noisy = (as_tensor(p) for p in images(count=3))
    batch = metric(clean, noisy)
    assert batch.shape == (3,)
    torch.testing.assert_close(batch, torch.cat([metric(c[None], n[None]) for c, n in zip(clean, noisy, strict=True)]))
    if metric in (psnr, ssim, ssim_matlab):  # for the others, the second image is the ground truth
        torch.testing.assert_close(batch, metric(noisy, clean))


@pytest.mark.parametrize("metric", METRICS)
def test_nan_in_an_image_spoils_that_image_only(metric):
    clean, noisy = (as_tensor(p) for p in images(count=2))
    noisy[0, 0, 20, 20] = math.nan
    assert metric(clean, noisy).isnan().tolist() == [True, False]


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_input_is_named(metric):
    with pytest.raises(ValueError, match="of one shape"):
        metric(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
    with pytest.raises(ValueError, match="of one shape"):
        metric(torch.rand(3, 16, 16), torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match="float in"):
        metric(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_ssim_needs_a_whole_window():
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, not 10 x 12"):
        ssim(torch.rand(1, 3, 12, 10), torch.rand(1, 3, 12, 10))
    assert ssim_matlab(torch.rand(1, 3, 6, 5), torch.rand(1, 3, 6, 5)).isfinite().all()


def test_gain_and_offset_are_fitted_for_each_image():
    clean = torch.rand(2, 3, 40, 40) * 0.6 + 0.2
    darker = clean * torch.tensor([0.5, 0.9])[:, None, None, None] + torch.tensor([0.1, -0.05])[:, None, None, None]
    assert (psnr(darker, clean) < 30).all()
    assert (psnr_fitted(darker, clean) > 80).all()
    # no other gain and offset would be closer, and an image of one colour becomes the mean
    noisy = (clean + 0.1 * torch.randn(clean.shape)).clamp(0, 1)
    assert (psnr_fitted(noisy, clean) > psnr(noisy, clean)).all()
    assert (psnr_fitted(noisy, clean) >= psnr(noisy * 0.8 + 0.1, clean)).all()
    flat = psnr_fitted(torch.full_like(clean, 0.7), clean)
    torch.testing.assert_close(flat, -10 * clean.double().var((1, 2, 3), correction=0).log10(), rtol=0, atol=0.01)


def test_texture_is_measured_where_the_ground_truth_has_it():
    clean = torch.full((1, 3, 240, 250), 0.5)  # 100 blocks, of which ten have texture
    clean[..., :24, :240] += 0.2 * torch.randn(24, 240).clamp(-1, 1)
    clean[..., 120:, :] += 0.3  # an edge is no texture
    noise = 0.02 * torch.randn(clean.shape)
    smooth = clean.clone()
    smooth[..., :24, :240] = 0.5  # a denoiser that takes texture for noise
    part = (..., slice(24), slice(240))
    torch.testing.assert_close(psnr_texture(smooth, clean), psnr(smooth[part], clean[part]))
    torch.testing.assert_close(psnr_texture(clean + noise, clean), psnr((clean + noise)[part], clean[part]))
    assert psnr_texture(smooth, clean) < 20 < psnr(smooth, clean)
    blocks = [(..., slice(24), slice(left, left + 24)) for left in range(0, 240, 24)]
    expected = torch.stack([ssim((clean + noise)[block], clean[block]) for block in blocks]).mean(0)
    torch.testing.assert_close(ssim_texture(clean + noise, clean), expected)
    with pytest.raises(ValueError, match="Texture needs images of at least 24 x 24 pixels, not 30 x 23"):
        psnr_texture(torch.rand(1, 3, 23, 30), torch.rand(1, 3, 23, 30))
