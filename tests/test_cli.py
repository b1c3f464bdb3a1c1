import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image
from raw_files import expose, scene, write_dng
from typer.testing import CliRunner

from gdd_diffusers import RealDenoisePipeline
from gdd_diffusers.app import batch, cli
from gdd_diffusers.comparison import GAP, compare
from gdd_diffusers.files import read_image


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs `gdd` in an empty folder, with the small model where it denoises; returns its exit code and its words."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        if arguments[0] == "denoise" and not {"--model", "--fast"} & set(arguments):
            arguments += ("--model", model)
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, " ".join(result.output.split())

    return run


def save_picture(path, size=(70, 50), seed=0, bits=8):
    path.parent.mkdir(exist_ok=True)
    dtype, shape = {8: (np.uint8, (*size[::-1], 3)), 16: (np.uint16, size[::-1])}[bits]
    pixels = np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=dtype)
    Image.fromarray(pixels).save(path)
    return path


def pixels_of(path):
    return np.asarray(Image.open(path))


def test_a_file_becomes_what_the_pipeline_makes_of_it(run, model, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    code, said = run("denoise", noisy, "-o", tmp_path / "clean.png", "--dtype", "float32")
    assert code == 0 and "1 denoised" in said and "cpu in float32" in said
    pipe = RealDenoisePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    assert np.array_equal(pixels_of(tmp_path / "clean.png"), np.asarray(pipe(Image.open(noisy)).images[0]))


def test_options_reach_the_pipeline(run, model, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    options = ["--steps", 3, "--strength", 0.5, "--rule", "origin", "--tile-size", 32, "--dtype", "float32"]
    assert run("denoise", noisy, "-o", "clean.png", *options)[0] == 0
    pipe = RealDenoisePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, step_rule="origin")
    pipe.enable_tiling(32, 16)
    expected = pipe(Image.open(noisy), num_inference_steps=3, strength=0.5).images[0]
    assert np.array_equal(pixels_of("clean.png"), np.asarray(expected))


def test_strength_zero_leaves_the_pixels(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    assert run("denoise", noisy, "-o", "same.png", "--strength", 0)[0] == 0
    assert np.array_equal(pixels_of("same.png"), pixels_of(noisy))


def test_sixteen_bits_stay_sixteen(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png", bits=16)
    assert run("denoise", noisy, "-o", "clean.png")[0] == 0
    pixels = read_image("clean.png").pixels
    assert pixels.dtype == np.uint16 and len(np.unique(pixels)) > 1000


def test_cmyk_becomes_srgb_and_that_is_said(run, tmp_path):
    Image.new("CMYK", (20, 16), (0, 90, 90, 0)).save(tmp_path / "press.tif")
    code, said = run("denoise", "press.tif", "-o", "clean.tif")
    assert code == 0 and "press.tif: it was CMYK, and its result is sRGB." in said
    assert Image.open("clean.tif").mode == "RGB"
    assert "CMYK" not in run("denoise", save_picture(tmp_path / "noisy.png"))[1]


def test_without_output_the_result_is_next_to_the_input(run, tmp_path):
    save_picture(tmp_path / "a" / "noisy.png")
    assert run("denoise", "a/noisy.png")[0] == 0
    assert (tmp_path / "a" / "noisy_denoised.png").is_file()


def test_folder_twice_does_not_denoise_its_own_results(run, tmp_path):
    for i in range(2):
        save_picture(tmp_path / "a" / f"{i}.png", seed=i)
    assert run("denoise", "a")[0] == 0
    code, said = run("denoise", "a")
    assert code == 0 and "0 denoised; 2 skipped" in said
    assert len(list((tmp_path / "a").iterdir())) == 4


def test_results_among_the_inputs_are_not_denoised_again(run, tmp_path):
    for i in range(2):
        save_picture(tmp_path / f"{i}.png", seed=i)
    assert run("denoise", *sorted(tmp_path.glob("*.png")))[0] == 0  # what a shell makes of *.png
    code, said = run("denoise", *sorted(tmp_path.glob("*.png")))
    assert code == 0 and "0 denoised; 2 skipped" in said and len(list(tmp_path.iterdir())) == 4
    assert run("denoise", "0_denoised.png")[0] == 0  # which is asked for
    assert (tmp_path / "0_denoised_denoised.png").is_file()


@pytest.mark.parametrize("folder", ["in", "."])
def test_output_folder_within_the_input_is_not_descended_into(run, tmp_path, folder):
    save_picture(tmp_path / "in" / "1.png")
    save_picture(tmp_path / "in" / "deep" / "2.png")
    command = ["denoise", folder, "-o", "in/out", "--recursive"]
    assert "2 denoised" in run(*command)[1]
    code, said = run(*command)
    assert code == 0 and "0 denoised; 2 skipped" in said
    assert "2 denoised" in run(*command, "--format", "jpg")[1]
    assert "2 denoised" in run(*command, "--overwrite")[1]
    assert "2 denoised" in run("denoise", "in/deep", "in/1.png", "-o", "in", "--overwrite")[1]  # into one above


def test_folders_files_and_globs_into_a_folder(run, tmp_path):
    save_picture(tmp_path / "a" / "1.png")
    save_picture(tmp_path / "a" / "deep" / "2.png")
    save_picture(tmp_path / "b" / "3.png")
    save_picture(tmp_path / "4.png")
    assert run("denoise", "a", "b/*.png", "4.png", "-o", "out")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.png")) == ["1.png", "3.png", "4.png"]
    assert run("denoise", "a", "-o", "out", "--recursive")[0] == 0
    assert (tmp_path / "out" / "deep" / "2.png").is_file()


def test_format_changes_the_extension(run, tmp_path):
    save_picture(tmp_path / "noisy.png")
    assert run("denoise", "noisy.png", "--format", "jpg", "--quality", 50)[0] == 0
    assert Image.open("noisy_denoised.jpg").format == "JPEG"
    assert run("denoise", "noisy.png", "--format", ".TIF")[0] == 0
    assert Image.open("noisy_denoised.tif").format == "TIFF"
    code, said = run("denoise", "noisy.png", "--format", "jpg", "-o", "clean.png")
    assert code == 2 and "clean.png does not end in .jpg" in said and not (tmp_path / "clean.png").exists()
    assert run("denoise", "noisy.png", "--format", "jpeg", "-o", "clean.JPG")[0] == 0
    code, said = run("denoise", "noisy.png", "--format", "gif", "--model", "nowhere")
    assert code == 2 and "gif" in said and ".webp" in said and "nowhere" not in said


def test_a_slash_at_the_end_means_a_folder(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    assert run("denoise", noisy, "-o", "out/")[0] == 0
    assert Image.open("out/noisy.png").size == (70, 50)
    assert run("denoise", noisy, "-o", "out")[1].startswith("0 denoised; 1 skipped")
    code, said = run("denoise", noisy, "-o", "noisy.png/")
    assert code == 2 and "folder is needed" in said


def test_heic_becomes_jpeg_or_png_and_raw_becomes_tiff(run, tmp_path):
    rng = np.random.default_rng(0)
    for name, mode, dtype in (("8.heic", "RGB", np.uint8), ("10.HEIC", "RGB;16", np.uint16)):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=dtype)
        pillow_heif.from_bytes(mode, (64, 48), pixels.tobytes()).save(tmp_path / name)
    write_dng(tmp_path / "shot.dng", expose(scene(60, 80)))
    code, said = run("denoise", tmp_path, "-o", "out")
    assert code == 0 and "3 denoised" in said
    assert sorted(os.listdir("out")) == ["10.png", "8.jpg", "shot.tif"]
    assert run("denoise", tmp_path)[0] == 0
    assert {"8_denoised.jpg", "10_denoised.png", "shot_denoised.tif"} < set(os.listdir())
    assert run("denoise", "8.heic", "-o", "named")[0] == 0 and Image.open("named.jpg").size == (64, 48)
    code, said = run("denoise", "8.heic", "-o", "a.heic")
    assert code == 1 and "this libvips has no heic encoder" in said


def test_raw_options_reach_the_developer(run, tmp_path):
    write_dng(tmp_path / "shot.dng", expose(scene(60, 80)))
    assert run("denoise", "shot.dng", "--strength", 0)[0] == 0
    options = ["--raw-exposure", 1, "--raw-half-size", "--raw-white-balance", "daylight"]
    assert run("denoise", "shot.dng", "-o", "b.tif", "--strength", 0, *options)[0] == 0
    plain, changed = (read_image(name).pixels for name in ("shot_denoised.tif", "b.tif"))
    assert plain.shape == (60, 80, 3) and changed.shape == (30, 40, 3)
    assert changed[..., 1].mean() > 1.3 * plain[..., 1].mean() > changed[..., 0].mean()


def test_in_place_keeps_the_originals_and_is_done_once(run, tmp_path):
    before = {}
    for i in range(2):
        before[i] = save_picture(tmp_path / "in" / f"{i}.png", seed=i).read_bytes()
    write_dng(tmp_path / "in" / "shot.dng", expose(scene(60, 80)))
    code, said = run("denoise", "in", "--in-place")
    assert code == 0 and "3 denoised" in said
    names = ["0.png", "0_original.png", "1.png", "1_original.png", "shot.dng", "shot_denoised.tif"]
    assert sorted(os.listdir("in")) == names
    for i in range(2):
        assert Path(f"in/{i}_original.png").read_bytes() == before[i] != Path(f"in/{i}.png").read_bytes()
    after = Path("in/0.png").read_bytes()
    code, said = run("denoise", "in", "--in-place")
    assert code == 0 and "0 denoised" in said and "3 skipped" in said and Path("in/0.png").read_bytes() == after
    # as if a run had been stopped between keeping the original and replacing the image
    shutil.copy("in/0_original.png", "in/0.png")
    assert "1 denoised" in run("denoise", "in", "--in-place")[1]
    assert Path("in/0.png").read_bytes() == after and Path("in/0_original.png").read_bytes() == before[0]


def test_in_place_with_a_folder_for_the_originals(run, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    before = save_picture(tmp_path / "in" / "deep" / "a.png").read_bytes()
    monkeypatch.setattr(os, "link", lambda *args: os.rename("nowhere", "nowhere"))  # a memory card has no links
    for _ in range(2):
        code, said = run("denoise", "in", "--recursive", "--in-place", "--originals", "in/kept")
    assert code == 0 and "1 skipped, since their originals are kept already" in said
    assert Path("in/kept/deep/a.png").read_bytes() == before != Path("in/deep/a.png").read_bytes()
    assert os.listdir("in/kept/deep") == ["a.png"]
    Path("file").touch()
    code, said = run("denoise", "in", "--recursive", "--in-place", "--originals", "file")
    assert code == 1 and "the original cannot be kept as" in said


@pytest.mark.parametrize("given, originals", [("in", "in"), ("in", "."), ("in/a.png", "in"), ("in/a.png", "./in/")])
def test_originals_are_not_kept_where_the_images_are(run, tmp_path, given, originals):
    before = save_picture(tmp_path / "in" / "a.png").read_bytes()
    code, said = run("denoise", given, "--in-place", "--originals", originals)
    assert code == 2 and f"holds {given} itself; choose another folder" in said
    assert Path("in/a.png").read_bytes() == before


def test_what_was_left_out_of_several_images_is_one_line(run, tmp_path):
    for name in "abc":
        save_picture(tmp_path / f"{name}.png")
        Image.new("CMYK", (20, 16)).save(tmp_path / f"{name}.tif")
    said = run("denoise", "a.tif", "b.tif", "-o", "1")[1]
    assert said.count("CMYK") == 1 and "all 2 images: it was CMYK, and its result is sRGB." in said
    assert "a.tif, b.tif: it was CMYK" in run("denoise", "a.tif", "b.tif", "c.png", "-o", "2")[1]


def test_finished_files_are_skipped_until_overwrite(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    (tmp_path / "clean.png").write_bytes(b"precious")
    code, said = run("denoise", noisy, "-o", "clean.png")
    assert code == 0 and "1 skipped" in said
    assert (tmp_path / "clean.png").read_bytes() == b"precious"
    assert run("denoise", noisy, "-o", "clean.png", "--overwrite")[0] == 0
    assert Image.open("clean.png").size == (70, 50)


def test_input_is_overwritten_only_on_request(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    before = noisy.read_bytes()
    code, said = run("denoise", noisy, "-o", noisy)
    assert code == 1 and "--overwrite" in said and noisy.read_bytes() == before
    assert run("denoise", noisy, "-o", noisy, "--overwrite")[0] == 0
    assert noisy.read_bytes() != before


def test_failures_are_named_and_the_others_done(run, tmp_path):
    good = save_picture(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.png").touch()
    code, said = run("denoise", "text.png", "good.png", "cut.png", "empty.png", "missing.png", "-o", "out")
    assert code == 1 and "1 denoised; 4 failed" in said
    for name in ("text.png", "cut.png", "empty.png", "missing.png"):
        assert said.count(name) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_an_inaccessible_result_fails_alone(run, tmp_path, options):
    save_picture(tmp_path / f"{'a' * 250}.png")
    good = save_picture(tmp_path / "good.png")
    code, said = run("denoise", ".", *options)
    assert code == 1 and "1 denoised; 1 failed" in said and "too long; choose another name" in said
    assert (tmp_path / "good_denoised.png").is_file()
    code, said = run("denoise", good, "-o", f"{'b' * 300}.png", *options)
    assert code == 1 and "0 denoised; 1 failed" in said and "too long; choose another name" in said


def test_folder_without_images_and_unwritable_folder(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    (tmp_path / "none").mkdir()
    code, said = run("denoise", "none")
    assert code == 1 and "none holds no image" in said
    code, said = run("denoise", noisy, "-o", "/proc/nowhere/clean.png")
    assert code == 1 and "/proc/nowhere" in said


def test_what_was_left_out_of_a_file_is_said(run, tmp_path):
    Image.new("RGB", (70, 50)).save("noisy.jpg", exif=b"Exif\0\0nothing of the kind")
    code, said = run("denoise", "noisy.jpg", "-o", "clean.jpg")
    assert code == 0 and "1 denoised" in said and "noisy.jpg: its EXIF is damaged and was left out." in said
    assert run("denoise", "noisy.jpg", "-o", "quiet.jpg", "--quiet") == (0, "")


def test_images_above_the_limit_are_refused(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png", size=(2000, 1000))
    for command in (["denoise", noisy, "-o", "clean.png"], ["simulate", noisy, "-o", "clean.png"]):
        code, said = run(*command, "--max-pixels", 1_000_000)
        assert code == 1 and "the limit for PNG is 1 million (--max-pixels)" in said
    assert run("denoise", noisy, "-o", "clean.png", "--max-pixels", 2_000_000, "--strength", 0)[0] == 0


def test_names_do_not_break_a_message(run, tmp_path):
    (tmp_path / "a\nb.png").touch()
    (tmp_path / os.fsdecode(b"c\xff.png")).touch()
    code, said = run("denoise", ".")
    assert code == 1 and said.count("gdd: ") == 2
    assert "gdd: a\\nb.png is empty" in said and "gdd: c\\xff.png is empty" in said


def test_a_folder_that_cannot_be_made_is_named(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    (tmp_path / "file").touch()
    code, said = run("denoise", noisy, "-o", "file/out/")
    assert code == 1 and "the folder file/out cannot be made: Not a directory; choose another place." in said


def test_output_without_extension_keeps_that_of_the_input(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    code, said = run("denoise", noisy, "-o", "clean")
    assert code == 0 and "clean.png" in said and Image.open("clean.png").format == "PNG"
    assert run("denoise", noisy, "-o", "clean", "--format", "jpg")[0] == 0
    assert Image.open("clean.jpg").format == "JPEG" and not (tmp_path / "clean").exists()


def test_a_result_that_another_run_makes_is_left_to_it(run, tmp_path, monkeypatch):
    for i in range(3):
        save_picture(tmp_path / "in" / f"{i}.png", seed=i)
    denoise = batch.denoise_pixels

    def denoise_while_another_run_finishes(pipe, images, **kwargs):
        (tmp_path / "out" / "2.png").write_bytes(b"of the other run")
        return denoise(pipe, images, **kwargs)

    with batch.claim(tmp_path / "out" / "0.png", batch.FileOptions()):
        code, said = run("denoise", "in", "-o", "out")
        assert code == 0 and "2 denoised; 1 left to another run" in said
        assert not (tmp_path / "out" / "0.png").exists()
    (tmp_path / "out" / "2.png").unlink()
    monkeypatch.setattr(batch, "denoise_pixels", denoise_while_another_run_finishes)
    (tmp_path / "out" / "0.png").touch()
    code, said = run("denoise", "in", "-o", "out")
    assert code == 0 and "0 denoised; 2 skipped" in said and "1 left to another run" in said
    assert (tmp_path / "out" / "2.png").read_bytes() == b"of the other run"


def test_fast_is_short_for_the_model_gdd_fast(run, tmp_path):
    save_picture(tmp_path / "a.png")
    assert run("denoise", "a.png", "--fast", "-o", "fast.png")[0] == 0
    assert run("denoise", "a.png", "--model", "gdd-fast", "-o", "named.png")[0] == 0
    assert run("denoise", "a.png", "--model", "gdd-small", "-o", "small.png")[0] == 0
    fast, named, small = (pixels_of(tmp_path / f"{name}.png") for name in ("fast", "named", "small"))
    assert (fast == named).all() and (fast != small).any()
    code, said = run("denoise", "a.png", "--fast", "--model", "gdd-small", "-o", "both.png")
    assert code == 2 and "leave one of them out" in said


def test_next_image_is_read_and_last_one_written_while_the_network_works(run, tmp_path, monkeypatch):
    for i in range(3):
        save_picture(tmp_path / "in" / f"{i}.png", size=(40 + i, 40), seed=i)
    was_read = {f"{i}.png": threading.Event() for i in range(3)}
    denoise, read_image, calls = batch.denoise_pixels, batch.read_image, []

    def read_and_tell(path, *args):
        image = read_image(path, *args)
        was_read[path.name].set()
        return image

    def denoise_after_that(pipe, images, **kwargs):
        number = len(calls)
        calls.append(images)
        if number < 2:
            assert was_read[f"{number + 1}.png"].wait(300)
        deadline = time.monotonic() + 300
        while number and not (tmp_path / "out" / f"{number - 1}.png").exists():
            assert time.monotonic() < deadline
        return denoise(pipe, images, **kwargs)

    monkeypatch.setattr(batch, "read_image", read_and_tell)
    monkeypatch.setattr(batch, "denoise_pixels", denoise_after_that)
    code, said = run("denoise", "in", "-o", "out")
    assert code == 0 and "3 denoised" in said


def test_small_images_of_equal_size_are_denoised_at_once(run, tmp_path, monkeypatch):
    sizes = [(40, 30), (40, 30), (40, 30), (30, 40), (800, 700), (800, 700)]
    for i, size in enumerate(sizes):
        save_picture(tmp_path / "in" / f"{i}.png", size=size, seed=i)
    save_picture(tmp_path / "in" / "1.png", size=sizes[1], bits=16)  # in grey
    for i in range(len(sizes)):
        assert run("denoise", f"in/{i}.png", "-o", f"alone/{i}.png")[0] == 0
    denoise, calls = batch.denoise_pixels, []

    def denoise_and_tell(pipe, images, **kwargs):
        calls.append([image.shape for image in images])
        return denoise(pipe, images, **kwargs)

    monkeypatch.setattr(batch, "denoise_pixels", denoise_and_tell)
    code, said = run("denoise", "in", "-o", "out")
    assert code == 0 and "6 denoised" in said
    assert calls == [[(30, 40, 3), (30, 40, 1), (30, 40, 3)], [(40, 30, 3)], [(700, 800, 3)], [(700, 800, 3)]]
    for i in range(len(sizes)):
        together, alone = (pixels_of(tmp_path / folder / f"{i}.png").astype(int) for folder in ("out", "alone"))
        assert np.abs(together - alone).max() <= 1  # convolutions of a batch may round in another way


def test_an_image_that_fails_does_not_take_its_neighbours_along(run, tmp_path, monkeypatch):
    for i in range(4):
        save_picture(tmp_path / "in" / f"{i}.png", seed=i)
    (tmp_path / "in" / "2.png").write_text("not a picture")
    bad, denoise = pixels_of(tmp_path / "in" / "1.png"), batch.denoise_pixels

    def fail_with_one(pipe, images, **kwargs):
        if any(np.array_equal(image, bad) for image in images):
            raise ValueError("the network returned NaN")
        return denoise(pipe, images, **kwargs)

    monkeypatch.setattr(batch, "denoise_pixels", fail_with_one)
    code, said = run("denoise", "in", "-o", "out")
    assert code == 1 and "in/1.png: the network returned NaN" in said and "in/2.png" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "3.png"]


@pytest.mark.slow
def test_two_runs_at_once_denoise_each_file_once(model, tmp_path):
    for i in range(12):
        save_picture(tmp_path / "in" / f"{i}.png", size=(100 + i, 100), seed=i)
    command = [sys.executable, "-m", "gdd_diffusers", "denoise", "in", "-o", "out", "--model", str(model)]
    processes = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(text.split(" denoised")[0]) for text in said) == 12, said
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_files_of_a_folder_that_are_left_out_are_counted(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # rawpy is not installed
    save_picture(tmp_path / "in" / "1.png")
    for name in ("a.CR2", "b.dng", "c.mp4", "d.gif", ".hidden.nef", "notes.txt"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "deep").mkdir()
    (tmp_path / "in" / "deep" / "e.mov").touch()
    code, said = run("denoise", "in", "-o", "out")
    assert code == 0 and "1 denoised" in said
    assert 'in: 2 raw files left out; pip install "gdd-diffusers[raw]" to read them.' in said
    assert "in: 1 video left out; extract the frames as images first." in said
    assert "in: 1 image of another format left out; convert to PNG or TIFF first." in said
    assert "in: 1 subfolder left out; --recursive includes them." in said
    code, said = run("denoise", "in", "-o", "out", "--recursive")
    assert "in: 2 videos left out" in said and "subfolder" not in said
    assert run("denoise", "in", "-o", "out", "--quiet") == (0, "")


def test_a_folder_with_results_only_is_reported(run, tmp_path):
    for name in ("cat", "dog", ""):
        save_picture(tmp_path / "in" / f"{name}_denoised.png")
    code, said = run("denoise", "in")
    assert code == 0 and "0 denoised" in said
    assert "in: 3 files named *_denoised left out as results of an earlier run; denoise them by their names." in said
    save_picture(tmp_path / "in" / "cat.jpg")  # now one of them is its result
    assert "in: 2 files named *_denoised left out" in run("denoise", "in")[1]


def test_two_images_for_one_result_are_refused(run, tmp_path):
    save_picture(tmp_path / "a" / "1.png")
    save_picture(tmp_path / "b" / "1.png")
    code, said = run("denoise", "a", "b", "-o", "out")
    assert code == 2 and "would both become" in said and not (tmp_path / "out").exists()


def test_several_images_into_a_file_are_refused(run, tmp_path):
    first, second = save_picture(tmp_path / "1.png"), save_picture(tmp_path / "2.png")
    code, said = run("denoise", first, second, "-o", first)
    assert code == 2 and "folder is needed" in said


@pytest.mark.parametrize(
    "options",
    [
        ["--strength", "1.5"],
        ["--steps", "0"],
        ["--steps", "1001"],
        ["--quality", "0"],
        ["--tile-size", "8"],
        ["--rule", "best"],
        ["--device", "abacus"],
        ["--format", "gif"],
        ["--format", "."],
        ["--format", "a/b"],
        ["--in-place", "-o", "out"],
        ["--in-place", "--overwrite"],
        ["--in-place", "--format", "jpg"],
        ["--originals", "kept"],
        ["--raw-exposure", "9"],
        ["--raw-white-balance", "moonlight"],
        ["--no-such-option"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_writes_nothing(run, tmp_path, options):
    noisy = save_picture(tmp_path / "noisy.png")
    code, said = run("denoise", noisy, "-o", "clean.png", *options)
    assert code == 2 and said and not (tmp_path / "clean.png").exists()


def test_a_device_that_is_not_there_is_named(run, tmp_path):
    absent = "cuda" if torch.backends.mps.is_available() else "mps"  # no machine has both
    code, said = run("denoise", save_picture(tmp_path / "noisy.png"), "--device", absent)
    assert code == 2 and f"no {absent} device" in said


def test_models_that_cannot_be_loaded_are_named(run, model, tmp_path, monkeypatch):
    noisy = save_picture(tmp_path / "noisy.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("empty", "no/such-model", "not a name"):
        code, said = run("denoise", noisy, "--model", name)
        assert code == 1 and name in said and "Traceback" not in said


def test_quiet_says_nothing(run, tmp_path):
    assert run("denoise", save_picture(tmp_path / "noisy.png"), "--quiet") == (0, "")


def test_compare_writes_a_labelled_image(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png", size=(300, 200))
    assert run("denoise", noisy, "-o", "clean.png", "--compare", "sheet.png")[0] == 0
    sheet = Image.open("sheet.png")
    assert sheet.width == 608 and sheet.height > 225
    assert np.array_equal(np.asarray(sheet)[25:225, :300], pixels_of(noisy))
    for name, format in (("sheet.jpg", "JPEG"), ("sheet", "PNG")):
        assert run("denoise", noisy, "-o", "clean.png", "--compare", name, "--overwrite")[0] == 0
        assert Image.open(name).format == format
    second = save_picture(tmp_path / "second.png")
    code, said = run("denoise", noisy, second, "-o", "out", "--compare", "both.png")
    assert code == 2 and "--compare takes one image" in said


def test_compare_enlarges_detail_that_changed_and_no_even_patch(run, tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.full((300, 600, 3), 100.0)
    pixels[100:200, 400:500] = 60 + 80 * (np.arange(100) // 5 % 2)[:, None]  # stripes, as noisy as the rest
    before, after = (Image.fromarray(x.astype(np.uint8)) for x in (pixels + rng.normal(0, 12, pixels.shape), pixels))
    sheet = np.asarray(compare({"before": before, "after": after}))
    crop = sheet[25 + 300 + GAP :, sheet.shape[1] // 2 + GAP :].astype(int)
    assert np.ptp(crop) > 70


def test_an_unwritable_compare_fails_before_denoising(run, tmp_path):
    noisy = save_picture(tmp_path / "noisy.png")
    (tmp_path / "sheet.png").write_bytes(b"precious")
    command = ["denoise", noisy, "-o", "clean.png", "--compare"]
    for sheet, reason in [("sheet.png", "exists already"), ("none/sheet.png", "no folder")]:
        code, said = run(*command, sheet)
        assert code == 1 and "0 denoised" in said and f"{sheet} " in said and reason in said
        assert not (tmp_path / "clean.png").exists()
    before = noisy.read_bytes()
    for sheet in ("clean.png", "./noisy.png"):
        code, said = run(*command, sheet, "--overwrite")
        assert code == 2 and "would replace" in said and noisy.read_bytes() == before
    assert (tmp_path / "sheet.png").read_bytes() == b"precious"


def test_compare_of_an_existing_result_needs_overwrite(run, tmp_path):
    command = ["denoise", save_picture(tmp_path / "noisy.png"), "-o", "clean.png"]
    assert run(*command)[0] == 0
    code, said = run(*command, "--compare", "sheet.png")
    assert code == 1 and "use --overwrite" in said and not (tmp_path / "sheet.png").exists()
    assert run(*command, "--compare", "sheet.png", "--overwrite")[0] == 0
    code, said = run(*command, "--compare", "sheet.png")
    assert code == 0 and "1 skipped" in said


def test_info(run, model):
    card = (
        "---\nlicense: apache-2.0\n---\n\n# A model\n\n## Training data\n\nSixty photographs\nby friends.\n\n## More\n"
    )
    (model / "README.md").write_text(card)
    code, said = run("info", model)
    assert code == 0
    for fact in ("0.0", "sample", "2 steps, rule improved", "64 px", "apache-2.0", "Sixty photographs by friends."):
        assert fact in said
    assert "gdd-small" in (said := run("info")[1]) and "million parameters" in said
    code, said = run("info", "nowhere")
    assert code == 1 and "nowhere" in said


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (b"---\nlicense: [mit\n---\n# x\n", "is no valid YAML (while parsing a flow sequence); correct it."),
        (b"---\nlicense: mit\n---\n# caf\xe9\n", "is not in UTF-8; save it as such."),
        (b"---\nmodel-index: x\n---\n# x\n", "is not what https://huggingface.co/docs/hub/model-cards asks for"),
        (b"---\ntags: 5\n---\n# x\n", "is not what https://huggingface.co/docs/hub/model-cards asks for"),
    ],
)
def test_a_broken_card_is_named(run, model, tmp_path, card, reason):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(card)
    for command in (["info", "model"], ["publish", "model", "org/name", "--dry-run"]):
        code, said = run(*command)
        assert code == 1 and "model/README.md" in said and reason in said


def test_simulate_is_reproducible(run, tmp_path):
    clean = save_picture(tmp_path / "clean.png")
    arguments = ["simulate", clean, "--preset", "phone", "--iso", 3200]
    assert run(*arguments, "-o", "1.png", "--clean-output", "recorded.png")[0] == 0
    assert run(*arguments, "-o", "2")[0] == 0  # gets the extension of the input
    assert run(*arguments, "-o", "3.png", "--seed", 1)[0] == 0
    first, second, third = (pixels_of(f"{i}.png") for i in (1, 2, 3))
    assert np.array_equal(first, second) and not np.array_equal(first, third)
    assert pixels_of("recorded.png").shape == first.shape == (50, 70, 3)
    code, said = run(*arguments, "-o", "1.png")
    assert code == 1 and "1.png" in said
    Image.fromarray(np.zeros((50, 70, 4), np.uint8)).save(tmp_path / "alpha.png")
    code, said = run("simulate", "alpha.png", "-o", "4.png")
    assert code == 1 and "alpha.png: the simulated camera takes no transparency" in said


@pytest.mark.parametrize("name, shape", [("grey.png", (50, 70)), ("equal.jpg", (50, 70, 3))])
def test_simulate_makes_grey_photographs_noisy_in_grey(run, tmp_path, name, shape):
    pixels = np.broadcast_to(np.arange(70, dtype=np.uint16) * 900, (50, 70))
    grey = Image.fromarray(np.ascontiguousarray(pixels))  # 16 bits
    if name == "equal.jpg":
        grey = Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")
    grey.save(name)
    assert run("simulate", name, "--iso", 1600, "-o", "noisy.png", "--clean-output", "clean.png")[0] == 0
    noisy, clean = pixels_of("noisy.png"), pixels_of("clean.png")
    assert noisy.shape == clean.shape == shape and noisy.dtype == np.uint8
    assert (noisy != clean).mean() > 0.5
    if len(shape) == 3:
        assert (noisy == noisy[..., :1]).all() and (clean == clean[..., :1]).all()


def test_simulate_writes_both_of_a_pair_or_none(run, tmp_path):
    clean = save_picture(tmp_path / "clean.png")
    code, said = run("simulate", clean, "-o", "noisy.png", "--clean-output", "none/recorded.png")
    assert code == 1 and "no folder" in said and not (tmp_path / "noisy.png").exists()
    code, said = run("simulate", clean, "-o", "noisy.png", "--clean-output", "./noisy.png", "--overwrite")
    assert code == 2 and "cannot both be noisy.png" in said and not (tmp_path / "noisy.png").exists()
    code, said = run("simulate", clean, "-o", "noisy.png", "--preset", "gaussian", "--iso", 800)
    assert code == 2 and "--iso is for cameras" in said and not (tmp_path / "noisy.png").exists()


def test_version_and_help(run):
    assert run("--version") == (0, "gdd-diffusers 0.1.0")
    code, said = run("--help")
    assert code == 0 and all(command in said for command in ("denoise", "info", "simulate"))


@pytest.mark.parametrize(
    "module, waiting",
    [
        ("gdd_diffusers.app.cli", {"torch", "diffusers", "pyvips", "pi_heif", "rawpy"}),
        ("gdd_diffusers.files", {"torch", "diffusers", "pi_heif", "rawpy"}),
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(module, waiting):
    code = f"import sys, gdd_diffusers, {module}; print({waiting} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.slow
def test_interrupt_says_how_many_are_done_and_leaves_no_half_file(model, tmp_path):
    for i in range(200):
        save_picture(tmp_path / "in" / f"{i:03}.png", size=(200, 200))
    command = [sys.executable, "-m", "gdd_diffusers", "denoise", "in", "-o", "out", "--model", str(model)]

    def heed_ctrl_c():  # which what a shell runs in the background ignores, with its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    while not (tmp_path / "out" / "002.png").exists():
        with pytest.raises(subprocess.TimeoutExpired):  # it must not end before it is interrupted
            process.wait(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    written = sorted((tmp_path / "out").iterdir())
    assert process.returncode == 130 and f"{len(written)} of 200 images are done" in said and "Traceback" not in said
    assert all(Image.open(path).size == (200, 200) for path in written) and len(written) < 200


def test_interrupt_during_imports_leaves_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, "-m", "gdd_diffusers", "--version"]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


@pytest.mark.parametrize("options", [["-o", "out"], ["-o", "in", "--overwrite"]])
def test_interrupt_names_failures_and_what_the_same_command_would_do(run, tmp_path, monkeypatch, options):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_text("not a picture")
    for i in range(1, 4):
        save_picture(tmp_path / "in" / f"{i}.png", size=(40 + i, 40), seed=i)
    calls = []

    def denoise(pipe, images, **kwargs):
        calls.append(images)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return images

    monkeypatch.setattr(batch, "denoise_pixels", denoise)
    code, said = run("denoise", "in", *options)
    assert code == 130 and "in/0.png is no " in said and "1 of 4 images are done" in said
    assert ("goes on with the rest" in said) != ("--overwrite" in options)
    assert ("leave out all up to in/1.png" in said) == ("--overwrite" in options)


@pytest.mark.parametrize("interrupted_wait, num_done", [(1, 2), (2, 3), (3, 3)])
def test_interrupt_while_images_are_written_loses_none_of_them(run, tmp_path, monkeypatch, interrupted_wait, num_done):
    for i in range(3):
        save_picture(tmp_path / "in" / f"{i}.png", size=(40 + i, 40), seed=i)
        (tmp_path / "in" / f"{i}.xmp").touch()
    wait, calls = batch.wait, []

    def wait_or_be_interrupted(futures):
        calls.append(futures)
        if len(calls) == interrupted_wait:
            raise KeyboardInterrupt
        return wait(futures)

    monkeypatch.setattr(batch, "wait", wait_or_be_interrupted)
    code, said = run("denoise", "in", "-o", "out")
    assert code == 130 and f"{num_done} of 3 images are done" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{i}.{suffix}" for i in range(num_done) for suffix in ("png", "xmp")]
