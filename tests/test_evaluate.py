import base64
import csv
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import tracemalloc
import types
from functools import partial
from pathlib import Path

import datasets
import h5py
import numpy as np
import pytest
import scipy.io
import torch
from conftest import make_pipeline
from huggingface_hub import ModelCard
from PIL import Image

from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
from gdd_diffusers.comparison import most_different
from gdd_diffusers.hub import model_card
from gdd_diffusers.image_processor import pixels_to_tensor
from gdd_diffusers.metrics import psnr, psnr_fitted, psnr_texture, ssim, ssim_matlab, ssim_texture


EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import evaluate  # noqa: E402
import rivals  # noqa: E402
from evaluation import report  # noqa: E402
from evaluation.benchmarks import load_data  # noqa: E402
from evaluation.peers import best_sigma, blind_sigma, load_peer  # noqa: E402
from evaluation.results import Method, PeakMemory, measure, runner  # noqa: E402


CPU = torch.device("cpu")


def make_pair(seed, height=40, width=56, sigma=20):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    clean = 128 + 80 * np.sin(x[..., None] / 6 + y[..., None] / 9 + rng.uniform(0, 6, 3))
    noisy = clean + rng.normal(0, sigma, clean.shape)
    return [np.clip(p.round(), 0, 255).astype(np.uint8) for p in (noisy, clean)]


def as_tensor(image):
    return pixels_to_tensor(image)[None]


@pytest.fixture
def pairs(tmp_path):
    """Three pairs in a folder with noisy/ and clean/."""
    for i in range(3):
        for name, image in zip(("noisy", "clean"), make_pair(i), strict=True):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "pairs" / name / f"scene{i}.png")
    return tmp_path / "pairs"


@pytest.fixture
def model(tmp_path):
    """A pipeline of random weights that changes images a little."""
    pipe = make_pipeline(scheduler=InterpolationScheduler(prediction_type="flow_prediction"))
    pipe.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def run(*args):
    evaluate.main(evaluate.parse_args([str(arg) for arg in args]))


def read_methods(folder, data=0):
    return {m["name"]: m for m in json.loads((folder / "results.json").read_text())[data]["methods"]}


# data sets


def test_pairs_are_read_by_name(pairs):
    images = load_data(f"mine:{pairs}")
    assert images.names == ["0000_scene0", "0001_scene1", "0002_scene2"]
    for actual, expected in zip(images.load(1), make_pair(1), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_images_that_a_file_names_are_read_alone(pairs, tmp_path, capsys):
    (tmp_path / "held_out.txt").write_text("scene2\nclean/scene0\nof-another-folder\n")
    images = load_data(f"mine:{pairs}#{tmp_path}/held_out.txt")
    assert images.names == ["0000_scene0", "0002_scene2"] and images.min_side(1) == 40
    np.testing.assert_array_equal(images.load(1), make_pair(2))
    assert "1 of the 3 names in" in capsys.readouterr().err
    # their noise is that of the whole set
    part, whole = (load_data(f"mine:{pairs}{part}@phone:800") for part in (f"#{tmp_path}/held_out.txt", ""))
    np.testing.assert_array_equal(part.load(1), whole.load(2))
    (tmp_path / "held_out.txt").write_text("scene\n")
    with pytest.raises(FileNotFoundError, match="There is no file missing.txt"):
        load_data(f"mine:{pairs}#missing.txt@none")
    with pytest.raises(ValueError, match="None of the 1 names in .*held_out.txt is one of the images of mine"):
        load_data(f"mine:{pairs}#{tmp_path}/held_out.txt")


def test_missing_partner_is_named(pairs):
    (pairs / "clean" / "scene1.png").unlink()
    with pytest.raises(ValueError, match="scene1.png has no partner"):
        load_data(f"mine:{pairs}")


def test_crops_of_polyu_and_cc(tmp_path):
    for i in range(2):
        for ending, image in zip(("real", "mean"), make_pair(i), strict=True):
            Image.fromarray(image).save(tmp_path / f"Canon_{i}_{ending}.png")
    (tmp_path / "list.txt").write_text("Canon_1\n")
    assert load_data(f"polyu:{tmp_path}#{tmp_path}/list.txt").names == ["0001_Canon_1_mean"]
    images = load_data(f"polyu:{tmp_path}")
    assert images.names == ["0000_Canon_0_mean", "0001_Canon_1_mean"]
    for actual, expected in zip(images.load(1), make_pair(1), strict=True):
        np.testing.assert_array_equal(actual, expected)
    simulated = load_data(f"polyu:{tmp_path}@none")
    assert simulated.names == images.names
    for actual in simulated.load(1):
        np.testing.assert_array_equal(actual, make_pair(1)[1])
    (tmp_path / "Canon_1_mean.png").unlink()
    with pytest.raises(ValueError, match=r"Canon_1_real.png has no partner Canon_1_mean.png"):
        load_data(f"polyu:{tmp_path}")


def test_low_light_and_medical_data_sets_as_they_are_distributed(tmp_path):
    noisy, clean = (Image.fromarray(image) for image in make_pair(0))
    for folder, names in (
        ("renoir/Mi3_Aligned/Batch_001", ("IMG_0001Reference.bmp", "IMG_0002Noisy.bmp", "IMG_0004Full.bmp")),
        ("oct-2012/1", ("1_Averaged Image.tif", "1_Raw Image.tif")),
        ("oct-2013/1", ("average.tif", "test.tif")),
        ("fmd/Confocal_MICE", ("gt/1/avg50.png", "raw/1/a.png")),
    ):
        for name, image in zip(names, (clean, noisy, clean), strict=False):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / folder / name)
        images = load_data(f"set:{tmp_path}/{folder.split('/')[0]}")
        np.testing.assert_array_equal(images.load(0), make_pair(0))
        assert len(images.names) == 1
    (tmp_path / "fmd" / "Confocal_MICE" / "raw").rename(tmp_path / "fmd" / "Confocal_MICE" / "avg2")
    np.testing.assert_array_equal(load_data(f"set:{tmp_path}/fmd/Confocal_MICE/avg2").load(0), make_pair(0))


def test_arrays_of_w2s_are_scaled_by_the_noisy_one(tmp_path):
    rng = np.random.default_rng(0)
    clean = rng.normal(0, 1, (20, 24)).astype(np.float32)  # as distributed: of mean 0 and standard deviation 1
    for level, strength in (("avg1", 1), ("avg4", 0.5), ("avg400", 0)):
        (tmp_path / level).mkdir()
        np.save(tmp_path / level / "001_0.npy", clean + strength * rng.normal(0, 1, clean.shape).astype(np.float32))
    for path in (tmp_path, tmp_path / "avg4"):
        images = load_data(f"w2s:{path}")
        noisy, truth = images.load(0)
        assert images.names == ["001_0"] and noisy.shape == truth.shape == (20, 24, 1)
        assert noisy.min() == 0 and noisy.max() == 1 and truth.min() >= 0 and truth.max() <= 1
        raw = np.load(tmp_path / ("avg4" if path.name == "avg4" else "avg1") / "001_0.npy")
        np.testing.assert_allclose(truth[..., 0], ((clean - raw.min()) / np.ptp(raw)).clip(0, 1), atol=1e-6)
    np.save(tmp_path / "avg400" / "001_0.npy", np.array([{"any": "object"}]))
    with pytest.raises(OSError, match=r"avg400/001_0.npy cannot be read"):
        images.load(0)
    (tmp_path / "avg1" / "001_0.npy").unlink()
    with pytest.raises(FileNotFoundError, match="There is no .npy file of W2S in .*avg1"):
        load_data(f"w2s:{tmp_path}")


def test_grey_pairs_keep_16_bits(pairs, model, tmp_path):
    folder = tmp_path / "deep"
    for name, image in zip(("noisy", "clean"), make_pair(0), strict=True):
        (folder / name).mkdir(parents=True)
        Image.fromarray(image[..., 0].astype(np.uint16) * 16 + 2000).save(folder / name / "a.png")
    for actual, image in zip(load_data(f"deep:{folder}").load(0), make_pair(0), strict=True):
        np.testing.assert_array_equal(actual, image[..., :1].astype(np.uint16) * 16 + 2000)
    run("--data", f"deep:{folder}", "--model", model, "--steps", 1, "--output_dir", tmp_path / "out")
    noisy, clean = (as_tensor(image) for image in load_data(f"deep:{folder}").load(0))
    pipe = RealDenoisePipeline.from_pretrained(model)
    expected = psnr(pipe(noisy, num_inference_steps=1, output_type="pt").images, clean).item()
    assert read_methods(tmp_path / "out")["tiny, 1 step"]["figures"]["psnr"] == pytest.approx(expected, rel=1e-4)
    assert Image.open(tmp_path / "out" / "sheet-deep.png").size > (100, 100)


def test_metrics_of_our_own_by_name(pairs, model, tmp_path, capsys):
    metrics = ["psnr_fitted", "psnr_texture", "ssim_texture"]
    args = ["--model", model, "--steps", 1, "--extra_metrics", *metrics, "--output_dir", tmp_path]
    run("--data", f"mine:{pairs}", *args)
    figures = read_methods(tmp_path)["noisy input"]["figures"]
    expected = [
        np.mean([metric(*map(as_tensor, make_pair(i))).item() for i in range(3)])
        for metric in (psnr_fitted, psnr_texture, ssim_texture)
    ]
    assert [figures[name] for name in metrics] == pytest.approx(expected)
    assert "PSNR, gain and offset fitted | PSNR, texture | SSIM, texture |" in capsys.readouterr().out


def test_hub_data_set(tmp_path):
    noisy, clean = make_pair(0)
    columns = {"noisy": [Image.fromarray(noisy)], "clean": [Image.fromarray(clean)]}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image())))
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "test.parquet")
    images = load_data(f"mine:hub:{tmp_path}/data:test")
    np.testing.assert_array_equal(images.load(0)[0], noisy)
    np.testing.assert_array_equal(images.load(0)[1], clean)
    with pytest.raises(ValueError, match="has no split train"):
        load_data(f"mine:hub:{tmp_path}/data:train")
    (tmp_path / "other").mkdir()
    dataset.rename_column("clean", "gt").to_parquet(tmp_path / "other" / "test.parquet")
    with pytest.raises(ValueError, match="no image column 'clean'; its columns are noisy, gt"):
        load_data(f"mine:hub:{tmp_path}/other")
    (tmp_path / "single").mkdir()
    dataset.select_columns("clean").rename_column("clean", "img").to_parquet(tmp_path / "single" / "test.parquet")
    np.testing.assert_array_equal(load_data(f"mine:hub:{tmp_path}/single@none").load(0)[1], clean)


@pytest.mark.parametrize("column", ["noisy", "clean"])
def test_row_without_an_image_is_named(tmp_path, column):
    noisy, clean = map(Image.fromarray, make_pair(0))
    rows = {"noisy": [noisy, noisy], "clean": [clean, clean]}
    rows[column][1] = None
    features = datasets.Features(dict.fromkeys(rows, datasets.Image()))
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "test.parquet")
    with pytest.raises(OSError, match="row 1 of mine cannot be read: the image is missing"):
        run("--data", f"mine:hub:{tmp_path}/data", "--model", "--output_dir", tmp_path / "out")


def test_hub_data_set_of_clean_images_alone(tmp_path):
    features = datasets.Features({"clean": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"clean": [Image.fromarray(make_pair(0)[1])]}, features=features)
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "test.parquet")
    assert len(load_data(f"mine:hub:{tmp_path}/data@phone:800").load(0)) == 2
    with pytest.raises(ValueError, match="has no image column 'noisy'; add noise to"):
        load_data(f"mine:hub:{tmp_path}/data")


def test_clean_images_stay_as_they_are(tmp_path):
    clean = make_pair(0)[1]
    Image.fromarray(clean).save(tmp_path / "a.png")
    for image in load_data(f"mine:{tmp_path}@none").load(0):
        np.testing.assert_array_equal(image, clean)


def test_image_that_cannot_be_read_is_named(pairs):
    file = pairs / "noisy" / "scene1.png"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(OSError, match="scene1.png cannot be read"):
        load_data(f"mine:{pairs}").load(1)


def test_noise_on_clean_images_is_the_same_in_every_run(tmp_path):
    clean = np.full((64, 64, 3), (128, 120, 100), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(clean).save(tmp_path / f"{name}.png")
    noisy, same = load_data(f"mine:{tmp_path}@gaussian:10").load(0)
    np.testing.assert_array_equal(same, clean)
    assert (noisy.astype(float) - clean).std() == pytest.approx(10, rel=0.05)
    np.testing.assert_array_equal(load_data(f"mine:{tmp_path}@gaussian:10").load(0)[0], noisy)
    # another image gets other noise
    assert (load_data(f"mine:{tmp_path}@gaussian:10").load(1)[0] != noisy).any()


def test_grey_images_stay_grey_and_get_grey_noise(tmp_path):
    clean = make_pair(0, 96, 96)[1]
    for folder, image in (("colour", Image.fromarray(clean)), ("grey", Image.fromarray(clean).convert("L"))):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "a.png")
    for spec, low, high in (
        ("grey@none", 0, 0),
        ("grey@gaussian:10", 9.5, 10.5),  # a mean over three channels would have reduced it
        ("colour@grey-gaussian:10", 9.5, 10.5),
        ("grey@phone:1600", 3, 30),
        ("colour@grey-phone:1600", 3, 30),
    ):
        noisy, truth = load_data(f"mine:{tmp_path}/{spec}").load(0)
        assert noisy.shape == truth.shape == (96, 96, 1)
        assert low <= (noisy.astype(float) - truth).std() <= high, spec
        if "phone" not in spec:
            np.testing.assert_array_equal(truth[..., 0], np.asarray(Image.fromarray(clean).convert("L")))
    noisy, truth = load_data(f"mine:{tmp_path}/colour@gaussian:10").load(0)
    assert noisy.shape == truth.shape == (96, 96, 3)


def test_grey_pairs_are_measured_in_one_channel(pairs, model, tmp_path):
    """By all methods, and in files and sheets; with equal channels the figures would be the same."""
    args = ["--model", model, "--steps", 1, "--compare", "wavelet", "nlm", "ffdnet", "--max_pictures", 1]
    run("--data", f"mine:{pairs}@grey-gaussian:20", *args, "--output_dir", tmp_path / "out")
    methods = read_methods(tmp_path / "out")
    noisy, clean = load_data(f"mine:{pairs}@grey-gaussian:20").load(0)
    expected = [metric(*map(as_tensor, (noisy, clean))).item() for metric in (psnr, ssim, ssim_matlab)]
    figures = methods["noisy input"]["figures"]
    np.testing.assert_allclose([figures[k] for k in ("psnr", "ssim", "ssim_matlab")], expected, rtol=1e-6)
    for name in ("wavelet", "nlm", "ffdnet"):
        # told the level, they know it: noise taken for colour noise would keep most of its strength
        assert methods[f"{name}, true sigma"]["figures"]["gain"] > 4, name
    pipe = RealDenoisePipeline.from_pretrained(model)
    denoised = pipe(as_tensor(noisy), num_inference_steps=1, output_type="pt").images
    assert methods["tiny, 1 step"]["figures"]["psnr"] == pytest.approx(
        psnr(denoised, as_tensor(clean)).item(), rel=1e-4
    )
    assert Image.open(tmp_path / "out" / "sheet-mine.png").size > (100, 100)


@pytest.mark.parametrize("camera", ["phone", "camera"])
def test_noise_of_a_camera_grows_with_its_iso(tmp_path, camera):
    Image.fromarray(make_pair(0, 64, 64)[1]).save(tmp_path / "a.png")
    errors = []
    for iso in (100, 6400):
        noisy, clean = load_data(f"mine:{tmp_path}@{camera}:{iso}").load(0)
        errors.append(psnr(as_tensor(noisy), as_tensor(clean)).item())
    assert errors[0] > errors[1] + 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("polyu", "NAME:PATH"),
        ("polyu:missing-folder", "There is no folder missing-folder"),
        ("polyu:{empty}", "neither noisy/ and clean/"),
        ("polyu:{empty}@none", "No images were found"),
        ("polyu:{pairs}@blur:3", "must be @none, @gaussian:SIGMA or @CAMERA:ISO .*phone"),
        ("polyu:{pairs}@gaussian", "must be @none, @gaussian:SIGMA"),
        ("polyu:{pairs}@none:3", "must be @none, @gaussian:SIGMA"),
        ("polyu:{pairs}/noisy", "neither noisy/ and clean/.* as in polyu:.*@none"),
    ],
)
def test_data_that_cannot_be_read_is_named(tmp_path, pairs, spec, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        load_data(spec.format(empty=tmp_path / "empty", pairs=pairs))


def write_sidd(folder, shape=(2, 3, 16, 16, 3), names=("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")):
    blocks = np.random.default_rng(0).integers(0, 256, (len(names), *shape), dtype=np.uint8)
    for name, part in zip(names, blocks, strict=True):
        scipy.io.savemat(folder / f"{name}.mat", {name: part})
    return blocks


@pytest.mark.slow
def test_sidd_validation_of_the_true_shape_in_bounded_memory(tmp_path):
    blocks = np.zeros((40, 32, 256, 256, 3), np.uint8, order="F")
    first, last = np.random.default_rng(0).integers(0, 256, (2, 2, 256, 256, 3), dtype=np.uint8)
    for name, a, b in zip(("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"), first, last, strict=True):
        blocks[0, 0], blocks[39, 31] = a, b
        scipy.io.savemat(tmp_path / f"{name}.mat", {name: blocks})
    tracemalloc.start()
    images = load_data(f"sidd-val:{tmp_path}")
    noisy, clean = images.load(1279)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * 2 * blocks.nbytes  # what the two files hold, and no copy of it
    assert images.names[0] == "0000_00" and images.names[-1] == "0039_31" and len(images.names) == 1280
    np.testing.assert_array_equal(np.stack([noisy, clean]), last)
    del images
    run("--data", f"sidd-val:{tmp_path}", "--model", "--max_pictures", 2, "--output_dir", tmp_path / "out")
    expected = [psnr(as_tensor(noisy), as_tensor(clean)).item() for noisy, clean in (first, last)]
    assert read_methods(tmp_path / "out")["noisy input"]["figures"]["psnr"] == pytest.approx(np.mean(expected))


def test_sidd_file_of_matlab_7_3(tmp_path):
    blocks = write_sidd(tmp_path)
    for name, part in zip(("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"), blocks, strict=True):
        with h5py.File(tmp_path / f"{name}.mat", "w", userblock_size=512) as file:
            file[name] = part.T  # as MATLAB writes it
        with open(tmp_path / f"{name}.mat", "r+b") as file:
            header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
            file.write(header)
    images = load_data(f"sidd:{tmp_path}")
    assert len(images.names) == 6
    np.testing.assert_array_equal(np.stack(images.load(4)), blocks[:, 1, 1])


def test_sidd_file_with_another_key_names_what_it_has(tmp_path):
    write_sidd(tmp_path)
    scipy.io.savemat(tmp_path / "ValidationGtBlocksSrgb.mat", {"siddplus": np.zeros(3), "other": np.zeros(2)})
    with pytest.raises(ValueError, match="must hold the variable ValidationGtBlocksSrgb, and has siddplus, other"):
        load_data(f"sidd:{tmp_path}")
    scipy.io.savemat(tmp_path / "ValidationGtBlocksSrgb.mat", {"ValidationGtBlocksSrgb": np.zeros((1, 3, 16, 16, 3))})
    with pytest.raises(ValueError, match=r"must be uint8 \[2, 3, 16, 16, 3\] .*, not float64 \[1, 3, 16, 16, 3\]"):
        load_data(f"sidd:{tmp_path}")
    (tmp_path / "ValidationGtBlocksSrgb.mat").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="ValidationGtBlocksSrgb.mat cannot be read as a MATLAB file"):
        load_data(f"sidd:{tmp_path}")
    (tmp_path / "ValidationGtBlocksSrgb.mat").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*ValidationGtBlocksSrgb.mat"):
        load_data(f"sidd:{tmp_path}")


# methods


@pytest.mark.parametrize("name", ["nlm", "wavelet", "ffdnet"])
def test_peers_remove_noise(name):
    noisy, clean = (p.astype(np.float32) / 255 for p in make_pair(0, 64, 64, sigma=25))
    denoise, takes_sigma = load_peer(name, CPU)
    assert takes_sigma

    def error(sigma):
        return np.mean((denoise(noisy, sigma) - clean) ** 2)

    # by 5 dB and more, blind and told the best level
    blind, best = blind_sigma(noisy), best_sigma(partial(denoise, noisy), noisy, clean)
    assert blind * 255 == pytest.approx(25, rel=0.15)
    assert error(blind) < 0.3 * np.mean((noisy - clean) ** 2)
    assert error(best) <= min(error(blind), error(25 / 255)) * 1.02


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_removes_noise(channels):
    noisy, clean = (p[..., :channels].astype(np.float32) / 255 for p in make_pair(0, 32, 32, sigma=25))
    denoise, takes_sigma = load_peer("bm3d", CPU)
    assert takes_sigma
    assert np.mean((denoise(noisy, 25 / 255) - clean) ** 2) < 0.3 * np.mean((noisy - clean) ** 2)


def test_peer_without_its_package_says_which_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ValueError, match=r"bm3d cannot be imported .*gdd-diffusers\[eval\]"):
        load_peer("bm3d", CPU)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match="spandrel cannot be imported .*pip install spandrel"):
        load_peer("spandrel:NAFNet:weights.pth", CPU)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match="--extra_metrics needs pyiqa"):
        evaluate.load_metrics(["lpips"], CPU)


NETWORKS_OF_OTHERS = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import evaluate
from evaluation.peers import load_peer
import deepinv.models
from spandrel.architectures.NAFNet import NAFNet

torch.manual_seed(0)
image, cpu = torch.rand(37, 50, 3).numpy(), torch.device("cpu")
batch = torch.from_numpy(image).movedim(-1, 0)[None]

def error_of(name):
    try:
        load_peer(name, cpu)
    except (ValueError, OSError) as error:
        return str(error)

for name, takes_sigma in (("DnCNN", False), ("DRUNet", True)):
    network = getattr(deepinv.models, name)(pretrained=None).eval()
    torch.save(network.state_dict(), f"{name}.pth")
    denoise, takes = load_peer(f"deepinv:{name}:{name}.pth", cpu)
    assert takes == takes_sigma
    sigma = [25 / 255] * takes_sigma
    with torch.no_grad():
        expected = network(batch, *sigma)[0].movedim(0, -1).numpy()
    assert abs(denoise(image, *sigma) - expected).max() < 1e-5
assert "deepinv has no model 'Median'" in error_of("deepinv:Median:DnCNN.pth")
assert "deepinv:DnCNN:DRUNet.pth cannot be loaded: RuntimeError" in error_of("deepinv:DnCNN:DRUNet.pth")
assert "There is no file missing.pth" in error_of("deepinv:DnCNN:missing.pth")

network = NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]).eval()
torch.save({"params": network.state_dict()}, "NAFNet.pth")
denoise, takes_sigma = load_peer("spandrel:NAFNet:NAFNet.pth", cpu)
assert not takes_sigma
with torch.no_grad():
    expected = network(batch)[0].movedim(0, -1).clamp(0, 1).numpy()
assert abs(denoise(image) - expected).max() < 1e-5
assert "NAFNet.pth is a model of NAFNet, not of SwinIR" in error_of("spandrel:SwinIR:NAFNet.pth")
Path("damaged.pth").write_bytes(b"no weights")
assert "cannot be loaded" in error_of("spandrel:NAFNet:damaged.pth")

names = ["spandrel:NAFNet:NAFNet.pth", "deepinv:DnCNN:DnCNN.pth"]
words = ["--data", sys.argv[2], "--max_pictures", "1", "--model", "--compare", *names, "--output_dir", "out"]
assert evaluate.main(evaluate.parse_args(words))
"""


@pytest.fixture
def peers():
    """The environment of a process that has spandrel and deepinv, which `make test` installs apart from the rest."""
    folder = Path(sys.prefix) / "peers"
    if not folder.is_dir():
        pytest.skip("make peers installs spandrel and deepinv")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_networks_of_spandrel_and_deepinv(pairs, peers, tmp_path):
    command = [sys.executable, "-c", NETWORKS_OF_OTHERS, EXAMPLES, f"mine:{pairs}"]
    process = subprocess.run(command, cwd=tmp_path, env=peers, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert {"spandrel:NAFNet", "deepinv:DnCNN"} <= read_methods(tmp_path / "out").keys()


@pytest.mark.parametrize("name", ["median", "deepinv:DRUNet", "other:Net:file.pth"])
def test_unknown_peer_is_named(name):
    with pytest.raises(ValueError, match=f"--compare knows bm3d, .* not '{name}'"):
        load_peer(name, CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_peak_memory_counts_what_is_held_for_a_moment():
    for _ in range(2):  # the peak of the first is no part of the second
        with PeakMemory() as memory:
            x = np.ones(50_000_000, np.uint8)
            del x
        assert 49 < memory.mb < 60
        with PeakMemory() as memory:
            pass
        assert memory.mb < 5


def test_denoiser_is_warmed_up_once_and_run_once():
    calls = []

    def denoise(image, sigma):
        calls.append(sigma)
        return image

    image, warm = np.zeros((8, 8, 3), np.float32), set()
    for _ in range(2):
        run = runner(image, warm)
        assert run(denoise, 0.1) is run(denoise, 0.1)
    assert calls == [0.1, 0.1, 0.1]  # once more in all than it was asked for


@pytest.mark.parametrize(
    ("denoise", "message"),
    [(lambda x: x * math.nan, "returned NaN"), (lambda x: x[1:], r"an image of shape \(39, 56, 3\)")],
)
def test_results_that_are_no_image_are_refused(denoise, message):
    noisy, clean = (p.astype(np.float32) / 255 for p in make_pair(0))
    with pytest.raises(ValueError, match=message):
        measure(Method("broken", denoise), runner(noisy, set()), noisy, clean, None, {"psnr": psnr}, CPU)


def test_metric_that_fails_on_an_image_is_named():
    def needs_256_px(result, clean):
        raise AssertionError("too small")

    noisy, clean = (p.astype(np.float32) / 255 for p in make_pair(0, 32, 32))
    with pytest.raises(ValueError, match="lpips cannot measure an image of 32 x 32 pixels: too small"):
        measure(Method("any", lambda x: x), runner(noisy, set()), noisy, clean, None, {"lpips": needs_256_px}, CPU)


# runs


def test_pairs_without_any_noise_are_measured_without_a_gain(pairs, model, tmp_path):
    for file in (pairs / "clean").iterdir():
        (pairs / "noisy" / file.name).write_bytes(file.read_bytes())
    run("--data", f"untouched:{pairs}", "--model", model, "--steps", 1, "--output_dir", tmp_path / "out")
    figures = read_methods(tmp_path / "out")["tiny, 1 step"]["figures"]
    assert "psnr" in figures and "gain" not in figures


def test_run_writes_true_figures(pairs, model, tmp_path, capsys):
    out = tmp_path / "out"
    run("--data", f"mine:{pairs}", "--model", model, "--steps", 1, 3, "--compare", "wavelet", "--output_dir", out)
    pipe = RealDenoisePipeline.from_pretrained(model)
    pipe.scheduler = InterpolationScheduler.from_config(pipe.scheduler.config, step_rule="origin")
    expected, gains = [], []
    for i in range(3):
        noisy, clean = (as_tensor(p) for p in make_pair(i))
        denoised = pipe(noisy, num_inference_steps=3, output_type="pt").images
        expected.append([metric(denoised, clean).item() for metric in (psnr, ssim, ssim_matlab)])
        gains.append(expected[-1][0] - psnr(noisy, clean).item())
    methods = read_methods(out)
    figures = methods["tiny, origin, 3 steps"]["figures"]
    actual = [figures[name] for name in ("psnr", "ssim", "ssim_matlab")]
    np.testing.assert_allclose(actual, np.mean(expected, axis=0), rtol=1e-4)
    assert figures["worst_gain"] == pytest.approx(min(gains), abs=1e-3)
    assert figures["worst_picture"] == f"{np.argmin(gains):04d}_scene{np.argmin(gains)}"
    assert figures["mpx_per_second"] > 0
    assert methods["wavelet, best sigma"]["figures"]["psnr"] >= methods["wavelet, blind"]["figures"]["psnr"]
    names = ["noisy input"]
    names += ["tiny, 1 step", "tiny, origin, 3 steps", "tiny, improved, 3 steps"]
    assert list(methods) == [*names, "wavelet, blind", "wavelet, best sigma"]
    assert [methods[name]["dtype"] for name in ("tiny, 1 step", "wavelet, blind")] == ["float32", "float32"]
    for name in ("steps.png", "time.png", "sheet-mine.png"):
        assert Image.open(out / name).size > (100, 100)
    said = capsys.readouterr().out
    for line in (
        f"| tiny, origin, 3 steps   | {figures['psnr']:.2f}",
        f"|                         | {'mine':9} | Mpx/s",
    ):
        assert line in (out / "results.md").read_text() and line in said


def test_one_step_is_the_same_under_both_rules(pairs, model, tmp_path):
    """It is measured once, since this holds."""
    pipe, noisy = RealDenoisePipeline.from_pretrained(model), as_tensor(make_pair(0)[0])
    for strength in (1.0, 0.6):
        results = []
        for rule in ("origin", "improved"):
            pipe.scheduler = InterpolationScheduler.from_config(pipe.scheduler.config, step_rule=rule)
            results.append(pipe(noisy, num_inference_steps=1, strength=strength, output_type="pt").images)
        torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    run("--data", f"mine:{pairs}", "--model", model, "--steps", 1, "--strength", 1, 0.6, "--output_dir", tmp_path)
    assert list(read_methods(tmp_path)) == ["noisy input", "tiny, 1 step", "tiny, 1 step, strength 0.6"]


def test_strengths_are_kept_apart(pairs, model, tmp_path):
    """ "strength 0" begins as "strength 0.5" does."""
    run("--data", f"mine:{pairs}", "--model", model, "--steps", 1, "--strength", 0, 0.5, "--output_dir", tmp_path)
    methods = read_methods(tmp_path)
    noisy, zero, half = (method["figures"]["psnr"] for method in methods.values())
    assert zero == pytest.approx(noisy) and half != pytest.approx(noisy)


def test_weights_of_one_architecture_are_kept_apart(pairs, tmp_path, monkeypatch):
    files = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for file in files:
        file.write_bytes(file.name.encode())
    monkeypatch.setattr(evaluate, "load_peer", lambda name, device: (lambda image: image, False))
    names = [f"spandrel:Net:{file}" for file in files]
    peers = [*names, f"spandrel:Other:{files[0]}"]
    args = evaluate.parse_args(["--data", f"mine:{pairs}", "--model", "--compare", *peers])
    methods = evaluate.load_methods(args, CPU)[1:]
    assert [method.name for method in methods] == [*names, "spandrel:Other"]
    assert len({method.fingerprint for method in methods[:2]}) == 2


def test_a_pair_without_noise_gains_nothing_and_leaves_valid_json(pairs, model, tmp_path):
    shutil.copy(next((pairs / "clean").iterdir()), tmp_path / "still.png")
    for name in ("noisy", "clean"):
        shutil.copy(tmp_path / "still.png", pairs / name / "still.png")
    run("--data", f"mine:{pairs}", "--model", model, "--steps", 1, "--output_dir", tmp_path)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    figures = read_methods(tmp_path)["tiny, 1 step"]["figures"]
    assert np.isfinite(figures["gain"]) and "still" not in figures["worst_picture"]


def test_peers_get_the_known_noise_level(pairs, tmp_path):
    run("--data", f"mine:{pairs}@gaussian:20", "--model", "--compare", "wavelet", "--output_dir", tmp_path)
    methods = read_methods(tmp_path)
    assert list(methods) == ["noisy input", "wavelet, blind", "wavelet, true sigma", "wavelet, best sigma"]
    rows = (tmp_path / "mine" / "rows" / "wavelet-true-sigma.0.jsonl").read_text().split()
    assert f"{20 / 255}" in " ".join(rows)
    best, true = (methods[f"wavelet, {way} sigma"]["figures"]["psnr"] for way in ("best", "true"))
    assert best >= true - 0.05  # the search goes in steps


def test_noise_levels_are_chosen(pairs, tmp_path):
    args = ["--data", f"mine:{pairs}@gaussian:20", "--model", "--compare", "wavelet", "--output_dir", tmp_path]
    run(*args, "--sigma", "true")
    assert list(read_methods(tmp_path)) == ["noisy input", "wavelet, true sigma"]


def test_names_of_peers_with_commas(pairs, tmp_path):
    folder = tmp_path / "dncnn, 16 channels"
    rivals.save(rivals.build("dncnn"), "dncnn", folder)
    args = ["--data", f"mine:{pairs}", "--model", "--compare", f"rival:{folder}", "wavelet", "--output_dir", tmp_path]
    run(*args)
    methods = read_methods(tmp_path)
    assert [methods[name]["sigma"] for name in ("dncnn, 16 channels", "wavelet, blind")] == [None, "blind"]
    assert [method["kind"] for method in methods.values()] == [None, folder.name, "wavelet", "wavelet"]
    for name in ("time.png", "sheet-mine.png", "crops.png"):
        assert Image.open(tmp_path / name).size > (100, 100)


def test_clean_images_are_compared_with_themselves(pairs, model, tmp_path, capsys):
    args = ["--data", f"clean:{pairs}@none", "--model", model, "--steps", 1, "--strength", 0, 1]
    run(*args, "--compare", "wavelet", "--output_dir", tmp_path)
    methods = read_methods(tmp_path)
    assert list(methods) == ["tiny, 1 step, strength 0", "tiny, 1 step", "wavelet, blind"]
    clean = as_tensor(make_pair(0)[1])
    denoised = RealDenoisePipeline.from_pretrained(model)(clean, num_inference_steps=1, output_type="pt").images
    row = json.loads((tmp_path / "clean" / "rows" / "tiny-1-step.0.jsonl").read_text().splitlines()[1])
    assert row["psnr"] == pytest.approx(psnr(denoised, clean).item(), rel=1e-4)
    assert "gain" not in methods["tiny, 1 step"]["figures"]
    # what is left as it is has an infinite PSNR, for which JSON has no number
    assert "psnr" not in methods["tiny, 1 step, strength 0"]["figures"]
    assert "| tiny, 1 step, strength 0 | inf " in capsys.readouterr().out


def test_summary_has_a_column_for_each_data_set(pairs, model, tmp_path):
    args = ["--data", f"a:{pairs}", "--data", f"b:{pairs}@gaussian:10", "--model", model, "--steps", 1]
    run(*args, "--compare", "wavelet", "--output_dir", tmp_path)
    table = (tmp_path / "results.md").read_text().partition("## PSNR in dB")[2].partition("##")[0]
    cells = {line.split("|")[1].strip(): line.split("|")[2:4] for line in table.strip().splitlines()}
    assert [cell.strip() for cell in cells[""]] == ["a", "b"]
    for column in range(2):
        methods = read_methods(tmp_path, column)
        psnrs = {name: methods[name]["figures"]["psnr"] for name in methods if "sigma" not in name}
        for name, value in psnrs.items():
            bold = "**" if value == max(psnrs.values()) else ""
            assert cells[name][column].strip() == f"{bold}{value:.2f}{bold}"


def test_resumed_run_measures_only_what_is_missing(pairs, model, tmp_path):
    out = tmp_path / "out"
    args = ["--data", f"mine:{pairs}", "--model", model, "--steps", 1, "--rules", "improved", "--output_dir", out]
    run(*args)
    file = out / "mine" / "rows" / "tiny-1-step.0.jsonl"
    first, second, third = filter(None, file.read_text().split("\n"))
    figures = read_methods(out)["tiny, 1 step"]["figures"]
    # as if the run had been stopped while writing the third line
    cut_off = f"{first}\n\n{second}\n\n{third[:30]}"
    file.write_text(cut_off)
    run(*args)
    assert file.read_text().startswith(cut_off)
    new = list(filter(None, file.read_text().removeprefix(cut_off).split("\n")))
    assert [json.loads(line)["picture"] for line in new] == ["0002_scene2"]
    assert read_methods(out)["tiny, 1 step"]["figures"]["psnr"] == figures["psnr"]
    done = file.read_text()
    run(*args)
    assert file.read_text() == done


def test_other_weights_are_measured_anew(pairs, model, tmp_path):
    out = tmp_path / "out"
    args = ["--data", f"mine:{pairs}", "--model", model, "--steps", 1, "--rules", "improved", "--output_dir", out]
    run(*args)
    before = read_methods(out)["tiny, 1 step"]["figures"]["psnr"]
    pipe = RealDenoisePipeline.from_pretrained(model)
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    pipe.save_pretrained(model)
    run(*args)
    methods = read_methods(out)
    # no noise predicted: the input as it was
    assert methods["tiny, 1 step"]["figures"]["gain"] == 0 != methods["noisy input"]["figures"]["psnr"] - before


def test_model_that_returns_nan_fails_its_row_only(pairs, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "broken")
    pipe = RealDenoisePipeline.from_pretrained(model)
    torch.nn.init.constant_(pipe.unet.conv_out.bias, math.nan)
    pipe.save_pretrained(tmp_path / "broken")
    out = tmp_path / "out"
    run("--data", f"mine:{pairs}", "--model", tmp_path / "broken", model, "--steps", 1, "--output_dir", out)
    methods = read_methods(out)
    assert "NaN" in methods["broken, 1 step"]["error"] and "figures" not in methods["broken, 1 step"]
    assert "figures" in methods["tiny, 1 step"]
    assert "| broken, 1 step | failed: ValueError" in capsys.readouterr().out
    # once the model is mended, the same command gets its figures
    shutil.rmtree(tmp_path / "broken")
    shutil.copytree(model, tmp_path / "broken")
    run("--data", f"mine:{pairs}", "--model", tmp_path / "broken", model, "--steps", 1, "--output_dir", out)
    assert "figures" in read_methods(out)["broken, 1 step"]


def test_metrics_without_a_reference_are_taken_where_there_is_none(tmp_path, model, monkeypatch):
    """Those of pyiqa have such an attribute."""
    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=lambda name, device: brightness))

    def brightness(result, clean):
        return result.mean()

    brightness.metric_mode = "NR"
    blocks = write_sidd(tmp_path, names=["BenchmarkNoisyBlocksSrgb"])[0]
    args = ["--data", f"sidd:{tmp_path}", "--model", "--compare", "wavelet", "--extra_metrics", "brightness"]
    run(*args, "--output_dir", tmp_path)
    methods = read_methods(tmp_path)
    assert methods["noisy input"]["figures"] == {"brightness": pytest.approx((blocks / 255).mean(), rel=1e-3)}
    assert methods["wavelet, blind"]["figures"].keys() >= {"brightness", "mpx_per_second"}


def test_subset_is_spread_and_the_same_for_all(pairs, model, tmp_path):
    out = tmp_path / "out"
    run("--data", f"mine:{pairs}", "--model", "--compare", "wavelet", "--max_pictures", 2, "--output_dir", out)
    assert json.loads((out / "results.json").read_text())[0]["pictures"] == ["0000_scene0", "0002_scene2"]
    assert "2 images of 3: 0000_scene0, 0002_scene2" in (out / "results.md").read_text()


@pytest.mark.slow
def test_two_processes_share_the_images(pairs, model, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [EXAMPLES / "evaluate.py", "--data", f"mine:{pairs}", "--model", model, "--steps", "1"]
    subprocess.run([*command, "--output_dir", tmp_path / "out"], check=True, capture_output=True, timeout=300)
    rows = tmp_path / "out" / "mine" / "rows"
    counts = [(rows / f"tiny-1-step.{i}.jsonl").read_text().count("picture") for i in range(2)]
    assert counts == [2, 1]
    run("--data", f"mine:{pairs}", "--model", model, "--steps", 1, "--output_dir", tmp_path / "single")
    figures = [read_methods(tmp_path / name)["tiny, 1 step"]["figures"] for name in ("out", "single")]
    assert figures[0]["psnr"] == pytest.approx(figures[1]["psnr"], abs=1e-3)


def launch(monkeypatch, *args):
    """Run the example as a script."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, args)])
    runpy.run_path(str(EXAMPLES / "evaluate.py"), run_name="__main__")


def test_mistakes_end_in_one_sentence(monkeypatch, model):
    with pytest.raises(SystemExit, match="^error: There is no folder missing-folder"):
        launch(monkeypatch, "--model", model, "--data", "polyu:missing-folder")


def test_a_row_that_failed_changes_the_exit_code(pairs, tmp_path, monkeypatch):
    pipe = make_pipeline()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, math.nan)
    pipe.save_pretrained(tmp_path / "broken")
    args = ["--data", f"mine:{pairs}", "--steps", 1, "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit, match="^error: some rows of the tables failed"):
        launch(monkeypatch, *args, "--model", tmp_path / "broken")
    launch(monkeypatch, *args, "--model")


# reports


def test_crops_show_where_results_differ_most():
    first = np.zeros((70, 100, 3), np.uint8)
    second = first.copy()
    second[5, 5] = 200  # more at one pixel
    second[40:60, 70:90] = 100  # more in all
    (left, top), difference = most_different([Image.fromarray(first), Image.fromarray(second)], 32, 32)
    assert (left, top) == (64, 32)
    assert difference > 0 == most_different([Image.fromarray(first)] * 2, 32, 32)[1]


@pytest.mark.slow
def test_card_gets_figures_with_the_variant_and_keeps_the_rest(pairs, model, tmp_path):
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Mine\n\nWords.\n")
    args = ["--data", f"mine:{pairs}", "--model", model, "--steps", 3, "--output_dir", tmp_path / "out"]
    args.append("--write_card")
    run(*args)
    run(*args)  # once more, in place of the first
    card = ModelCard.load(model / "README.md")
    assert card.data.license == "apache-2.0" and "Words." in card.text
    assert len(card.data.eval_results) == 6
    figures = read_methods(tmp_path / "out")["tiny, improved, 3 steps"]["figures"]
    found = {result.metric_name: result for result in card.data.eval_results}
    result = found["SSIM (MATLAB), improved, 3 steps"]
    assert (result.dataset_name, result.dataset_type) == ("mine, 3 images", "mine-3-images")
    assert result.metric_type == "ssim"
    assert result.metric_value == round(figures["ssim_matlab"], 4)


@pytest.mark.slow
def test_card_keeps_the_newest_figures_of_each_test_set_in_its_metadata_and_its_table(pairs, model, tmp_path):
    model_card("tiny", limits="Text blurs.").save(model / "README.md")
    args = ["--model", model, "--steps", 1, "--write_card", "--output_dir", tmp_path / "out"]
    run(*args, "--data", f"a:{pairs}", "--max_pictures", 2)
    assert "Not measured" not in (model / "README.md").read_text()
    run(*args, "--data", f"b:{pairs}", "--max_pictures", 1)
    figures = {name: m["figures"] for name, m in read_methods(tmp_path / "out").items()}
    run(*args, "--data", f"a:{pairs}")
    card = ModelCard.load(model / "README.md")
    assert [r.dataset_name for r in card.data.eval_results] == ["b, 1 image"] * 3 + ["a, 3 images"] * 3
    rows = [
        [f"{figures[name]['psnr']:.2f}", *(f"{figures[name][metric]:.4f}" for metric in ("ssim", "ssim_matlab"))]
        for name in ("noisy input", "tiny, 1 step")
    ]
    table = [line for line in card.text.splitlines() if line.startswith("|")]
    assert table[2:4] == [f"| b, 1 image | noisy | {' | '.join(rows[0])} |", f"|  | 1 step | {' | '.join(rows[1])} |"]
    assert [line.split("|")[1:3] for line in table[4:]] == [[" a, 3 images ", " noisy "], ["  ", " 1 step "]]
    assert "Text blurs." in card.text and card.text.count("## Results") == 1


@pytest.mark.slow
def test_hand_written_results_in_a_card_are_kept(pairs, model, tmp_path):
    yaml = "model-index:\n- name: mine\n  results:\n  - task: {type: image-to-image}\n"
    yaml += "    dataset: {name: other, type: other}\n    metrics: [{type: psnr, value: 30.0}]\n"
    (model / "README.md").write_text(f"---\n{yaml}---\n\n## Results\n\n| phone | dB |\n| --- | --- |\n| mine | 31 |\n")
    run("--data", f"a:{pairs}", "--model", model, "--steps", 1, "--write_card", "--output_dir", tmp_path / "out")
    card = ModelCard.load(model / "README.md")
    assert card.data.eval_results[0].metric_value == 30.0 and len(card.data.eval_results) == 4
    assert "| a, 3 images | noisy |" in card.text and "| mine | 31 |" in card.text


def test_broken_card_is_named_before_any_work(pairs, model, tmp_path):
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    args = ["--data", f"a:{pairs}", "--model", model, "--write_card", "--output_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match="README.md, which is not a valid card: "):
        run(*args)
    (model / "README.md").write_bytes("Prüfung".encode("latin-1"))
    with pytest.raises(ValueError, match="README.md, which is not a valid card: "):
        run(*args)
    assert not (tmp_path / "out").exists()


def test_more_steps_than_a_model_has_are_refused_before_any_work(pairs, model, tmp_path):
    with pytest.raises(ValueError, match="--steps must be at most 1000 for .*, not 1001"):
        run("--data", f"mine:{pairs}", "--model", model, "--steps", 3, 1001, "--output_dir", tmp_path / "out")


def test_options_that_do_not_go_together(capsys):
    for args, message in [
        (["--data", "a:b", "--write_card"], "--write_card needs folders"),
        (["--data", "a:b", "--write_card", "--model", "org/name"], "--write_card needs folders"),
        (["--data", "a:b", "--submission", "--max_pictures", "3"], "takes all images"),
        (["--data", "a:b", "--max_pictures", "0"], "--max_pictures must be at least 1"),
        (["--data", "a:b", "--steps", "0", "3"], "--steps must be at least 1"),
        (["--data", "a:b", "--strength", "1.5"], "--strength in"),
    ]:
        with pytest.raises(SystemExit):
            evaluate.parse_args(args)
        assert message in capsys.readouterr().err


def test_data_sets_need_different_names(pairs):
    with pytest.raises(ValueError, match="Two data sets are called mine"):
        run("--data", f"mine:{pairs}", "--data", f"mine:{pairs}@none", "--model")


def test_sheet_shows_every_version_of_the_images_that_differ_most(tmp_path):
    grey = np.full((150, 130, 3), 100, np.uint8)
    images = {
        f"p{i}": {"noisy input": grey, "a, 1 step": grey, "b": grey + 10 * i, "clean": grey + 100} for i in range(5)
    }
    first, crops = report.write_sheet(images, tmp_path / "sheet.png")
    assert first == "p4" and [np.asarray(crop)[0, 0, 0] for crop in crops.values()] == [100, 100, 140, 200]
    image = np.asarray(Image.open(tmp_path / "sheet.png"))
    side = report.SHEET_CROP * report.SHEET_ZOOM
    counts = [(image == value).all(axis=-1).sum() for value in (100, 110, 120, 130, 140, 200)]
    expected = [6 * side**2, 0, side**2, side**2, side**2, 3 * side**2]
    np.testing.assert_allclose(counts, expected, atol=500)  # the edges of letters are grey too


def test_rows_show_crops_of_each_test_set_unenlarged(tmp_path):
    crops = {"noisy input": Image.new("RGB", (112, 112), (50, 50, 50)), "a": Image.new("RGB", (112, 112), (200, 0, 0))}
    small = {name: crop.resize((32, 32)) for name, crop in crops.items()}
    report.write_rows({"large": crops, "small": small}, tmp_path / "crops.png")
    image = np.asarray(Image.open(tmp_path / "crops.png"))
    for value in ((50, 50, 50), (200, 0, 0)):
        count = (image == value).all(axis=-1).sum()
        assert count == pytest.approx(112**2 + 32**2, abs=50)  # the edges of letters are grey too


# submissions


def test_sidd_submission_by_the_rules(tmp_path, model):
    blocks = write_sidd(tmp_path, names=["BenchmarkNoisyBlocksSrgb"])[0]
    out = tmp_path / "out"
    args = ["--data", f"sidd:{tmp_path}", "--model", model, "--steps", 1, "--rules", "improved"]
    run(*args, "--compare", "wavelet", "--submission", "--output_dir", out)
    mat = scipy.io.loadmat(out / "sidd" / "submission" / "tiny-1-step" / "SubmitSrgb.mat")
    submitted = mat["DenoisedBlocksSrgb"]
    assert submitted.shape == blocks.shape and submitted.dtype == np.uint8
    pipe = RealDenoisePipeline.from_pretrained(model)
    for i, j in np.ndindex(2, 3):
        expected = pipe(blocks[i, j], output_type="np", num_inference_steps=1).images[0]
        np.testing.assert_array_equal(submitted[i, j], (expected * 255).round())
    with (out / "sidd" / "submission" / "tiny-1-step" / "SubmitSrgb.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ID"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert base64.b64decode(rows[4]["BLOCK"]) == submitted[1, 1].tobytes()
    methods = read_methods(out)
    assert mat["TimeMPSrgb"].item() == pytest.approx(1 / methods["tiny, 1 step"]["figures"]["mpx_per_second"])
    # nothing can be said of quality where the clean images are kept back
    assert "psnr" not in methods["tiny, 1 step"]["figures"] and "wavelet, best sigma" not in methods


def write_dnd(folder, num_images=2, crops=20, size=16):
    """Images of 40 x 50 px and boxes in them, in the layout of DND: HDF5 as MATLAB writes it."""
    rng = np.random.default_rng(0)
    images = rng.random((num_images, 40, 50, 3))
    corners = np.stack(
        [rng.integers(0, 40 - size, (num_images, crops)), rng.integers(0, 50 - size, (num_images, crops))], -1
    )
    (folder / "images_srgb").mkdir(parents=True)
    for i, image in enumerate(images):
        with h5py.File(folder / "images_srgb" / f"{i + 1:04d}.mat", "w") as file:
            file["InoisySRGB"] = image.T
    with h5py.File(folder / "info.mat", "w") as file:
        references = file.create_dataset("info/boundingboxes", (num_images, 1), dtype=h5py.ref_dtype)
        for i in range(num_images):
            # top, left, bottom, right, from 1 and inclusive
            file[f"boxes{i}"] = np.concatenate([corners[i] + 1, corners[i] + size], axis=1).T.astype(float)
            references[i, 0] = file[f"boxes{i}"].ref
    return [
        [image[y : y + size, x : x + size] for y, x in corner] for image, corner in zip(images, corners, strict=True)
    ]


def test_dnd_submission_by_the_rules(tmp_path, model):
    crops = write_dnd(tmp_path / "dnd")
    images = load_data(f"dnd:{tmp_path / 'dnd'}")
    assert images.names[:2] == ["0001_01", "0001_02"] and images.names[-1] == "0002_20"
    np.testing.assert_allclose(images.load(21)[0], crops[1][1], atol=1e-6)
    args = ["--data", f"dnd:{tmp_path / 'dnd'}", "--model", model, "--steps", 1, "--rules", "improved", "--submission"]
    run(*args, "--output_dir", tmp_path / "out")
    folder = tmp_path / "out" / "dnd" / "submission" / "tiny-1-step" / "bundled"
    assert sorted(file.name for file in folder.iterdir()) == ["0001.mat", "0002.mat"]
    pipe = RealDenoisePipeline.from_pretrained(model)
    for i in range(2):
        mat = scipy.io.loadmat(folder / f"{i + 1:04d}.mat")
        assert not mat["israw"].item() and mat["eval_version"].item() == "1.0"
        assert mat["Idenoised"].dtype == object and mat["Idenoised"].size == 20
        for crop, denoised in zip(crops[i], mat["Idenoised"].flatten(), strict=True):
            assert denoised.dtype == np.float32
            expected = pipe(crop.astype(np.float32), output_type="np", num_inference_steps=1).images[0]
            np.testing.assert_allclose(denoised, expected, atol=1e-4)


# mistakes of files


def test_images_too_small_for_ssim_are_left_out_and_the_others_measured(pairs, tmp_path, capsys):
    for folder in ("noisy", "clean"):
        Image.open(pairs / folder / "scene0.png").crop((0, 0, 30, 10)).save(pairs / folder / "tiny.png")
    run("--data", f"mine:{pairs}", "--model", "--compare", "wavelet", "--output_dir", tmp_path / "out")
    assert "Leaving out 1 of 4 images of mine" in (said := capsys.readouterr().err) and "0003_tiny" in said
    part = json.loads((tmp_path / "out" / "results.json").read_text())[0]
    assert part["pictures"] == ["0000_scene0", "0001_scene1", "0002_scene2"] and part["of"] == 4
    expected = [ssim(*map(as_tensor, make_pair(i))).item() for i in range(3)]
    assert part["methods"][0]["figures"]["ssim"] == pytest.approx(np.mean(expected))
    for i in range(3):
        (pairs / "noisy" / f"scene{i}.png").unlink()
        (pairs / "clean" / f"scene{i}.png").unlink()
    with pytest.raises(ValueError, match="All chosen images of mine are smaller than 11 x 11"):
        run("--data", f"mine:{pairs}@gaussian:10", "--model", "--output_dir", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_grey_floats_are_scaled_and_int32_is_refused(tmp_path):
    """Pillow clips both to black and white when it converts them, and two white images are equal."""
    noisy, clean = (image[..., :1] for image in make_pair(0))
    for kind, dtype, white in (("float", np.float32, 1), ("int32", np.int32, 65535)):
        for name, image in (("noisy", noisy), ("clean", clean)):
            (tmp_path / kind / name).mkdir(parents=True)
            pixels = (image[..., 0] / 255 * white).astype(dtype)
            Image.fromarray(pixels).save(tmp_path / kind / name / "a.tif")
    run("--data", f"mine:{tmp_path}/float", "--model", "--output_dir", tmp_path / "out")
    expected = psnr(as_tensor(noisy), as_tensor(clean)).item()
    assert read_methods(tmp_path / "out")["noisy input"]["figures"]["psnr"] == pytest.approx(expected)
    with pytest.raises(OSError, match="a.tif cannot be read"):
        run("--data", f"mine:{tmp_path}/int32", "--model", "--output_dir", tmp_path / "out")
