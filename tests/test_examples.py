"""The scripts that have no test file of their own, each launched small."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from diffusers import UNet2DModel
from PIL import Image

from gdd_diffusers import LocalUNet2DModel


EXAMPLES = Path(__file__).parents[1] / "examples"


def launch(script, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("seams.py", ["--picture", "missing.png"]),
        ("noise_statistics.py", ["missing", "missing", "-o", "noise.png"]),
        ("benchmark.py", ["--model", "./missing"]),
        ("engines.py", ["--model", "./missing"]),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(script, arguments, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        launch(script, *arguments, monkeypatch=monkeypatch)
    message = str(stopped.value)
    assert message.startswith(Path(script).name + ": ") and "missing" in message


@pytest.mark.parametrize("cls", [LocalUNet2DModel, UNet2DModel])
def test_seams(cls, tmp_path, monkeypatch, capsys):
    make_pipeline(cls).save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    options = ["--model", tmp_path / "model", "--picture", tmp_path / "a.png", "--tile_sizes", 64, "--overlaps", 0, 16]
    launch("seams.py", *options, monkeypatch=monkeypatch)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    decibels = [float(row[2].removesuffix(" dB")) for row in rows]
    if cls is LocalUNet2DModel:  # in bands, without an overlap
        assert len(rows) == 1 and decibels[0] > 120
    else:
        assert decibels[0] < decibels[1]


def test_benchmark(tmp_path, monkeypatch, capsys):
    make_pipeline().save_pretrained(tmp_path / "model")
    options = ["--megapixels", 1, "--runs", 1, "--num_images", 2]
    launch("benchmark.py", "--model", tmp_path / "model", *options, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "`gdd --help`" in said and "pipeline / network" in said
    assert all(
        f"| {images} |" in said for images in ("1 Mpx .jpg", "2 images of 0.5 to 1.5 Mpx", "one image of 2 Mpx")
    )


def test_benchmark_makes_images_of_the_size_that_it_says():
    image = runpy.run_path(str(EXAMPLES / "benchmark.py"))["noisy_photograph"](2)
    assert image.shape[0] * image.shape[1] == pytest.approx(2e6, rel=0.01) and image.std() > 20
    assert torch.from_numpy(image).dtype == torch.uint8
