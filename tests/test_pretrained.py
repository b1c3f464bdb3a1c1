"""The weights that come with the package, on the sample photograph."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from gdd_diffusers import LocalUNet2DModel, RealDenoisePipeline
from gdd_diffusers.metrics import psnr
from gdd_diffusers.pipeline_real_denoise import BUNDLED, DEFAULT_MODEL


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", params=["gdd-small", "gdd-fast"])
def bundled(request):
    pipe = RealDenoisePipeline.from_pretrained(request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(name):
    pixels = np.asarray(Image.open(EXAMPLES / "assets" / f"coffee_{name}.png")).astype(np.float32) / 255
    return torch.from_numpy(pixels).movedim(-1, 0)[None]


def test_bundled_weights_load_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = RealDenoisePipeline.from_pretrained(DEFAULT_MODEL)
    assert Path(by_name.name_or_path) == BUNDLED[DEFAULT_MODEL]
    Path(DEFAULT_MODEL).mkdir()  # a folder of that name is meant where it is named, and never by default
    assert Path(RealDenoisePipeline.from_pretrained().name_or_path) == BUNDLED[DEFAULT_MODEL]
    with pytest.raises(OSError, match="model_index.json"):
        RealDenoisePipeline.from_pretrained(DEFAULT_MODEL)


def test_small_enough_and_made_to_be_tiled(bundled):
    assert sum(file.stat().st_size for file in Path(bundled.name_or_path).rglob("*")) < 15e6
    assert isinstance(bundled.unet, LocalUNet2DModel)


def test_sample_gains_at_least_eight_decibels(bundled):
    noisy, clean = load("noisy"), load("clean")
    assert psnr(bundled(noisy, output_type="pt").images, clean) > psnr(noisy, clean) + 8


@pytest.mark.parametrize("size", [16, 32])
def test_small_image_gains_as_much_as_a_large_one(bundled, size):
    noisy, clean = load("noisy"), load("clean")
    whole = bundled(noisy, output_type="pt").images
    crop = (..., slice(96, 96 + size), slice(64, 64 + size))
    denoised = bundled(noisy[crop], output_type="pt").images
    assert psnr(denoised, clean[crop]) > psnr(whole[crop], clean[crop]) - 1.5  # it lacks what is around it


def test_clean_image_stays_clean(bundled):
    clean = load("clean")
    assert psnr(bundled(clean, output_type="pt").images, clean) > 40


def test_tiles_cannot_be_seen_at_the_default_overlap(bundled):
    noisy = load("noisy")
    pipe = RealDenoisePipeline(**bundled.components, pixel_unshuffle=bundled.config.pixel_unshuffle, tile_size=None)
    pipe.set_progress_bar_config(disable=True)
    whole = pipe(noisy, output_type="pt").images
    pipe.enable_tiling(2 * bundled.config.tile_overlap, bundled.config.tile_overlap)
    error = pipe(noisy, output_type="pt").images - whole
    assert -10 * error.square().mean().log10() > 60
    assert error.abs().max() * 255 < 1


def test_bfloat16_is_as_good_as_float32(bundled):
    noisy, clean = load("noisy"), load("clean")
    half = RealDenoisePipeline.from_pretrained(bundled.name_or_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    scores = [psnr(pipe(noisy, output_type="pt").images, clean) for pipe in (bundled, half)]
    assert scores[0] - scores[1] < 0.05


@pytest.mark.parametrize("name", BUNDLED)
def test_card_names_licence_and_training_data(name):
    card = ModelCard.load(BUNDLED[name] / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers"
    for author in ("Aitzol Berasategi", "Jakub Mede", "Abhishek Mudgal", "CC-BY-4.0"):
        assert author in card.text
    assert {result.metric_type for result in card.data.eval_results} == {"psnr", "ssim"}


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "demo.py"))["main"](tmp_path)
    said = capsys.readouterr().out
    before, after = (float(word) for word in said.split() if word[0].isdigit() and "." in word)
    assert after > before + 8
    assert Image.open(tmp_path / "coffee_denoised.png").size == (600, 400)
    assert Image.open(tmp_path / "coffee_compared.png").width > 1500
