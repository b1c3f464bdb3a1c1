import pytest
import torch

from gdd_diffusers.data.cameras import PRESETS, Draw, select


def draws(batch_size=1):
    return Draw(batch_size, torch.Generator().manual_seed(0), torch.device("cpu"))


@pytest.mark.parametrize("lam", [-0.1, 0.0, 0.14, 0.3])
def test_read_noise_has_unit_variance_and_heavier_tails_for_smaller_lambda(lam):
    x = draws().tukey((500, 500), torch.tensor(lam))
    assert x.var().item() == pytest.approx(1, rel=0.02)
    kurtosis = x.pow(4).mean().item()
    assert kurtosis > 3.7 if lam < 0.05 else kurtosis < 3.2


@pytest.mark.parametrize("preset", PRESETS)
def test_properties_are_drawn_from_their_ranges(preset):
    for key, values in draws(200).camera([preset]).items():
        low, high = PRESETS[preset][key]
        assert low * 0.999 - 1e-6 <= values.min() and values.max() <= high * 1.001 + 1e-6, key
        assert low == high or values.std() > 0, key


def test_select_takes_the_masked_rows_of_tensors_and_of_dicts():
    x, mask = torch.arange(12).view(4, 3), torch.tensor([True, False, False, True])
    assert torch.equal(select(x, mask), x[[0, 3]])
    assert torch.equal(select({"x": x}, mask)["x"], x[[0, 3]])
