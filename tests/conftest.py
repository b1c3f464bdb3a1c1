import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image


# One thread in every process that the tests start: the last bit of a sum depends on how it is divided among threads.
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
from diffusers import UNet2DModel  # noqa: E402

from gdd_diffusers import InterpolationScheduler, LocalUNet2DModel, RealDenoisePipeline  # noqa: E402


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, or one of them would be left to a single core at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_unet(cls=LocalUNet2DModel, pixel_unshuffle=1, channels=3, levels=2):
    """A real network, small, with every weight drawn at random so that nothing is zero by construction."""
    unet = cls(
        in_channels=channels * pixel_unshuffle**2,
        out_channels=channels * pixel_unshuffle**2,
        block_out_channels=(8, 16, 16)[:levels],
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


def make_pipeline(cls=LocalUNet2DModel, pixel_unshuffle=2, channels=3, scheduler=None, **config):
    unet = make_unet(cls, pixel_unshuffle, channels)
    pipe = RealDenoisePipeline(unet, scheduler or InterpolationScheduler(), pixel_unshuffle=pixel_unshuffle, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pipe():
    """A small pipeline with tiles of 64 px that overlap by 16; tests that change it make their own."""
    torch.manual_seed(0)
    return make_pipeline(tile_size=64, tile_overlap=16)


@pytest.fixture(scope="session")
def plain_pipe():
    """The same with diffusers' own UNet2DModel and its GroupNorm."""
    torch.manual_seed(0)
    return make_pipeline(UNet2DModel, tile_size=64, tile_overlap=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small pipeline."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(tile_size=64, tile_overlap=16, default_num_inference_steps=2).save_pretrained(folder)
    return folder


def save_image(path, size=(48, 40), seed=0, **options):
    """Save an image whose every pixel is different from its neighbours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def clean_dir(tmp_path):
    """A folder of five images."""
    for i in range(5):
        save_image(tmp_path / "photos" / f"{i}.png", seed=i)
    return tmp_path / "photos"


@pytest.fixture
def pair_dirs(tmp_path):
    """Two folders of five images each, of the same names."""
    for i in range(5):
        save_image(tmp_path / "noisy" / f"{i}.png", seed=100 + i)
        save_image(tmp_path / "clean" / f"{i}.png", seed=i)
    return tmp_path / "noisy", tmp_path / "clean"
