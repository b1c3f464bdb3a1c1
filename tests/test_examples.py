"""The scripts that have no test file of their own, each launched small."""

import argparse
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io
import torch
from conftest import make_pipeline, save_image
from diffusers import UNet2DModel
from hub_server import TOKEN, Hub, Repo
from huggingface_hub import ModelCard
from PIL import Image

from gdd_diffusers import LocalUNet2DModel


EXAMPLES = Path(__file__).parents[1] / "examples"


def launch(script, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does when it runs a script
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("seams.py", ["--picture", "missing.png"]),
        ("noise_statistics.py", ["missing", "missing", "-o", "noise.png"]),
        ("benchmark.py", ["--model", "./missing"]),
        ("benchmark.py", ["--parts", "peers", "--results", "missing.json"]),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(script, arguments, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        launch(script, *arguments, monkeypatch=monkeypatch)
    message = str(stopped.value)
    assert message.startswith(Path(script).name + ": ") and "missing" in message


SCRIPTS = ["train.py", "evaluate.py", "prepare_data.py", "publish.py", "denoise_dataset.py"]
SCRIPTS += ["rivals/train.py", "rivals/measure.py", "rivals/report.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option_and_says_its_default(script, monkeypatch):
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *_: parsers.append(self) or sys.exit())
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit):
        launch(script, monkeypatch=monkeypatch)
    (parser,) = parsers
    said = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        if not (action.default is None or action.default is False or action.default in ([], argparse.SUPPRESS)):
            default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
            assert f"(default: {default})" in said, action.dest


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


@pytest.mark.slow
def test_benchmark(tmp_path, monkeypatch, capsys):
    make_pipeline().save_pretrained(tmp_path / "model")
    figures = [
        ("model", None, 1, 40.0),
        ("model", None, 3, 10.0),
        ("wavelet", "blind", None, 30.0),
        ("wavelet", "best", None, 31.0),
    ]
    methods = [{"kind": k, "sigma": s, "steps": n, "figures": {"psnr": psnr}} for k, s, n, psnr in figures]
    (tmp_path / "results.json").write_text(json.dumps([{"name": "A", "methods": methods}] * 2))
    monkeypatch.syspath_prepend(EXAMPLES)
    benchmark = importlib.import_module("benchmark")
    monkeypatch.setattr(benchmark, "DENOISED_MEGAPIXELS", 2)
    monkeypatch.setattr(benchmark, "MATRIX_SIZE", {"cuda": 256, "cpu": 256})
    options = ["--megapixels", 1, "--runs", 1, "--num_images", 2, "--compare", "wavelet"]
    options += ["--parts", *benchmark.PARTS, "--model", tmp_path / "model"]
    options += ["--results", tmp_path / "results.json", "--plot", tmp_path / "plot.png"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, options)])
    benchmark.main(benchmark.parse_args())
    said = capsys.readouterr().out
    assert "`gdd --help`" in said and "pipeline / network" in said
    sizes = re.search(r"\| 1 \| 2 \| [\d.]+ \| (\d+) \|", said)
    assert 200 < int(sizes[1]) < 2000
    assert all(f"| {images} |" in said for images in ("2 images of 0.5 to 1.5 Mpx", "one image of 2 Mpx"))
    assert re.search(r"/model, (bfloat16|float32) \| [\d.]+ \| 40.00 \|", said)
    assert re.search(r"\| wavelet \| [\d.]+ \| 30.00, blind; 31.00, best sigma \|", said)
    assert Image.open(tmp_path / "plot.png").size[0] > 600


def test_benchmark_makes_images_of_the_size_that_it_says():
    image = runpy.run_path(str(EXAMPLES / "benchmark.py"))["noisy_photograph"](2)
    assert image.shape[0] * image.shape[1] == pytest.approx(2e6, rel=0.01) and image.std() > 20
    assert torch.from_numpy(image).dtype == torch.uint8


@pytest.fixture
def sidd(tmp_path):
    """A SIDD of small images: the layout and the names of the files are the true ones."""
    for instance, folder in enumerate(("0001_001_S6_00100_00060_3200_L", "0002_002_GP_00800_00350_5500_N"), start=1):
        for shot in ("010", "011"):
            for kind in ("NOISY", "GT"):
                file = f"{instance:04d}_{kind}_SRGB_{shot}.PNG"
                save_image(tmp_path / "SIDD_Medium_Srgb" / "Data" / folder / file, size=(96, 80))
    blocks = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 16, 16, 3), dtype=np.uint8)
    for name, part in zip(("ValidationNoisy", "ValidationGt", "BenchmarkNoisy"), blocks, strict=True):
        folder = tmp_path / ("SIDD_benchmark" if name.startswith("Benchmark") else "SIDD_validation")
        folder.mkdir(exist_ok=True)
        scipy.io.savemat(folder / f"{name}BlocksSrgb.mat", {f"{name}BlocksSrgb": part})
    make_pipeline().save_pretrained(tmp_path / "tiny")
    return tmp_path


@pytest.mark.slow
def test_from_sidd_to_the_hub_by_one_command(sidd):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_TOKEN": TOKEN, "HF_HOME": str(sidd / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = ["bash", EXAMPLES / "sidd.sh", "SIDD_Medium_Srgb", "SIDD_validation", "SIDD_benchmark", "org/gdd-sidd"]
    command += ["--pretrained_model", "tiny", "--max_train_steps", "2", "--crop_size", "32", "--report_to", "none"]
    with Hub() as hub:
        environment["HF_ENDPOINT"] = hub.url
        process = subprocess.run(command, cwd=sidd, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    files = hub.repos["org/gdd-sidd"].commits[hub.repos["org/gdd-sidd"].sha]
    (sidd / "card.md").write_bytes(files["README.md"])
    card = ModelCard.load(sidd / "card.md")
    assert card.data.license == "other"
    measured = {result.dataset_name for result in card.data.eval_results}
    assert measured == {"SIDD validation, 4 images"} and "| SIDD validation, 4 images | noisy |" in card.text
    submission = sidd / "out" / "sidd" / "SIDD-benchmark" / "submission" / "gdd-sidd-1-step"
    assert sorted(file.name for file in submission.iterdir()) == ["SubmitSrgb.csv", "SubmitSrgb.mat"]
    held_out = json.loads((sidd / "gdd-sidd" / "log.jsonl").read_text().splitlines()[0])
    assert held_out["step"] == 0 and "psnr/improved_1" in held_out


CIFAR10_CARD = """---
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
---
"""


# In a process of its own, since the address of the Hub is read when the client is imported
TRAIN_AND_EVALUATE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import evaluate, train

training, measured = json.loads(sys.argv[2])
train.main(train.parse_args(training))
assert evaluate.main(evaluate.parse_args(measured))
"""


@pytest.mark.slow
def test_cifar10_is_measured_and_trained_on(tmp_path):
    """By its name on the Hub, whose image column is `img`."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["airplane", "frog"])})
    files = {"README.md": CIFAR10_CARD.encode()}
    for split, count in (("train", 40), ("test", 3)):
        images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        rows = {"img": [Image.fromarray(image).resize((32, 32)) for image in images], "label": [1] * count}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file := io.BytesIO())
        files[f"plain_text/{split}-00000-of-00001.parquet"] = file.getvalue()
    make_pipeline().save_pretrained(tmp_path / "tiny")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    source = ["--dataset_name", "uoft-cs/cifar10", "--clean_column", "img", "--output_dir", "trained"]
    training = ["--max_train_steps", "2", "--train_batch_size", "4", "--report_to", "none"]
    training += ["--pretrained_model", "tiny", "--crop_size", "32", "--noise_preset", "gaussian"]
    measured = ["--data", "cifar10@gaussian:25", "--data", "phone:hub:uoft-cs/cifar10:test@phone:700"]
    measured += ["--model", "trained", "--steps", "1", "--compare", "wavelet"]
    command = [sys.executable, "-c", TRAIN_AND_EVALUATE, EXAMPLES, json.dumps([source + training, measured])]
    with Hub() as hub:
        hub.repos["uoft-cs/cifar10"] = Repo()
        hub.repos["uoft-cs/cifar10"].commit(files)
        environment["HF_ENDPOINT"] = hub.url
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    validated = json.loads((tmp_path / "trained" / "log.jsonl").read_text().splitlines()[0])
    assert 15 < validated["psnr/noisy"] < 40
    cifar10, phone = json.loads((tmp_path / "out" / "evaluate" / "results.json").read_text())
    assert cifar10["name"] == "cifar10" and len(cifar10["pictures"]) == len(phone["pictures"]) == 3
    figures = {method["name"]: method["figures"] for method in cifar10["methods"]}
    assert figures["noisy input"]["psnr"] == pytest.approx(20.2, abs=1)
    assert {"psnr", "ssim", "ssim_matlab"} <= figures["trained, 1 step"].keys() & figures["wavelet, blind"].keys()


def test_simulated_clusters_lose_what_fails_and_what_is_slow(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    simulate_run = runpy.run_path(str(EXAMPLES / "cluster_costs.py"))["simulate_run"]
    options = {"num_images": 40_000, "batch_size": 8, "restart_seconds": 30}
    never, hourly = (argparse.Namespace(hours_between_failures=h, slow_share=0, **options) for h in (1e9, 1))
    slow = argparse.Namespace(hours_between_failures=1e9, slow_share=0.25, **options)
    assert simulate_run(np.array([9.0]), 1, never) == (pytest.approx(100), 0)
    assert simulate_run(np.array([9.0]), 4, never) == (pytest.approx(25), 0)
    hours, num_failures = simulate_run(np.array([9.0]), 4, hourly)
    assert 60 < num_failures < 150 and 25 < hours < 28
    assert simulate_run(np.array([9.0]), 4, slow)[0] == pytest.approx(100 / 3.5, rel=0.01)
