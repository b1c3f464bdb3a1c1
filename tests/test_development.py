import torch
from torch.testing import assert_close

from gdd_diffusers.data import development


def test_tone_and_gamma_are_undone_by_their_inverses():
    x = torch.linspace(0, 1, 256)
    assert_close(development.srgb_encode(development.srgb_decode(x)), x, atol=1e-5, rtol=0)
    assert_close(development.s_curve(development.s_curve(x, 1.5), 1 / 1.5), x, atol=1e-5, rtol=0)


def test_enlarging_keeps_the_centre_and_is_left_out_at_1():
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.interpolate(x, (64, 64), mode="bicubic").clamp(0, 1)
    assert torch.equal(development.zoom(x, torch.ones(2, 1, 1, 1)), x)
    factor = torch.tensor([1.0, 1.5]).view(2, 1, 1, 1)
    back = development.zoom(development.zoom(x, 1 / factor), factor)
    assert torch.equal(back[0], x[0])
    assert (back[1] - x[1]).abs().mean() < 0.02


def test_the_mean_of_developed_files_is_that_of_many_draws():
    level = torch.tensor([0.0, 0.003, 0.02, 0.2]).view(4, 1, 1, 1)
    linear, sigma, contrast = level.expand(4, 3, 300, 300), 0.01, torch.tensor(1.3)
    noise = torch.randn(linear.shape, generator=torch.Generator().manual_seed(0))
    noisy = linear + sigma * noise
    expected = development.develop(noisy, contrast).mean((2, 3))
    # The variance is given up to a factor.
    mean = development.mean_developed(linear, noisy, torch.full_like(linear, 5.0), contrast)
    assert_close(mean.mean((2, 3)), expected, atol=1 / 255, rtol=0)
    shift = development.develop(linear, contrast).mean((2, 3)) - expected
    assert shift.abs().max() > 4 / 255
