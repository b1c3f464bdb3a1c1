"""Exported networks, run by ONNX Runtime and OpenVINO."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from conftest import make_pipeline, save_image
from diffusers import UNet2DModel
from PIL import Image
from typer.testing import CliRunner

from gdd_diffusers import InterpolationScheduler, RealDenoisePipeline
from gdd_diffusers.app import cli
from gdd_diffusers.hub.export import export_pipeline, load_exported


PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
ONNX_SCRIPT, OPENVINO_SCRIPT, TILES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(*arguments):
    result = CliRunner().invoke(cli.app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def small():
    """A pipeline whose network predicts the noise, and where it was exported to for each runtime."""
    torch.manual_seed(0)
    return make_pipeline(scheduler=InterpolationScheduler(prediction_type="flow_prediction"))


@pytest.fixture(scope="module")
def onnx(small, tmp_path_factory):
    return export_pipeline(small, tmp_path_factory.mktemp("onnx"), "onnx")


@pytest.fixture(scope="module")
def openvino_float16(small, tmp_path_factory):
    return export_pipeline(small, tmp_path_factory.mktemp("openvino"), "openvino", "float16")


def run_script(script, file, folder):
    """Run a script of the page on an image of 50 x 39 pixels and return the pixels before and after."""
    noisy = save_image(folder / "noisy.png", size=(50, 39))
    command = [sys.executable, "-c", script, file, "noisy.png", "clean.png"]
    subprocess.run(list(map(str, command)), cwd=folder, check=True)
    return noisy, np.asarray(Image.open(folder / "clean.png"))


def test_script_for_onnx_runtime_gives_what_the_pipeline_gives(small, onnx, tmp_path):
    noisy, denoised = run_script(ONNX_SCRIPT, onnx.file, tmp_path)
    assert np.array_equal(denoised, np.asarray(small(Image.fromarray(noisy)).images[0]))
    assert not np.array_equal(denoised, noisy)


def test_script_for_openvino_gives_what_the_pipeline_gives(small, openvino_float16, tmp_path):
    noisy, denoised = run_script(OPENVINO_SCRIPT, openvino_float16.file, tmp_path)
    expected = np.asarray(small(Image.fromarray(noisy)).images[0])
    assert np.abs(denoised.astype(int) - expected).max() <= 1


def test_tiles_with_the_overlap_in_the_metadata_give_what_the_whole_image_gives(small, onnx):
    assert onnx.metadata["tile_overlap"] >= 2 * small.receptive_field
    session = load_exported(onnx.file)
    noisy = np.random.default_rng(0).random((1, 3, 160, 232), np.float32)
    names = {"np": np, "noisy": noisy, "step": 32, **onnx.metadata}
    names["run"] = lambda tile: session(torch.from_numpy(tile.copy())).numpy()
    exec(TILES, names)
    np.testing.assert_allclose(names["denoised"], names["run"](noisy), atol=1e-6)


def test_float16_halves_the_weights_and_spares_the_layer_that_writes_the_image(onnx, openvino_float16):
    model = openvino.Core().read_model(openvino_float16.file)
    dtypes = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            dtypes[node.get_friendly_name()] = node.get_element_type().to_string()
    assert dtypes["unet.conv_in.weight"] == "f16" and dtypes["unet.conv_out.weight"] == "f32"
    assert openvino_float16.file.with_suffix(".bin").stat().st_size < 0.7 * onnx.file.stat().st_size
    assert onnx.difference < 1e-5 < openvino_float16.difference


def test_bundled_weights(tmp_path):
    code, said = run("gdd-small", "-o", tmp_path / "new" / "folder")
    assert code == 0 and "multiples of 16" in said and "overlap by 608 px" in said and "of PyTorch's" in said
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["model.onnx"]
    pipe = RealDenoisePipeline.from_pretrained("gdd-small")
    pipe.set_progress_bar_config(disable=True)
    noisy = torch.rand(1, 3, 48, 80)
    denoised = load_exported(tmp_path / "new" / "folder" / "model.onnx")(noisy)
    torch.testing.assert_close(denoised, pipe(noisy, output_type="pt").images, atol=1e-4, rtol=0)


def test_files_that_exist_are_kept(small, tmp_path):
    small.save_pretrained(tmp_path / "model")
    for name, format in [("model.onnx", "onnx"), ("openvino_model.bin", "openvino")]:
        (tmp_path / name).write_text("precious")
        code, said = run(tmp_path / "model", "-o", tmp_path, "--format", format)
        assert code == 1 and f"{name} exists already; delete it or choose another folder." in said
        assert (tmp_path / name).read_text() == "precious"


def test_a_result_that_float16_cannot_hold_is_refused(tmp_path):
    pipe = make_pipeline()
    pipe.unet.conv_in.weight.data *= 1e6  # float32 can
    pipe.save_pretrained(tmp_path / "model")
    code, said = run(tmp_path / "model", "-o", tmp_path / "out", "--dtype", "float16")
    assert code == 1 and "gives another result than PyTorch" in said and "nothing was written" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(tmp_path):
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "add_attention": False}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(num_class_embeds=2, **sizes, **blocks)  # which the pipeline has no labels for
    RealDenoisePipeline(unet, InterpolationScheduler()).save_pretrained(tmp_path / "model")
    code, said = run(tmp_path / "model", "-o", tmp_path / "out")
    assert code == 1 and "cannot export this UNet2DModel: class_labels should be provided" in said
    assert not (tmp_path / "out").exists()


def test_a_missing_runtime_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "gdd_diffusers.hub.export")
    code, said = run("gdd-small", "-o", tmp_path)
    assert code == 1 and 'exporting needs openvino: pip install "gdd-diffusers[export]"' in said


def test_wrong_usage_is_exit_code_2(tmp_path):
    (tmp_path / "file").touch()
    for options in (["-o", tmp_path, "--format", "tflite"], ["-o", tmp_path / "file"], []):
        assert run("gdd-small", *options)[0] == 2
