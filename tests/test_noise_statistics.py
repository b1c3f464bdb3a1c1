import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from gdd_diffusers.data.camera_noise import CameraNoise


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import noise_statistics  # noqa: E402


def smooth(batch_size, size):
    x = torch.rand(batch_size, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(x, (size, size), mode="bicubic").clamp(0, 1)


def test_prints_the_tables_and_writes_the_crops(tmp_path, capsys):
    for folder in ("photos", "pairs/clean", "pairs/noisy"):
        (tmp_path / folder).mkdir(parents=True)
    clean, noisy = CameraNoise("phone")(smooth(3, 64), torch.Generator().manual_seed(0), iso=800)
    for i in range(3):
        for folder, x in (("photos", clean), ("pairs/clean", clean), ("pairs/noisy", noisy)):
            pixels = (x[i] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    noise_statistics.main(
        [str(tmp_path / "pairs"), str(tmp_path / "photos"), "-o", str(tmp_path / "out.png"), "--crop", "48"]
    )
    table, shift = (part.splitlines() for part in capsys.readouterr().out.split("\n\n")[:2])
    assert len(table) == 2 + 1 + 1 + 1 + 4 + 8
    assert len(shift) == 2 + 3 * 8
    real = next(line for line in table if "standard deviation R G B" in line).split("|")[4]
    expected = ((noisy - clean) * 255).std((2, 3), correction=0).mean(0)
    assert_close(torch.tensor([float(x) for x in real.split()]), expected, atol=0.01, rtol=0)
    assert np.asarray(Image.open(tmp_path / "out.png")).shape == (6 * 128, 8 * 128, 3)


def test_shift_is_measured_where_clean_value_and_noise_belong():
    clean = torch.full((3, 64, 64), 48 / 255)
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2 - 1
    noisy = clean + (20 * checks - 5) / 255
    shift = dict(zip(noise_statistics.SIDD_SHIFT, noise_statistics.brightness_shift([(clean, noisy)]), strict=True))
    assert_close(torch.tensor(shift.pop(((32, 64), (16, 28)))), torch.full((3,), -5.0), atol=0.01, rtol=0)
    assert all(value != value for values in shift.values() for value in values)


@pytest.mark.slow
def test_the_simulated_phone_has_the_shift_of_real_phones():
    photos = smooth(400, 64) * torch.linspace(0.3, 1, 400).view(-1, 1, 1, 1)
    pairs = list(zip(*CameraNoise("phone")(photos, torch.Generator().manual_seed(0)), strict=True))
    shift = noise_statistics.brightness_shift(pairs)
    for cell, values in zip(noise_statistics.SIDD_SHIFT.values(), shift, strict=True):
        assert all(value < 0 for value in values), (cell, values)
