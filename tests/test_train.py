import copy
import json
import multiprocessing
import os
import platform
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel
from hub_server import TOKEN, Hub
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from gdd_diffusers import InterpolationScheduler, LocalUNet2DModel, RealDenoisePipeline
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.data.layouts import find_images, load_clean
from gdd_diffusers.metrics import psnr


pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import train  # noqa: E402
import train_bundled  # noqa: E402
from training import curves  # noqa: E402
from training.checkpoints import find_checkpoints, load_checkpoint, save_checkpoint, save_pipeline  # noqa: E402
from training.data import held_out_pairs, load_data  # noqa: E402
from training.machine import stop_signals  # noqa: E402
from training.validation import validate  # noqa: E402


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = {
    "_class_name": "LocalUNet2DModel",
    "pixel_unshuffle": 2,
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}


@pytest.fixture(autouse=True)
def new_state():
    """Accelerate keeps one state for each process; each training here is one of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five smooth clean pictures, two held-out pairs, and the configuration of a tiny network."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("photos", "pairs/noisy", "pairs/clean"):
        (folder / name).mkdir(parents=True)
    for i in range(5):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        clean = np.asarray(small.resize((64, 56), Image.Resampling.BICUBIC))
        noisy = (clean + rng.normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(clean).save(folder / "photos" / f"{i}.png")
        if i < 2:
            Image.fromarray(clean).save(folder / "pairs/clean" / f"{i}.png")
            Image.fromarray(noisy).save(folder / "pairs/noisy" / f"{i}.png")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    return folder


def arguments(data, output_dir, **options):
    """Arguments of a short training; `None` leaves a default option out, a list gives it several times."""
    options = {
        "clean_dir": data / "photos",
        "validation_dir": data / "pairs",
        "model_config": data / "tiny.json",
        "output_dir": output_dir,
        "noise_preset": "gaussian",
        "crop_size": 16,
        "train_batch_size": 8,
        "max_train_steps": 6,
        "lr_warmup_steps": 2,
        "validation_steps": 3,
        "validation_inference_steps": 1,
        "checkpointing_steps": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "mixed_precision": "no",
    } | options
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                words += [f"--{name}", *([] if one is True else str(one).split())]
    return words


def run(data, output_dir, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    train.main(train.parse_args(arguments(data, output_dir, **options)))
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]


def assert_same_training(a, b, checkpoint):
    """Logged losses, weights, the best ones, optimizer, schedule and averaged weights, bit for bit."""
    for name in ("log.jsonl", WEIGHTS, f"best/{WEIGHTS}"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for name in ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"):
        assert (a / checkpoint / name).read_bytes() == (b / checkpoint / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training of six steps, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(data, folder, report_to="tensorboard", license="apache-2.0")
    return folder


# What comes out


def test_the_result_is_a_pipeline_of_the_averaged_weights(whole):
    pipe = RealDenoisePipeline.from_pretrained(whole)
    assert isinstance(pipe.unet, LocalUNet2DModel)
    assert pipe.config.pixel_unshuffle == 2
    average = torch.load(whole / "checkpoint-6" / "custom_checkpoint_1.pkl", weights_only=False)["shadow_params"]
    raw = load_file(whole / "checkpoint-6" / "model.safetensors")
    for parameter, expected in zip(pipe.unet.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.data, expected, rtol=0, atol=0)
    name = next(name for name, _ in pipe.unet.named_parameters())
    assert not torch.equal(raw[name], average[0])
    assert pipe(torch.rand(1, 3, 20, 24), output_type="pt").images.shape == (1, 3, 20, 24)


def test_checkpoints_up_to_the_limit_logs_and_images(whole):
    assert [path.name for path in find_checkpoints(whole)] == ["checkpoint-4", "checkpoint-6"]
    assert not list(whole.glob("*.partial"))
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["learning_rate"] == 1e-3 / 2  # after one of two steps of warm-up
    assert lines[-2]["learning_rate"] == 0.0
    scores = [line for line in lines if "psnr/improved_1" in line]
    assert [line["step"] for line in scores] == [3, 6]
    assert {"psnr/noisy", "ssim/noisy", "psnr/origin_1", "ssim/improved_1"} <= scores[0].keys()
    assert 18 < scores[0]["psnr/noisy"] < 24
    assert [path.name for path in sorted((whole / "validation").iterdir())] == ["step-000003.png", "step-000006.png"]
    assert list((whole / "logs").rglob("events.out.tfevents.*"))


def test_the_card_tells_how_it_was_made_and_no_path_of_this_machine(whole, data):
    card = (whole / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "library_name: diffusers" in card
    assert "--clean_dir photos --validation_dir pairs --model_config tiny.json" in card
    assert "5 images, noise simulated by CameraNoise('gaussian')" in card
    assert "6 of 6 steps" in card and "\npython examples/train.py" in card
    assert "--mixed_precision no --license apache-2.0\n" in card
    assert "| step | noisy | improved 1 | origin 1 |" in card
    assert card.count("\n| 3 |") == card.count("\n| 6 |") == 1
    for file in ("README.md", "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        assert str(data.parent) not in (whole / file).read_text()


@pytest.mark.parametrize("prediction_type", ["sample", "flow_prediction"])
def test_learns_to_remove_noise(data, tmp_path, prediction_type):
    lines = run(
        data,
        tmp_path,
        noisy_dir=data / "pairs/noisy",
        gt_dir=data / "pairs/clean",
        clean_dir=None,
        prediction_type=prediction_type,
        learning_rate=1e-2,
        max_train_steps=80,
        validation_steps=80,
        checkpointing_steps=80,
    )
    if prediction_type == "sample":  # x0 output starts from nothing, and takes longer to become faithful
        losses = [line["loss"] for line in lines if "loss" in line]
        assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2
    else:
        assert lines[-1]["psnr/improved_1"] > lines[-1]["psnr/noisy"] + 1


def test_muon_learns_and_goes_on_bit_for_bit(data, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    lines = run(data, whole, optimizer="muon", max_train_steps=24)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    run(data, stopped, optimizer="muon", max_train_steps=24, max_train_minutes=0)
    run(data, stopped, optimizer="muon", max_train_steps=24, resume_from_checkpoint="latest")
    assert_same_training(whole, stopped, "checkpoint-24")

    with pytest.raises(ValueError, match="was trained with --optimizer muon.*--pretrained_model"):
        run(data, stopped, max_train_steps=12, resume_from_checkpoint="latest")
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"pip install .gdd-diffusers\[train\]"):
        run(data, tmp_path / "other", optimizer="muon")


def test_muon_is_for_the_hidden_convolutions(data, tmp_path):
    args = train.parse_args(arguments(data, tmp_path, optimizer="muon"))
    unet = train.build_pipeline(args).unet
    hidden, others = (group["params"] for group in train.build_optimizer(args, unet).param_groups)
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    assert {id(parameter) for parameter in hidden + others} == set(names)
    assert {parameter.ndim for parameter in hidden} == {4}
    outermost = {names[id(parameter)] for parameter in others if parameter.ndim == 4}
    assert outermost == {"conv_in.weight", "conv_out.weight"}


def test_every_option_together(data, tmp_path):
    """Two sources with weights, accumulation, growing crops, a plain UNet2DModel, in half precision with a worker."""
    config = CONFIG | {"_class_name": "UNet2DModel", "pixel_unshuffle": 1, "in_channels": 3, "out_channels": 3}
    (tmp_path / "plain.json").write_text(json.dumps(config))
    output_dir = tmp_path / "out"
    lines = run(
        data,
        output_dir,
        noisy_dir=data / "pairs/noisy",
        gt_dir=data / "pairs/clean",
        weights="1 3",
        noise_preset="mixed",
        model_config=tmp_path / "plain.json",
        crop_size="16:0.5,32",
        gradient_accumulation_steps=2,
        mixed_precision="bf16",
        loss="l2",
        loss_weighting="noise",
        timestep_sampling="far",
        validation_dir=None,
        dataloader_num_workers=1,
    )
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    pipe = RealDenoisePipeline.from_pretrained(output_dir)
    assert type(pipe.unet) is UNet2DModel
    assert pipe.config.min_size == 16
    assert pipe.unet.dtype == torch.float32


@pytest.mark.parametrize("weighting", ["none", "noise"])
def test_accumulating_two_batches_equals_one_of_twice_the_size_except_for_its_images(data, tmp_path, weighting):
    """The gradient is the mean over both, and steps are counted by optimizer steps."""
    lines = run(data, tmp_path, gradient_accumulation_steps=2, max_train_steps=3, loss_weighting=weighting)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    batches = train.TrainingBatches(
        load_data(train.parse_args(arguments(data, tmp_path / "other")))[0], 8, [(16, 1.0)], 6
    )
    torch.manual_seed(0)
    pipe = train.build_pipeline(train.parse_args(arguments(data, tmp_path / "other")))
    losses = []
    for k in range(2):  # before the first step, both see the initial weights
        clean, noisy = (batches[k][name].float() / 127.5 - 1 for name in ("clean", "noisy"))
        t = 1000 * (1 - batches[k]["u"])
        x_t = torch.nn.functional.pixel_unshuffle(pipe.scheduler.add_noise(clean, noisy, t), 2)
        with torch.no_grad():
            x0_hat = torch.nn.functional.pixel_shuffle(pipe.unet(x_t, t).sample, 2)
        noise = (noisy - clean).abs().mean((1, 2, 3), keepdim=True)
        weight = 0.15 / (noise + 0.05) if weighting == "noise" else 1
        losses.append((weight * torch.sqrt((x0_hat - clean) ** 2 + 1e-6)).mean().item())
    assert lines[0]["loss"] == pytest.approx(np.mean(losses), abs=1e-6)


def test_goes_on_with_larger_batches(data, tmp_path, monkeypatch):
    """An odd number of steps was done one by one; from there on, two batches make a step."""
    for _ in range(3):
        run(data, tmp_path, max_train_minutes=0, resume_from_checkpoint="latest")
    updates = []
    step = train.EMAModel.step
    monkeypatch.setattr(train.EMAModel, "step", lambda *args: updates.append(1) or step(*args))
    backward = train.Accelerator.backward
    monkeypatch.setattr(train.Accelerator, "backward", lambda *args: updates.append(0) or backward(*args))
    lines = run(data, tmp_path, gradient_accumulation_steps=2, resume_from_checkpoint="latest")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert updates == [0, 0, 1] * 3
    assert find_checkpoints(tmp_path)[-1].name == "checkpoint-6"


def test_going_back_needs_the_later_checkpoints_out_of_the_way(data, tmp_path):
    """Or the next `latest` would be of the training that was given up."""
    run(data, tmp_path)
    with pytest.raises(ValueError, match="checkpoint-6 is later than .*checkpoint-4.*move the later ones elsewhere"):
        run(data, tmp_path, resume_from_checkpoint=tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-6").rename(tmp_path / "checkpoint-6-of-before")
    lines = run(data, tmp_path, resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} >= {"checkpoint-6", "checkpoint-6-of-before"}


def test_a_scaler_that_was_not_saved_is_named(whole):
    recipe = json.loads((whole / "checkpoint-6" / "recipe.json").read_text())
    accelerator = types.SimpleNamespace(scaler="a GradScaler")
    with pytest.raises(ValueError, match="checkpoint-6 was not trained with --mixed_precision fp16"):
        load_checkpoint(accelerator, whole / "checkpoint-6", recipe)


def test_a_tracker_that_is_not_installed_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ValueError, match="tensorboard is not installed: pip install tensorboard"):
        run(data, tmp_path, report_to="tensorboard")


def test_goes_on_from_a_pipeline(whole, data, tmp_path):
    lines = run(data, tmp_path, pretrained_model=whole, learning_rate=0.0, max_train_steps=2)
    before, after = load_file(whole / WEIGHTS), load_file(tmp_path / WEIGHTS)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)
    scores = [line for line in lines if "psnr/noisy" in line]
    assert [line["step"] for line in scores] == [0, 2]  # what there is to improve on comes first
    assert scores[0] | {"step": 2} == scores[1]


def test_weights_that_training_makes_worse_are_not_the_best(whole, data, tmp_path):
    run(data, tmp_path, pretrained_model=whole, learning_rate=10.0, max_train_steps=2)
    assert (tmp_path / "best" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_bundled_weights_are_found_by_their_name(data, tmp_path):
    args = train.parse_args(arguments(data, tmp_path, pretrained_model="gdd-small"))
    pipeline, expected = train.build_pipeline(args), RealDenoisePipeline.from_pretrained()
    assert pipeline.config.min_size == expected.config.min_size > 16  # not the smallest crops
    expected = expected.unet.state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert (args.learning_rate, train.parse_args(arguments(data, tmp_path)).learning_rate) == (2e-4, 1e-3)


def test_what_was_trained_loads_without_the_package_as_its_card_says(whole, tmp_path):
    card = (whole / "README.md").read_text()
    (line,) = re.findall(r"^pipe = DiffusionPipeline.*", card, re.MULTILINE)
    script = f"""
import sys
sys.modules["gdd_diffusers"] = None
import torch
from diffusers import DiffusionPipeline
{line}
torch.save(pipe(torch.ones(1, 3, 16, 16) / 2, output_type="pt").images, sys.argv[1])
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, tmp_path / "out.pt"]
    subprocess.run(command, cwd=whole.parent, env=environment, check=True, capture_output=True)
    expected = RealDenoisePipeline.from_pretrained(whole)(torch.ones(1, 3, 16, 16) / 2, output_type="pt").images
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=0, atol=0)


def test_teacher_gives_the_target(data, whole, tmp_path):
    taught = run(data, tmp_path, pretrained_model=whole, teacher=whole, max_train_steps=2)
    losses = [line["loss"] for line in taught if "loss" in line]
    assert losses[0] == pytest.approx(1e-3)  # Charbonnier's, of a prediction that is the target


def test_dropout_is_active_in_training_and_not_in_validation(whole, data, tmp_path):
    """With a pretrained model and a learning rate of 0, nothing but dropout can change a score."""
    dropout = tmp_path / "dropout"
    shutil.copytree(whole, dropout, ignore=shutil.ignore_patterns("checkpoint-*", "logs"))
    config = json.loads((whole / "unet" / "config.json").read_text()) | {"dropout": 0.5}
    (dropout / "unet" / "config.json").write_text(json.dumps(config))
    options = {"learning_rate": 0.0, "max_train_steps": 3, "validation_steps": 1}
    with_dropout = run(data, tmp_path / "a", pretrained_model=dropout, **options)
    without = run(data, tmp_path / "b", pretrained_model=whole, **options)
    for a, b in zip(with_dropout, without, strict=True):
        assert a["loss"] != b["loss"] if "loss" in a else a == b
    scores = [line | {"step": 0} for line in with_dropout if "psnr/noisy" in line]
    assert len(scores) == 4 and all(line == scores[0] for line in scores)


def test_learns_from_a_stream(data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = {
        name: [{"bytes": path.read_bytes(), "path": path.name} for path in find_images(data / "pairs" / name)]
        for name in ("noisy", "clean")
    }
    features = datasets.Features({"noisy": datasets.Image(), "clean": datasets.Image()})
    (tmp_path / "hub").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(cells, features=features).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    options = {"clean_dir": None, "validation_dir": None, "dataset_name": tmp_path / "hub", "streaming": True}
    run(data, tmp_path / "a", **options)
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # nothing of it was stored
    run(data, tmp_path / "b", max_train_minutes=0, dataloader_num_workers=1, **options)
    run(data, tmp_path / "b", resume_from_checkpoint="latest", **options)
    assert_same_training(tmp_path / "a", tmp_path / "b", "checkpoint-6")


def test_validation_compares_with_the_pipeline_itself(tmp_path, pipe):
    """The score of a rule is that of the same pipeline with that rule."""
    clean, noisy = torch.rand(2, 1, 3, 32, 32)
    scores = validate(pipe, {"held_out": [(noisy, clean)]}, [1, 3], tmp_path / "pictures" / "1.png")
    scheduler = InterpolationScheduler.from_config(pipe.scheduler.config, step_rule="origin")
    expected = RealDenoisePipeline(pipe.unet, scheduler, pixel_unshuffle=2)
    expected = expected(noisy, num_inference_steps=3, output_type="pt").images
    assert scores["psnr/origin_3"] == pytest.approx(psnr(expected, clean).item())
    assert scores["psnr/noisy"] == pytest.approx(psnr(noisy, clean).item())
    assert Image.open(tmp_path / "pictures" / "1.png").size == (3 * 256, 256)


def test_validates_on_several_sets_and_keeps_the_best_weights_by_all_their_pairs(data, tmp_path):
    """Noisy pairs and one of a clean picture with itself, at a learning rate at which the last weights are bad."""
    for name in ("noisy", "clean"):
        (tmp_path / "still" / name).mkdir(parents=True)
        shutil.copy(data / "photos" / "4.png", tmp_path / "still" / name)
    options = {
        "validation_dir": [data / "pairs", tmp_path / "still"],
        "prediction_type": "flow_prediction",
        "learning_rate": 0.03,
        "validation_steps": 1,
        "validation_inference_steps": "2 1",
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 6,
    }
    scores = [line for line in run(data, tmp_path / "out", **options) if "psnr/noisy" in line]
    for line in scores:
        assert line["psnr/noisy/still"] == 60
        for key in ("psnr/improved_2", "ssim/origin_1", "psnr/noisy"):
            assert line[key] == pytest.approx((2 * line[f"{key}/pairs"] + line[f"{key}/still"]) / 3)
    by_step = {line["step"]: line["psnr/improved_2"] for line in scores}
    best = max(by_step, key=by_step.get)
    assert 1 < best < 6
    checkpoint = tmp_path / "out" / f"checkpoint-{best}" / "custom_checkpoint_1.pkl"
    average = torch.load(checkpoint, weights_only=False)["shadow_params"]
    pipe = RealDenoisePipeline.from_pretrained(tmp_path / "out" / "best")
    for parameter, expected in zip(pipe.unet.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.data, expected, rtol=0, atol=0)
    card = (tmp_path / "out" / "best" / "README.md").read_text()
    assert f"{best} of 6 steps" in card and 'from_pretrained("out/best")' in card
    assert "on 3 held-out pairs" in card and "of all and of pairs, still" in card
    assert "| noisy, pairs | improved 2, pairs | noisy, still |" in card

    # The best so far is read from the log: worse weights that follow a stop do not take its place.
    kept = (tmp_path / "out" / "best" / WEIGHTS).read_bytes()
    for later in range(best + 2, 7):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{later}")
    run(data, tmp_path / "out", **options, resume_from_checkpoint="latest")
    assert (tmp_path / "out" / "best" / WEIGHTS).read_bytes() == kept

    # Scores on other pictures are no match for those from now on.
    options |= {"validation_dir": data / "pairs", "validation_inference_steps": 1}
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    run(data, tmp_path / "out", **options, resume_from_checkpoint="latest")
    assert "6 of 6 steps" in (tmp_path / "out" / "best" / "README.md").read_text()


def test_held_out_images_are_not_trained_on(data, tmp_path):
    args = train.parse_args(arguments(data, tmp_path, validation_dir=None, noise_preset="gaussian"))
    (source,), sets, names = load_data(args)
    ((noisy, clean),) = sets["held_out"]
    assert len(source.dataset) == 4
    held_out = (clean[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert not any(np.array_equal(held_out, np.asarray(picture)) for picture in source.dataset["clean"])
    assert not torch.equal(noisy, clean)
    trained = source.dataset.cast_column("clean", datasets.Image(decode=False))["clean"]
    assert sorted([*names, *(Path(cell["path"]).stem for cell in trained)]) == ["0", "1", "2", "3", "4"]


def save_scenes(folder, names):
    """Pairs, every one of another colour."""
    for kind, offset in (("clean", 0), ("noisy", 20)):
        (folder / kind).mkdir(parents=True)
        for i, name in enumerate(names):
            Image.new("RGB", (32, 32), (10 * i + offset, 128, 128)).save(folder / kind / f"{name}.png")
    return {"clean_dir": None, "validation_dir": None, "noisy_dir": folder / "noisy", "gt_dir": folder / "clean"}


def test_grey_photographs_are_validated_with_grey_noise(tmp_path):
    Image.effect_noise((48, 40), 50).save(tmp_path / "grey.png")
    ((noisy, clean),) = held_out_pairs(load_clean(tmp_path), CameraNoise("gaussian"), 1)
    assert noisy.shape == clean.shape == (1, 3, 40, 48)
    assert torch.equal(noisy, noisy[:, :1].expand_as(noisy)) and not torch.equal(noisy, clean)


def test_images_whose_names_differ_by_a_number_are_held_out_together(data, tmp_path):
    options = save_scenes(tmp_path / "pairs", ["door_10", "door_11", "door_12", "tree_1", "tree_2"])
    run(data, tmp_path / "out", max_train_minutes=0, **options)
    names = (tmp_path / "out" / "held_out.txt").read_text().split()
    assert names in (["door_10", "door_11", "door_12"], ["tree_1", "tree_2"])
    run(data, tmp_path / "single", max_train_minutes=0, split_by="image", **options)
    assert len((tmp_path / "single" / "held_out.txt").read_text().split()) == 1


def test_images_of_one_scene_say_how_to_split_them(data, tmp_path):
    options = save_scenes(tmp_path / "pairs", ["IMG_1", "IMG_2", "IMG_3"])
    with pytest.raises(ValueError, match=r"All images are of one scene \(IMG\).*--split_by image"):
        run(data, tmp_path / "out", **options)


def test_validation_leaves_out_images_too_small_for_ssim(data, tmp_path, caplog):
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    for name in ("noisy", "clean"):
        Image.new("RGB", (40, 10)).save(tmp_path / "pairs" / name / "tiny.png")
    lines = run(data, tmp_path / "out", validation_dir=tmp_path / "pairs", max_train_steps=1)
    assert "tiny.png is 40x10, too small for SSIM, and is left out of validation." in caplog.text
    assert lines[-1] == run(data, tmp_path / "other", max_train_steps=1)[-1]
    for name in ("noisy", "clean"):
        for i in range(2):
            (tmp_path / "pairs" / name / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="No validation image has sides of at least 11 px"):
        run(data, tmp_path / "none", validation_dir=tmp_path / "pairs")
    assert not (tmp_path / "none").exists()


def test_a_stream_without_a_validation_split_needs_validation_pairs(data, tmp_path):
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in find_images(data / "photos")]
    features = datasets.Features({"clean": datasets.Image()})
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict({"clean": cells}, features=features).to_parquet(tmp_path / "hub" / "train.parquet")
    options = {"clean_dir": None, "validation_dir": None, "dataset_name": tmp_path / "hub", "streaming": True}
    with pytest.raises(ValueError, match="needs --validation_dir"):
        run(data, tmp_path / "out", **options)


def test_curves_show_what_was_logged(whole, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "psnr/noisy" in line]
    scores = [line | {"psnr/improved_3": 20.0, "psnr/origin_3": 19.0, "psnr/noisy/dark": 10.0} for line in scores]
    axes = plt.figure().add_subplot()
    curves.draw_psnr(axes, scores, "run", "")
    shown = {line.get_label(): line for line in axes.lines}
    assert set(shown) == {"run, noisy", "run, improved 1", "run, improved 3", "run, origin 3"}
    noisy, one_step = shown["run, noisy"], shown["run, improved 1"]
    assert set(noisy.get_ydata()) == {scores[0]["psnr/noisy"]}
    np.testing.assert_array_equal(one_step.get_xydata(), [[line["step"], line["psnr/improved_1"]] for line in scores])
    curves.mark_points_below(axes)
    assert set(axes.lines) == set(shown.values())
    axes.set_ylim(bottom=19.5)
    curves.mark_points_below(axes)
    below = [line for line in axes.lines if line.get_label() == "below the frame"]
    np.testing.assert_array_equal(below[0].get_xydata(), [[line["step"], 19.5] for line in scores])
    axes = plt.figure().add_subplot()
    curves.draw_loss(axes, lines, "run")
    losses = [[line["step"], line["loss"]] for line in lines if "loss" in line]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), losses)

    # A training that has not validated yet, and whose last line is being written
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    monkeypatch.setattr(sys, "argv", ["curves.py", *map(str, (whole, tmp_path / "young", "-o", tmp_path / "c.png"))])
    runpy.run_path(curves.__file__, run_name="__main__")
    assert Image.open(tmp_path / "c.png").width > 1000
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="^curves.py: .*log.jsonl"):
        runpy.run_path(curves.__file__, run_name="__main__")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept(kept):
    script = f"""
import contextlib, resource, torch
from gdd_diffusers.memory import keep_freed_memory
with keep_freed_memory() if {kept} else contextlib.nullcontext():
    with keep_freed_memory():
        pass  # the pipeline does this in a validation
    for i in range(40):
        if i == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10_000_000)  # 9,766 pages of 4 KiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = subprocess.run([sys.executable, "-c", script], cwd=EXAMPLES, stdout=subprocess.PIPE, check=True).stdout
    # Kept memory is not always the first to be taken again; memory that is not kept is new each time.
    assert int(faults) < 5 * 9766 if kept else int(faults) >= 20 * 9766


# Stopping and going on


def test_resumed_training_equals_uninterrupted_training(whole, data, tmp_path):
    run(data, tmp_path, max_train_minutes=0)  # one step
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-1"]
    assert RealDenoisePipeline.from_pretrained(tmp_path).config.pixel_unshuffle == 2
    run(data, tmp_path, max_train_minutes=0, resume_from_checkpoint="latest")  # one more
    run(data, tmp_path, resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert_same_training(whole, tmp_path, "checkpoint-6")


def test_resumed_training_with_dropout_equals_uninterrupted_training(data, tmp_path):
    (tmp_path / "dropout.json").write_text(json.dumps(CONFIG | {"_class_name": "UNet2DModel", "dropout": 0.5}))
    options = {"model_config": tmp_path / "dropout.json", "max_train_steps": 4}
    run(data, tmp_path / "whole", **options)
    run(data, tmp_path / "stopped", max_train_minutes=0, **options)
    run(data, tmp_path / "stopped", resume_from_checkpoint="latest", **options)
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", "checkpoint-4")


def test_resuming_a_finished_training_changes_nothing(whole, data, tmp_path):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and "logs" not in path.parts}
    run(data, whole, resume_from_checkpoint="latest")
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_latest_without_a_checkpoint_begins_anew(whole, data, tmp_path):
    run(data, tmp_path, resume_from_checkpoint="latest")
    assert (tmp_path / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


def test_steps_logged_after_the_checkpoint_are_logged_once(whole, data, tmp_path):
    run(data, tmp_path, max_train_minutes=0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 123.0, "learning_rate": 0.0}\n{"step": 3, "lo')
    run(data, tmp_path, resume_from_checkpoint="latest")
    assert_same_training(whole, tmp_path, "checkpoint-6")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_handlers_given_back(number):
    with stop_signals() as received:
        assert received == []
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert received == [number, number]


def script(data, output_dir, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments_of_script = arguments(data, output_dir, **options)
    return {"args": arguments_of_script, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


@contextmanager
def endless_training(data, output_dir):
    """A process that has trained for at least a step, with a data worker, and its output up to there."""
    options = {"max_train_steps": 100_000, "checkpointing_steps": 100_000}
    options |= {"train_batch_size": 16, "dataloader_num_workers": 1}
    options = script(data, output_dir, **options)
    words = [sys.executable, EXAMPLES / "train.py", *options.pop("args")]
    with subprocess.Popen(words, **options, text=True, start_new_session=True) as process:
        output = ""
        while not re.search(r"\b[1-9]\d*/100000", output):  # the progress bar, which ends its lines with \r
            output += process.stdout.readline() or pytest.fail(output)
        yield process, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_it_saves_a_checkpoint_and_exits_without_a_traceback(data, tmp_path, number):
    """The signal goes to all processes of the group, as from `timeout` or a terminal."""
    with endless_training(data, tmp_path) as (process, output):
        os.killpg(process.pid, number)
        output += process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "Traceback" not in output, output
    (checkpoint,) = find_checkpoints(tmp_path)
    last_step = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert checkpoint.name == f"checkpoint-{last_step}"
    assert f"Stopped after step {last_step}" in output
    RealDenoisePipeline.from_pretrained(tmp_path)


def test_killed_it_leaves_no_process_behind(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # a fork cannot use the GPU that this process uses
    options = {"max_train_steps": 100_000, "checkpointing_steps": 100_000, "dataloader_num_workers": 1}
    training = multiprocessing.get_context("fork").Process(target=run, args=(data, tmp_path), kwargs=options)
    training.start()
    while not ((log := tmp_path / "log.jsonl").exists() and log.read_text().count("loss")):
        training.join(0.05)
        assert training.exitcode is None
    others = psutil.Process(training.pid).children(recursive=True)
    training.kill()
    training.join()
    assert others
    assert not psutil.wait_procs(others, timeout=300)[1]


def test_killed_while_writing_a_checkpoint_it_goes_on_from_the_one_before(whole, data, tmp_path):
    # The second checkpoint's optimizer state is never written: the process kills itself there, as a power cut would.
    def train_and_die():
        save = torch.save

        def save_or_die(obj, f, *args, **kwargs):
            if "checkpoint-4" in str(f):
                os.kill(os.getpid(), signal.SIGKILL)
            return save(obj, f, *args, **kwargs)

        torch.save = save_or_die
        run(data, tmp_path)

    process = multiprocessing.get_context("fork").Process(target=train_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "checkpoint-4.partial" / "model.safetensors").exists()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-2"]
    run(data, tmp_path, resume_from_checkpoint="latest")
    assert not list(tmp_path.glob("*.partial"))
    assert_same_training(whole, tmp_path, "checkpoint-6")


@contextmanager
def file_size_limit(size):
    """What stands in for a full disk: writing on fails after so many bytes of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    accelerator = Accelerator()
    accelerator.prepare(torch.nn.Linear(200, 200))
    save_checkpoint(accelerator, tmp_path / "checkpoint-1", {}, limit=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-1").iterdir()}
    message = r"checkpoint-2 could not be written, with [\d.]+ MB free.*make room, and go on with --resume_from"
    with file_size_limit(100_000), pytest.raises(OSError, match=message):  # the weights take 160,000 bytes
        save_checkpoint(accelerator, tmp_path / "checkpoint-2", {}, limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-1").iterdir()} == before


def test_a_full_disk_leaves_the_pipeline_before(tmp_path, pipe):
    save_pipeline(pipe, ModelCard("before"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with file_size_limit(1000), pytest.raises(OSError, match="pipeline could not be written.*make room"):
        save_pipeline(pipe, ModelCard("after"), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_weights_of_another_form_are_replaced(tmp_path, pipe):
    pipe.save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "unet" / "notes.txt").touch()
    other = copy.deepcopy(pipe)
    torch.nn.init.zeros_(other.unet.conv_in.weight)
    save_pipeline(other, ModelCard("card"), tmp_path)
    assert not RealDenoisePipeline.from_pretrained(tmp_path).unet.conv_in.weight.any()
    assert (tmp_path / "unet" / "notes.txt").exists()


# Several processes


def test_two_processes_train_as_one_with_twice_the_batch(whole, data, tmp_path):
    options = script(data, tmp_path, train_batch_size=8, max_train_steps=4)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.run([*launcher, EXAMPLES / "train.py", *options.pop("args")], **options)
    assert process.returncode == 0, process.stdout.decode()
    assert "on each of 2 processes" in process.stdout.decode()
    one = run(data, tmp_path / "one", train_batch_size=16, max_train_steps=4)
    two = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    for name, tensor in load_file(tmp_path / WEIGHTS).items():
        torch.testing.assert_close(tensor, load_file(tmp_path / "one" / WEIGHTS)[name], atol=1e-4, rtol=0)


def on_two_machines(function, *args, **kwargs):
    """Call a function in a fork of this process for each of two machines, here one, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}

    def start(rank):
        os.environ |= environment | {"RANK": rank}
        function(*args, **kwargs)

    machines = [multiprocessing.get_context("fork").Process(target=start, args=(rank,)) for rank in "01"]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert [machine.exitcode for machine in machines] == [0, 0]


def test_two_machines_divide_a_stream_and_resume_exactly(data, tmp_path, datasets_cache, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "hub").mkdir()
    features = datasets.Features({"noisy": datasets.Image(), "clean": datasets.Image()})
    for name in ("train-0", "train-1", "validation"):
        cells = {
            column: [
                {"bytes": path.read_bytes(), "path": f"{name}-{path.name}"}
                for path in find_images(data / "pairs" / column)
            ]
            for column in features
        }
        datasets.Dataset.from_dict(cells, features=features).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    options = {"clean_dir": None, "validation_dir": None, "dataset_name": tmp_path / "hub", "streaming": True}
    on_two_machines(run, data, tmp_path / "a", **options)
    on_two_machines(run, data, tmp_path / "b", max_train_minutes=0, **options)
    assert not (tmp_path / "b" / "checkpoint-6").exists()
    on_two_machines(run, data, tmp_path / "b", resume_from_checkpoint="latest", **options)
    assert_same_training(tmp_path / "a", tmp_path / "b", "checkpoint-6")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_processes_that_would_not_train_together_are_refused(data, tmp_path):
    """As `accelerate launch` also starts them, if it was once configured for several GPUs."""

    def train_and_be_refused():
        with pytest.raises(ValueError, match="2 processes were started, but each would train on its own"):
            run(data, tmp_path / "out")

    on_two_machines(train_and_be_refused)
    assert not (tmp_path / "out").exists()


def test_accelerate_launches_it_and_it_publishes(data, tmp_path):
    options = script(data, tmp_path / "out", max_train_steps=2, push_to_hub=True, hub_model_id="org/trained")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    with Hub() as hub:
        options["env"] |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        options["env"] |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        process = subprocess.run([*launcher, EXAMPLES / "train.py", *options.pop("args")], **options)
    assert process.returncode == 0, process.stdout.decode()
    repo = hub.repos["org/trained"]
    files = repo.commits[repo.sha]
    assert {"model_index.json", WEIGHTS, "unet_local.py", "README.md"} <= files.keys()
    assert files[WEIGHTS] == (tmp_path / "out" / WEIGHTS).read_bytes()
    assert not any("checkpoint" in name or "log" in name for name in files)
    assert b"--max_train_steps 2" in files["README.md"]
    assert str(tmp_path).encode() not in files["README.md"]


# What goes wrong


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clean_dir": None}, "give something to learn from"),
        ({"noisy_dir": "a"}, "one --gt_dir for each --noisy_dir"),
        ({"weights": "1 2"}, "--weights needs one number above 0 for each source, 1 in all"),
        ({"validation_share": 1}, "--validation_share must be in"),
        ({"weights": "0"}, "--weights needs one number above 0"),
        ({"streaming": True}, "--streaming is for --dataset_name"),
        ({"push_to_hub": True, "hub_model_id": "gdd"}, "--push_to_hub needs --hub_model_id ORG/NAME"),
        ({"pretrained_model": "a", "prediction_type": "sample"}, "comes with its own prediction type"),
        ({"validation_dir": ["a/val", "b/val"]}, "need names of their own, not val and val"),
        ({"max_train_steps": 0}, "--max_train_steps: must be a whole number from 1, not 0"),
        ({"checkpointing_steps": "x"}, "--checkpointing_steps: must be a whole number from 1, not x"),
        ({"crop_size": "big"}, "must be pixels, or a schedule such as .*, not big"),
        ({"crop_size": "96:0.5"}, "must be pixels, or a schedule"),
        ({"crop_size": "96:0.8,128:0.5,192"}, "must be pixels, or a schedule"),
        ({"crop_size": "0"}, "must be pixels, or a schedule"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(data, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        train.parse_args(arguments(data, tmp_path / "out", **options))
    assert exit.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["output_dir", "validation_dir"])
@pytest.mark.parametrize("source", ["clean_dir", "noisy_dir", "gt_dir", "dataset_name"])
def test_validation_images_among_the_sources_are_refused(data, tmp_path, capsys, source, option):
    options = {"clean_dir": None, source: data / "photos", option: data / "photos" / "mine"}
    if source in ("noisy_dir", "gt_dir"):
        options |= {"noisy_dir": data / "pairs/noisy", "gt_dir": data / "pairs/noisy", source: data / "photos"}
    with pytest.raises(SystemExit):
        train.parse_args(arguments(data, **{"output_dir": tmp_path} | options))
    assert "photos/mine lies in" in capsys.readouterr().err


def test_an_output_folder_with_checkpoints_is_not_overwritten(whole, data, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(arguments(data, whole))
    assert "holds checkpoints: go on with --resume_from_checkpoint latest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clean_dir": "absent"}, "There is no folder absent"),
        ({"model_config": "gdd-huge"}, "gdd-huge is neither a file nor one of: .*gdd-small"),
        ({"crop_size": 18}, "multiples of 4"),
        ({"crop_size": 64}, "is 64x56, but training needs sides of at least 64 px"),
        ({"noise_preset": "webcam"}, "webcam"),
        ({"gt_dir": "photos", "noisy_dir": "pairs/noisy", "clean_dir": None}, "photos/2.png has no partner named 2"),
        ({"validation_dir": "pairs/clean"}, "There is no folder .*pairs/clean/noisy"),
        ({"pretrained_model": "absent"}, "absent"),
        ({"report_to": "carrier-pigeon"}, "carrier-pigeon"),
        ({"validation_inference_steps": 1001}, "--validation_inference_steps must be at most 1000"),
        ({"resume_from_checkpoint": "elsewhere"}, "elsewhere is not a checkpoint"),
    ],
)
def test_bad_input_gets_one_clear_sentence(data, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(data)
    with pytest.raises((ValueError, OSError), match=message):
        run(data, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps(CONFIG | {"colour": "blue"})])
def test_a_config_that_configures_nothing_is_named(data, tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match="mine.json is not the configuration of a network"):
        run(data, tmp_path / "out", model_config=tmp_path / "mine.json")


@pytest.mark.parametrize(
    "channels, message",
    [
        ({"out_channels": 3}, "12 input and 3 output channels; it needs 12 for colour"),
        ({"in_channels": 4, "out_channels": 4}, "mine.json is for grayscale images"),
    ],
)
def test_a_config_whose_channels_do_not_fit_is_named(data, tmp_path, channels, message):
    (tmp_path / "mine.json").write_text(json.dumps(CONFIG | channels))
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "out", model_config=tmp_path / "mine.json")


def test_what_cannot_be_published_is_trained_all_the_same(data, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("the repo does not load")

    monkeypatch.setattr(train, "create_repo", lambda *args, **options: None)
    monkeypatch.setattr(train, "publish", refuse)
    with pytest.raises(ValueError, match="is trained but not published: the repo does not load"):
        run(data, tmp_path, push_to_hub=True, hub_model_id="org/trained")
    assert (tmp_path / WEIGHTS).is_file()


def test_a_config_of_another_class_is_named(data, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(CONFIG | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="other.json must name a _class_name of LocalUNet2DModel or UNet2DModel"):
        run(data, tmp_path / "out", model_config=tmp_path / "other.json")


def test_a_checkpoint_of_another_architecture_is_refused(whole, data, tmp_path):
    (tmp_path / "wider.json").write_text(json.dumps(CONFIG | {"block_out_channels": [8, 16]}))
    with pytest.raises(ValueError, match=r"another architecture: block_out_channels was \[8, 8\] and is \[8, 16\]"):
        run(data, whole, model_config=tmp_path / "wider.json", resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="prediction_type was sample and is flow_prediction"):
        run(data, whole, prediction_type="flow_prediction", resume_from_checkpoint="latest")


def test_options_that_differ_from_the_checkpoints_are_named(data, tmp_path, caplog):
    run(data, tmp_path, max_train_minutes=0)
    run(data, tmp_path, max_train_minutes=0, resume_from_checkpoint="latest")
    assert "Options differ from" not in caplog.text
    run(data, tmp_path, seed=5, max_train_steps=3, resume_from_checkpoint="latest")
    assert "max_train_steps was 6 and is 3, seed was 0 and is 5" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
@pytest.mark.parametrize("instructions, precision", [("avx512_bf16", "bf16"), ("avx2", "no")])
def test_bf16_is_for_processors_that_have_it(data, tmp_path, caplog, monkeypatch, instructions, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, instructions: True})
    run(data, tmp_path / "chosen", mixed_precision=None, max_train_minutes=0)
    said = {"bf16": "Training in bf16", "no": "Training in float32"}[precision]
    assert f"{said}; --mixed_precision chooses otherwise." in caplog.text
    recipe = json.loads((tmp_path / "chosen" / "checkpoint-1" / "recipe.json").read_text())
    assert recipe["options"]["mixed_precision"] == precision

    run(data, tmp_path / "told", mixed_precision="bf16", max_train_minutes=0)
    warned = "This CPU only emulates bf16, which is several times slower: use --mixed_precision no." in caplog.text
    assert warned == (instructions == "avx2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_another_precision_than_the_checkpoints_is_named_though_it_was_not_given(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` sets it
    run(data, tmp_path, mixed_precision=None, max_train_minutes=0)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    run(data, tmp_path, mixed_precision=None, max_train_minutes=0, resume_from_checkpoint="latest")
    assert "mixed_precision was bf16 and is no" in caplog.text


def test_a_learning_rate_that_would_have_no_effect_is_refused(data, whole):
    with pytest.raises(ValueError, match="was trained with --learning_rate 0.001: go on with it, or start again"):
        run(data, whole, learning_rate=0.01, resume_from_checkpoint="latest")


def test_a_checkpoint_with_former_options_goes_on(whole, data, tmp_path, caplog):
    """Their values that are part of the checkpoint stay; the schedule does not."""
    run(data, tmp_path, max_train_minutes=0)
    file = tmp_path / "checkpoint-1" / "recipe.json"
    recipe = json.loads(file.read_text())
    recipe["options"] |= {"adam_beta2": 0.9, "ema_decay": 0.9, "lr_scheduler": "linear", "mixed_precision": None}
    file.write_text(json.dumps(recipe))
    run(data, tmp_path, resume_from_checkpoint="latest")
    assert f"{file.parent}: lr_scheduler was linear and is cosine." in caplog.text
    assert_same_training(whole, tmp_path, "checkpoint-6")


def test_says_that_cores_lie_idle(data, tmp_path, caplog, monkeypatch):
    """`accelerate launch` gives a process one thread unless told otherwise, as the tests do."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    run(data, tmp_path, max_train_minutes=0)
    assert "One of 4 cores is used; python examples/train.py uses all" in caplog.text


def test_a_loss_that_is_not_a_number_stops_the_training_with_step_and_files(data, tmp_path):
    with pytest.raises(ArithmeticError, match=r"The loss is (nan|inf) in step \d, on a batch of .*photos/\d.png"):
        run(data, tmp_path, learning_rate=1e30, max_grad_norm=1e30)


def test_one_unreadable_image_is_named_and_left_out(data, tmp_path, caplog):
    shutil.copytree(data / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "3.png").write_bytes((data / "photos" / "3.png").read_bytes()[:300])
    lines = run(data, tmp_path / "out", clean_dir=tmp_path / "photos")
    assert caplog.text.count("photos/3.png cannot be read and is left out") == 1
    assert sum("loss" in line for line in lines) == 6


def test_only_the_sentence_is_printed(data, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments(data, tmp_path / "out", clean_dir=tmp_path / "empty")])
    with pytest.raises(SystemExit, match=f"^train.py: No images were found in {tmp_path}/empty"):
        runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")


def test_of_what_a_worker_met_only_the_sentence_is_printed_and_no_worker_is_left(data, tmp_path):
    shutil.copytree(data / "photos", tmp_path / "photos")
    for name in ("0.png", "1.png"):
        (tmp_path / "photos" / name).write_bytes(b"not a picture")
    options = script(data, tmp_path / "out", clean_dir=tmp_path / "photos", dataloader_num_workers=1)
    words = [sys.executable, EXAMPLES / "train.py", *options.pop("args")]
    output = subprocess.run(words, **options, text=True, timeout=300).stdout  # which ends when the last worker has
    (said,) = [line for line in output.splitlines() if line.startswith("train.py: ")]
    assert said.startswith("train.py: 2 of 5 images cannot be read, which is more than 1%: ")
    assert "Traceback" not in output


def test_both_bundled_networks_are_trained_on_the_same_batches(tmp_path):
    for i in range(2):
        Image.effect_noise((48, 40), 50).convert("RGB").save(tmp_path / f"{i}.png")
    command = f"--clean_dir {tmp_path} --output_dir {tmp_path}/trained --minutes 0.03 --device cpu"
    command += " --batch_size 2 --crop_size 32:0.5,16 --num_workers 0"
    args = train_bundled.parse_args(command.split())
    shapes = [train_bundled.build_batches(args)[k]["clean"].shape for k in range(8)]
    assert sorted(set(shapes)) == [(2, 3, 32, 32), (8, 3, 16, 16)]
    train_bundled.main(args)
    for name in ("gdd-small", "gdd-fast"):
        before, after = (RealDenoisePipeline.from_pretrained(n).unet for n in (name, tmp_path / "trained" / name))
        changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
        assert any(changed)
