"""Exported networks, run by ONNX Runtime and OpenVINO."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
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
ONNX_SCRIPT, OPENVINO_SCRIPT, TILES, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(*arguments):
    result = CliRunner().invoke(cli.app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def small():
    """A pipeline whose network predicts the noise."""
    torch.manual_seed(0)
    return make_pipeline(scheduler=InterpolationScheduler(prediction_type="flow_prediction"), min_size=64)


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    return export_pipeline(small, tmp_path_factory.mktemp("onnx"), "onnx")


def run_script(script, file, folder):
    """Run a script of the page on an image of 50 x 39 pixels and return the pixels before and after."""
    noisy = save_image(folder / "noisy.png", size=(50, 39))
    command = [sys.executable, "-c", script, file, "noisy.png", "clean.png"]
    subprocess.run(list(map(str, command)), cwd=folder, check=True)
    return noisy, np.asarray(Image.open(folder / "clean.png"))


def assert_same_pixels(a, b):
    """Assert that two images differ by at most the rounding to 8 bits."""
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_script_for_onnx_runtime_gives_what_the_pipeline_gives(small, exported, tmp_path):
    noisy, denoised = run_script(ONNX_SCRIPT, exported.file, tmp_path)
    assert_same_pixels(denoised, small(Image.fromarray(noisy)).images[0])
    assert not np.array_equal(denoised, noisy)


def test_script_for_openvino_gives_what_the_pipeline_gives(plain_pipe, tmp_path):
    plain_pipe.save_pretrained(tmp_path / "model")
    code, said = run(tmp_path / "model", "-o", tmp_path, "--format", "openvino")
    assert code == 0 and "multiples of 4" in said and "no overlap makes them exact; 16 px" in said
    noisy, denoised = run_script(OPENVINO_SCRIPT, tmp_path / "openvino_model.xml", tmp_path)
    assert_same_pixels(denoised, plain_pipe(Image.fromarray(noisy)).images[0])


def test_tiles_with_the_overlap_in_the_metadata_give_what_the_whole_image_gives(small, exported):
    assert exported.metadata["tile_overlap"] >= 2 * small.receptive_field
    session = load_exported(exported.file)
    noisy = np.random.default_rng(0).random((1, 3, 160, 232), np.float32)
    names = {"np": np, "noisy": noisy, "step": 32, **exported.metadata}
    names["run"] = lambda tile: session(torch.from_numpy(tile.copy())).numpy()
    exec(TILES, names)
    np.testing.assert_allclose(names["denoised"], names["run"](noisy), atol=1e-6)


def test_bundled_weights_in_float16(tmp_path):
    folder = tmp_path / "new" / "folder"
    code, said = run("gdd-small", "-o", folder, "--dtype", "float16")
    assert code == 0 and "multiples of 16" in said and "overlap by 608 px" in said and "of PyTorch's" in said
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").stat().st_size < 8e6  # 13 million bytes in float32

    graph = onnx.load(folder / "model.onnx").graph
    dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert dtypes["unet.conv_in.weight"] == onnx.TensorProto.FLOAT16
    assert dtypes["unet.conv_out.weight"] == onnx.TensorProto.FLOAT  # it writes the image

    pipe = RealDenoisePipeline.from_pretrained("gdd-small")
    pipe.set_progress_bar_config(disable=True)
    noisy = torch.rand(1, 3, 128, 160)
    denoised = load_exported(folder / "model.onnx")(noisy)
    torch.testing.assert_close(denoised, pipe(noisy, output_type="pt").images, atol=0.5 / 255, rtol=0)


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


def test_nothing_is_reported_to_the_makers_of_the_runtimes(tmp_path):
    code = "import gdd_diffusers.hub.export as export; export.onnxruntime, export.openvino"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    # where they report, they leave an identifier and what is still to be sent
    left = [path.name for path in tmp_path.rglob("*")]
    assert not {".ses", "deviceid", "onnxruntime.db", "openvino_ga_cid"} & set(left)


def test_wrong_usage_is_exit_code_2(tmp_path):
    (tmp_path / "file").touch()
    for options in (["-o", tmp_path, "--format", "tflite"], ["-o", tmp_path / "file"], []):
        assert run("gdd-small", *options)[0] == 2
