import copy
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import make_pipeline, make_unet
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.callbacks import PipelineCallback
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from gdd_diffusers import InterpolationScheduler, LocalUNet2DModel, RealDenoisePipeline


def random_picture(mode, size=(40, 24)):
    channels = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels).convert(mode)


# Every kind of picture in, the same kind out


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("La", "LA"),
        ("I", "I;16"),
        ("I;16", "I;16"),
        ("I;16B", "I;16"),
        ("F", "L"),
        ("P", "RGB"),
        ("PA", "RGBA"),
        ("RGB", "RGB"),
        ("RGBX", "RGB"),
        ("RGBA", "RGBA"),
        ("RGBa", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("LAB", "RGB"),
        ("HSV", "RGB"),
    ],
)
def test_every_pil_mode(pipe, mode, expected):
    result = pipe(Image.new(mode, (13, 7))).images[0]
    assert result.mode == expected and result.size == (13, 7)


def test_palette_with_transparency_keeps_it(pipe):
    image = random_picture("RGB").quantize(16)
    image.info["transparency"] = 3
    result = pipe(image).images[0]
    assert result.mode == "RGBA"
    assert np.array_equal(np.asarray(result)[..., 3], np.asarray(image.convert("RGBA"))[..., 3])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_left_alone(pipe, mode):
    image = random_picture(mode)
    result = pipe(image).images[0]
    assert np.array_equal(np.asarray(result)[..., -1], np.asarray(image)[..., -1])
    assert not np.array_equal(np.asarray(result)[..., 0], np.asarray(image)[..., 0])


def test_a_profile_of_other_colours_does_not_stay(pipe):
    image = Image.new("CMYK", (20, 16))
    image.info |= {"icc_profile": b"of a press", "exif": b"exif"}
    result = pipe(image).images[0]
    assert result.mode == "RGB" and "icc_profile" not in result.info and result.info["exif"] == b"exif"


def test_tiles_and_overlaps_are_multiples_before_they_are_compared():
    pipe = make_pipeline()
    multiple = pipe.spatial_multiple
    for tile_size, overlap in ((2 * multiple - 1, 1), (multiple + 2, multiple // 2 + 1)):
        with pytest.raises(ValueError, match=f"must be at least {2 * multiple} for this network"):
            pipe.enable_tiling(tile_size, overlap)
    pipe.enable_tiling(2 * multiple, 1)
    picture = torch.rand(1, 3, 5 * multiple, 4 * multiple + 1)
    assert pipe(picture, output_type="pt").images.shape == picture.shape


def test_profile_and_exif_stay_with_a_pil_image(pipe):
    image = random_picture("RGB")
    image.info |= {"icc_profile": b"profile", "exif": b"exif"}
    result = pipe(image).images[0]
    assert result.info["icc_profile"] == b"profile" and result.info["exif"] == b"exif"


@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 1), (24, 40, 2), (24, 40, 3), (24, 40, 4), (2, 24, 40, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
def test_numpy_in_numpy_out(pipe, shape, dtype):
    picture = np.random.default_rng(0).random(shape)
    picture = (
        (picture * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else picture.astype(dtype)
    )
    (count, height, width, channels) = (1, *shape, 1)[:4] if len(shape) == 2 else (1, *shape)[-4:]
    result = pipe(picture, output_type="np").images
    assert result.shape == (count, height, width, channels) and result.dtype == np.float32
    assert 0 <= result.min() and result.max() <= 1
    as_float = picture / np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else picture.astype(np.float32)
    assert_close(pipe(as_float, output_type="np").images, result, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(24, 40), (1, 24, 40), (3, 24, 40), (4, 24, 40), (2, 3, 24, 40)])
def test_torch_in_torch_out(pipe, shape):
    picture = torch.rand(shape)
    result = pipe(picture, output_type="pt").images
    count, channels = (shape[0] if len(shape) == 4 else 1), (shape[-3] if len(shape) > 2 else 1)
    assert result.shape == (count, channels, 24, 40)
    as_numpy = picture.movedim(-3, -1).numpy() if picture.ndim > 2 else picture.numpy()
    assert_close(torch.from_numpy(pipe(as_numpy, output_type="np").images).movedim(-1, -3), result)


def test_views_of_all_kinds_are_read_right(pipe):
    pixels = np.random.default_rng(0).integers(0, 65536, (24, 40, 3), dtype=np.uint16)
    expected = pipe(pixels[::-1].copy(), output_type="np").images
    read_only = pixels[::-1].copy()
    read_only.flags.writeable = False
    for view in (pixels[::-1], read_only, pixels[::-1].astype(">u2"), np.asfortranarray(pixels[::-1])):
        assert np.array_equal(pipe(view, output_type="np").images, expected)


def test_sixteen_bits_are_not_reduced_to_eight(pipe):
    pixels = np.random.default_rng(0).integers(0, 65536, (24, 40), dtype=np.uint16)
    result = pipe(pixels, strength=0.01, output_type="np").images
    assert len(np.unique(np.rint(result * 65535))) > 500
    image = pipe(Image.fromarray(pixels)).images[0]
    assert image.mode == "I;16" and len(np.unique(np.asarray(image))) > 500


def test_list_of_mixed_kinds_and_sizes_keeps_count_and_order(pipe):
    images = [
        random_picture("RGB"),
        random_picture("L"),
        random_picture("RGBA", (9, 70)),
        random_picture("RGB", (1, 1)),
    ]
    results = pipe(images).images
    assert [(r.mode, r.size) for r in results] == [(i.mode, i.size) for i in images]
    for image, result in zip(images, results, strict=True):
        assert np.array_equal(np.asarray(pipe(image).images[0]), np.asarray(result))
    arrays = pipe(images, output_type="np").images
    assert [a.shape for a in arrays] == [(24, 40, 3), (24, 40, 1), (70, 9, 4), (1, 1, 3)]


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (7, 9), (63, 65), (64, 64), (200, 3), (129, 130)])
@pytest.mark.parametrize("kind", ["pipe", "plain_pipe"])
def test_any_size(request, kind, size):
    pipe = request.getfixturevalue(kind)
    result = pipe(random_picture("RGB", size)).images[0]
    assert result.size == size


def test_batch_equals_singles(pipe):
    batch = torch.rand(3, 3, 40, 72)
    together = pipe(batch, num_inference_steps=2, output_type="pt").images
    singles = [pipe(picture, num_inference_steps=2, output_type="pt").images[0] for picture in batch]
    assert_close(together, torch.stack(singles), atol=1e-6, rtol=0)


def test_two_runs_give_equal_bits(pipe):
    picture = torch.rand(1, 3, 100, 130)
    assert torch.equal(*(pipe(picture, num_inference_steps=2, output_type="pt").images for _ in range(2)))


def test_input_is_not_changed(pipe):
    picture = torch.rand(1, 3, 64, 32)
    copy = picture.clone()
    pipe(picture, num_inference_steps=2, output_type="pt")
    pipe(picture, strength=0, output_type="pil")
    assert torch.equal(picture, copy)


def test_grey_network_denoises_grey_and_refuses_colour():
    pipe = make_pipeline(channels=1)
    assert pipe(random_picture("L")).images[0].mode == "L"
    with pytest.raises(ValueError, match="grey images only"):
        pipe(random_picture("RGB"))


@pytest.mark.parametrize(
    "image, message",
    [
        ([], "empty list"),
        ("picture.png", "must be PIL, numpy or torch"),
        (np.zeros((4, 4, 5), np.uint8), "1 to 4 channels"),
        (np.zeros((4, 4, 3), np.int32), "uint8, uint16 or float"),
        (np.zeros((4, 4, 3), bool), "uint8, uint16 or float"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "2 to 4 dimensions"),
        (np.zeros(4, np.float32), "dimensions"),
        (np.full((4, 4, 3), np.nan), "NaN or infinite"),
        (np.full((4, 4, 3), np.inf), "NaN or infinite"),
        (np.full((4, 4, 3), 200.0), r"in \[0, 1\]"),
        (np.full((4, 4, 3), -0.5), r"in \[0, 1\]"),
        (torch.zeros(5, 4, 4), "1 to 4 channels"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "float in"),
        (torch.full((3, 4, 4), float("nan")), "NaN or infinite"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "0 to 65535"),
    ],
)
def test_invalid_images_are_refused(pipe, image, message):
    with pytest.raises(ValueError, match=message):
        pipe(image)


def test_values_out_of_range_by_rounding_are_clamped(pipe):
    result = pipe(torch.full((3, 8, 8), 1.0005), output_type="pt").images
    assert_close(result, pipe(torch.ones(3, 8, 8), output_type="pt").images)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_inference_steps": 0}, "from 1 to 1000"),
        ({"num_inference_steps": 1001}, "from 1 to 1000"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"strength": -0.1}, "strength"),
        ({"strength": 1.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"output_type": "jpg"}, "output_type"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
    ],
)
def test_arguments_out_of_range_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(random_picture("RGB"), **arguments)


def test_a_step_count_of_numpy_is_a_number(pipe):
    picture = random_picture("RGB")
    assert_close(*(pipe(picture, num_inference_steps=n, output_type="pt").images for n in (2, np.int64(2))))


# The walk


@pytest.mark.parametrize("rule", ["origin", "improved"])
@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_strength_zero_is_the_input_to_the_bit(rule, kind):
    pipe = make_pipeline(scheduler=InterpolationScheduler(step_rule=rule))
    picture = torch.rand(1, 3, 40, 24)
    image = {"pil": random_picture("RGB"), "np": picture.movedim(1, -1).numpy(), "pt": picture}[kind]
    result = pipe(image, num_inference_steps=4, strength=0, output_type=kind).images
    assert np.array_equal(np.asarray(result[0]), np.asarray(image if kind == "pil" else image[0]))


@pytest.mark.parametrize("rule", ["origin", "improved"])
@pytest.mark.parametrize("steps", [1, 3])
def test_distance_from_the_input_grows_with_strength(rule, steps):
    pipe = make_pipeline(scheduler=InterpolationScheduler(step_rule=rule))
    for seed in range(5):
        picture = torch.rand(1, 3, 32, 48, generator=torch.manual_seed(seed))
        distances = [
            (pipe(picture, num_inference_steps=steps, strength=s, output_type="pt").images - picture).norm()
            for s in (0, 0.25, 0.5, 0.75, 1)
        ]
        assert distances[0] == 0 and (torch.tensor(distances).diff() > 0).all()


def test_the_loop_by_hand_gives_the_same(pipe):
    image = torch.rand(1, 3, 32, 48)
    noisy = sample = image * 2 - 1
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = pipe.unet(torch.nn.functional.pixel_unshuffle(sample, 2), t).sample
        sample = scheduler.step(torch.nn.functional.pixel_shuffle(output, 2), t, sample, noisy).prev_sample
    result = pipe(image, num_inference_steps=3, output_type="pt").images
    assert_close(result, (sample / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_default_number_of_steps_is_the_models():
    pipe = make_pipeline(default_num_inference_steps=4)
    pipe(random_picture("L"))
    assert pipe.num_timesteps == 4


def test_latent_output_is_the_end_of_the_walk(pipe):
    picture = torch.rand(2, 3, 37, 43)
    latents = pipe(picture, output_type="latent").images
    assert latents.shape == (2, 3, 37, 43)
    assert_close((latents / 2 + 0.5).clamp(0, 1), pipe(picture, output_type="pt").images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [LocalUNet2DModel, UNet2DModel])
def test_half_precision_network_over_float32_latents(dtype, cls):
    pipe = make_pipeline(cls)
    picture = torch.rand(1, 3, 32, 32)
    expected = pipe(picture, output_type="latent").images
    result = pipe.to(dtype)(picture, output_type="latent").images
    assert pipe.unet.dtype == dtype and result.dtype == torch.float32
    assert_close(result, expected, atol=0.1, rtol=0)


def test_nan_from_the_network_is_an_error():
    pipe = make_pipeline()
    pipe.unet.conv_out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="returned NaN"):
        pipe(random_picture("RGB"))


# Bands and tiles


def use_tiles(pipe):
    """Wrap the network's call, as torch.compile and offloading do; then an image is cut into tiles, not into bands."""
    pipe.unet.forward = functools.partial(pipe.unet.forward)
    return pipe


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", [(300, 40), (40, 300), (133, 129)])
def test_bands_equal_the_whole_image(steps, size):
    pipe = make_pipeline(tile_size=32, tile_overlap=0)
    image = torch.rand(2, 3, *size)
    in_bands = pipe(image, num_inference_steps=steps, output_type="pt").images
    pipe.disable_tiling()
    assert_close(in_bands, pipe(image, num_inference_steps=steps, output_type="pt").images, atol=2e-6, rtol=0)


def test_layers_that_something_wraps_are_called_as_they_are():
    pipe = make_pipeline(tile_size=64, tile_overlap=0)
    image = torch.rand(1, 3, 32, 32)
    expected = pipe(image, output_type="pt").images
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float64, compute_dtype=torch.float32)
    assert_close(pipe(image, output_type="pt").images, expected)


def test_small_images_go_through_the_network_in_batches():
    pipe = make_pipeline(tile_size=128, tile_overlap=0)
    batch_sizes = []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: batch_sizes.append(len(output)))
    images = torch.rand(7, 3, 32, 32)
    batched = pipe(images, output_type="pt").images
    assert batch_sizes == [4, 3]
    assert_close(batched, torch.cat([pipe(image[None], output_type="pt").images for image in images]))


@pytest.mark.parametrize("steps", [1, 2])
def test_tiled_equals_whole_with_the_receptive_field_as_margin(steps):
    pipe = use_tiles(make_pipeline())
    margin = steps * (pipe.receptive_field + 1)
    picture = torch.rand(1, 3, 5 * margin + 3, 4 * margin + 2)
    pipe.disable_tiling()
    whole = pipe(picture, num_inference_steps=steps, output_type="pt").images
    pipe.enable_tiling(4 * margin, 2 * margin)
    tiled = pipe(picture, num_inference_steps=steps, output_type="pt").images
    assert_close(tiled, whole, atol=2e-6, rtol=0)


def test_tiles_without_margin_do_differ():
    pipe = use_tiles(make_pipeline(tile_size=64, tile_overlap=0))
    picture = torch.rand(1, 3, 128, 128)
    tiled = pipe(picture, output_type="pt").images
    pipe.disable_tiling()
    assert (tiled - pipe(picture, output_type="pt").images).abs().max() > 1e-4


def test_tiles_of_a_plain_unet_are_blended_without_steps(plain_pipe):
    picture = torch.full((1, 3, 256, 256), 0.4)
    picture[..., 100:] = 0.6
    result = plain_pipe(picture, output_type="pt").images
    assert plain_pipe.receptive_field is None
    plain_pipe.enable_tiling(64, 0)
    hard = plain_pipe(picture, output_type="pt").images
    plain_pipe.enable_tiling(64, 16)
    columns = lambda x: x.diff(dim=-1)[..., 120:250].abs().max()  # noqa: E731
    assert columns(result) < columns(hard)


@pytest.mark.parametrize("tile_size, tile_overlap", [(3, 0), (64, 33), (0, 0), (64, -8)])
def test_tiles_too_small_are_refused(tile_size, tile_overlap):
    with pytest.raises(ValueError, match="tile_size"):
        make_pipeline().enable_tiling(tile_size, tile_overlap)


def test_other_tiles_overlap_as_the_pipelines_own():
    pipe = make_pipeline(tile_size=1024, tile_overlap=192)
    pipe.enable_tiling(512)
    assert (pipe.config.tile_size, pipe.config.tile_overlap) == (512, 192)


def test_network_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match="12 for colour"):
        RealDenoisePipeline(make_unet(), InterpolationScheduler(), pixel_unshuffle=2)


# Progress, callbacks, threads


def test_progress_runs_over_bands_and_steps(pipe, capsys):
    pipe.set_progress_bar_config()
    pipe(random_picture("RGB", (100, 64)), num_inference_steps=3)
    shown = capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    assert "24/24" in shown
    pipe(random_picture("RGB", (100, 64)), num_inference_steps=3)
    assert capsys.readouterr().err == ""


def test_callback_sees_every_step_and_can_change_the_latents(pipe):
    seen = []

    def callback(pipeline, i, t, callback_kwargs):
        seen.append((i, float(t), callback_kwargs["latents"].shape))
        if i == pipeline.num_timesteps - 1:
            callback_kwargs["latents"] = torch.zeros_like(callback_kwargs["latents"])
        return callback_kwargs

    picture = torch.rand(1, 3, 30, 30)
    result = pipe(picture, num_inference_steps=4, output_type="latent", callback_on_step_end=callback).images
    assert [entry[:2] for entry in seen] == [(0, 1000), (1, 750), (2, 500), (3, 250)]
    assert seen[0][2] == (1, 3, 32, 32)
    assert torch.equal(result, torch.zeros(1, 3, 30, 30))


def test_callback_gets_only_what_it_asked_for(pipe):
    def callback(pipeline, i, t, callback_kwargs):
        assert callback_kwargs == {}
        return callback_kwargs

    pipe(random_picture("L"), callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[])


def test_callback_that_returns_nothing_changes_nothing(pipe):
    picture, steps = torch.rand(1, 3, 32, 32), []
    expected = pipe(picture, num_inference_steps=2, output_type="pt").images
    callback = lambda pipeline, i, t, callback_kwargs: steps.append(i)  # noqa: E731
    result = pipe(picture, num_inference_steps=2, output_type="pt", callback_on_step_end=callback).images
    assert steps == [0, 1] and torch.equal(result, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_callback_may_return_latents_of_another_dtype(pipe, dtype):
    def callback(pipeline, i, t, callback_kwargs):
        return {"latents": callback_kwargs["latents"].to(dtype)}

    picture = torch.rand(1, 3, 32, 32)
    result = pipe(picture, num_inference_steps=2, output_type="pt", callback_on_step_end=callback).images
    assert result.dtype == torch.float32
    assert_close(result, pipe(picture, num_inference_steps=2, output_type="pt").images, atol=2e-3, rtol=0)


@pytest.mark.parametrize("returned", [True, {"latents": torch.zeros(1, 3, 8, 8)}, {"latents": None}])
def test_invalid_callback_outputs_are_refused(pipe, returned):
    with pytest.raises(ValueError, match="`callback_on_step_end` must return"):
        pipe(torch.rand(1, 3, 32, 32), callback_on_step_end=lambda *arguments: returned)


def test_callback_object(pipe):
    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            callback_kwargs["latents"] = callback_kwargs["latents"] / 2
            return callback_kwargs

    picture = torch.rand(1, 3, 32, 32)
    result = pipe(
        picture, output_type="latent", callback_on_step_end=Halve(cutoff_step_ratio=None, cutoff_step_index=0)
    )
    assert_close(result.images, pipe(picture, output_type="latent").images / 2)


def test_interrupt_stops_the_walk(pipe):
    def callback(pipeline, i, t, callback_kwargs):
        calls.append(i)
        pipeline._interrupt = i == 1
        return callback_kwargs

    calls = []
    picture = torch.rand(1, 3, 32, 32)
    stopped = pipe(picture, num_inference_steps=4, output_type="pt", callback_on_step_end=callback).images
    assert calls == [0, 1]
    assert_close(stopped, pipe(picture, num_inference_steps=4, strength=0.5, output_type="pt").images)


def test_interrupt_stops_between_bands():
    pipe = make_pipeline(tile_size=32, tile_overlap=0)
    calls = []

    def interrupt(module, args, output):
        calls.append(args)
        pipe._interrupt = len(calls) >= 12

    pipe.unet.conv_in.register_forward_hook(interrupt)
    image = torch.rand(1, 3, 640, 32)
    result = pipe(image, output_type="pt").images
    assert 12 <= len(calls) < 20
    assert_close(result[:, :, 200:], image[:, :, 200:])
    assert not torch.equal(result[:, :, :32], image[:, :, :32])


def test_interrupt_stops_between_tiles():
    pipe = make_pipeline(tile_size=64, tile_overlap=0)
    forward, calls = pipe.unet.forward, []

    def interrupting_forward(*args, **kwargs):
        calls.append(args)
        pipe._interrupt = True
        return forward(*args, **kwargs)

    pipe.unet.forward = interrupting_forward
    picture = torch.rand(1, 3, 192, 64)
    result = pipe(picture, output_type="pt").images
    assert len(calls) == 1
    assert_close(result[:, :, 64:], picture[:, :, 64:]) and not torch.equal(result[:, :, :64], picture[:, :, :64])


def test_threads_give_what_serial_calls_give(pipe):
    jobs = [(torch.rand(1, 3, 40 + 8 * i, 100), 1 + i % 4, 1 - i / 10) for i in range(8)]
    run = lambda job: pipe(job[0], num_inference_steps=job[1], strength=job[2], output_type="pt").images  # noqa: E731
    serial = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(serial, pool.map(run, jobs), strict=True):
            assert_close(a, b, atol=1e-6, rtol=0)


def test_threads_do_not_interrupt_each_other(pipe):
    """While one call is in its first step, another begins, is interrupted and ends."""
    picture, begun, ended = torch.rand(1, 3, 32, 32), threading.Event(), threading.Event()
    seen = []

    def wait(pipeline, i, t, callback_kwargs):
        begun.set()
        assert ended.wait(300)
        seen.append((pipeline.num_timesteps, pipeline.interrupt))
        return callback_kwargs

    def interrupt(pipeline, i, t, callback_kwargs):
        pipe._interrupt = True
        return callback_kwargs

    expected = pipe(picture, num_inference_steps=3, output_type="pt").images
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(pipe, picture, num_inference_steps=3, output_type="pt", callback_on_step_end=wait)
        assert begun.wait(300)
        stopped = pipe(picture, num_inference_steps=2, output_type="pt", callback_on_step_end=interrupt).images
        ended.set()
        assert torch.equal(call.result().images, expected)
    assert seen == [(3, False)] * 3
    assert torch.equal(stopped, pipe(picture, num_inference_steps=2, strength=0.5, output_type="pt").images)


def test_a_call_does_not_undo_the_interrupt_of_another(pipe):
    """An interrupted call stops although another call begins before its next step."""
    picture, steps = torch.rand(1, 3, 32, 32), []

    def interrupt(pipeline, i, t, callback_kwargs):
        steps.append(i)
        pipe._interrupt = True
        with ThreadPoolExecutor(1) as pool:
            pool.submit(pipe, picture).result()
        pipe(picture)  # and so does one within the callback
        return callback_kwargs

    pipe(picture, num_inference_steps=4, callback_on_step_end=interrupt)
    assert steps == [0]


def test_interrupt_from_outside_stops_every_call(pipe):
    picture, begun, steps = torch.rand(1, 3, 32, 32), threading.Barrier(3), []

    def wait(pipeline, i, t, callback_kwargs):
        steps.append(i)
        for _ in range(2):
            begun.wait(300)
        return callback_kwargs

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(pipe, picture, num_inference_steps=9, callback_on_step_end=wait) for _ in range(2)]
        begun.wait(300)
        pipe._interrupt = True
        begun.wait(300)
        for call in calls:
            call.result()
    assert steps == [0, 0]


def test_a_pipeline_can_be_copied(pipe):
    picture = torch.rand(1, 3, 32, 32)
    assert torch.equal(*(p(picture, output_type="pt").images for p in (pipe, copy.deepcopy(pipe))))


def test_scheduler_is_not_changed_by_a_call(pipe):
    before = pipe.scheduler.timesteps.clone()
    pipe(random_picture("L"), num_inference_steps=3)
    assert torch.equal(pipe.scheduler.timesteps, before) and pipe.scheduler.num_inference_steps is None


# What diffusers asks of every pipeline


def test_call_takes_a_list_of_generators(pipe):
    images = [random_picture("RGB")] * 2
    assert len(pipe(image=images, generator=[torch.manual_seed(i) for i in range(2)]).images) == 2


def test_dict_and_tuple_outputs_are_equal(pipe):
    picture = torch.rand(1, 3, 32, 32)
    (images,) = pipe(picture, output_type="pt", return_dict=False)
    assert torch.equal(images, pipe(picture, output_type="pt").images)


def test_components(pipe):
    assert set(pipe.components) == {"unet", "scheduler"}
    again = RealDenoisePipeline(**pipe.components, pixel_unshuffle=2)
    assert again.unet is pipe.unet


@pytest.mark.parametrize("kind", ["pipe", "plain_pipe"])
@pytest.mark.parametrize("safe_serialization", [True, False])
def test_save_and_load(request, kind, safe_serialization, tmp_path):
    pipe = request.getfixturevalue(kind)
    pipe.save_pretrained(tmp_path, safe_serialization=safe_serialization)
    loaded = RealDenoisePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.unet) is type(pipe.unet) and type(loaded.scheduler) is InterpolationScheduler
    assert all(torch.equal(v, loaded.unet.state_dict()[k]) for k, v in pipe.unet.state_dict().items())
    picture = torch.rand(1, 3, 32, 32)
    assert_close(*(p(picture, output_type="pt").images for p in (pipe, loaded)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(5, 9), (1, 1), (3, 80), (70, 40), (64, 64)])
def test_small_images_are_continued_by_mirror_images(pipe, size):
    picture = torch.rand(2, 3, *size)
    expected = pipe(mirror(picture, [max(side, 64) for side in size]), output_type="pt").images
    with_min_size = RealDenoisePipeline(**pipe.components, pixel_unshuffle=2, min_size=64)
    result = with_min_size(picture, output_type="pt").images
    assert_close(result, expected[..., : size[0], : size[1]], atol=1e-6, rtol=0)


def mirror(picture, size):
    widths = [(0, 0), (0, 0), *((0, padded - side) for padded, side in zip(size, picture.shape[-2:], strict=True))]
    return torch.from_numpy(np.pad(picture.numpy(), widths, "symmetric"))


def test_configuration_is_saved(tmp_path):
    pipe = make_pipeline(default_num_inference_steps=5, tile_size=128, tile_overlap=32, min_size=48)
    pipe.enable_tiling(96, 24)
    pipe.save_pretrained(tmp_path)
    loaded = RealDenoisePipeline.from_pretrained(tmp_path)
    names = ("default_num_inference_steps", "pixel_unshuffle", "tile_size", "tile_overlap", "min_size")
    assert [loaded.config[name] for name in names] == [5, 2, 96, 24, 48]
    pipe.disable_tiling()
    pipe.save_pretrained(tmp_path)
    assert RealDenoisePipeline.from_pretrained(tmp_path).config.tile_size is None


def test_variants(pipe, tmp_path):
    half = make_pipeline().to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = RealDenoisePipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert loaded.unet.dtype == torch.float16
    with pytest.raises(ValueError, match="variant=bf16"):
        RealDenoisePipeline.from_pretrained(tmp_path, variant="bf16")


def test_dtype_dictionary(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert (
        RealDenoisePipeline.from_pretrained(tmp_path, dtype={"default": torch.bfloat16}).unet.dtype == torch.bfloat16
    )


def test_loads_whatever_module_the_classes_were_saved_from(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text())
    index["_class_name"] = ["pipeline_real_denoise", "RealDenoisePipeline"]
    index["scheduler"][0] = "scheduling_interpolation"
    index["unet"][0] = "diffusers_modules.local.unet_local"
    file.write_text(json.dumps(index))
    loaded = RealDenoisePipeline.from_pretrained(tmp_path)
    assert type(loaded) is RealDenoisePipeline and type(loaded.scheduler) is InterpolationScheduler


def test_folder_of_another_pipeline_is_refused(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="`scheduler` is DDPMScheduler"):
        RealDenoisePipeline.from_pretrained(tmp_path)


def test_folder_without_weights_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        RealDenoisePipeline.from_pretrained(tmp_path)


def test_offloaded_network_runs_and_goes_back():
    pipe = make_pipeline()
    picture = torch.rand(1, 3, 32, 32)
    expected = pipe(picture, output_type="pt").images
    # the CPU in the place of an accelerator, since tests must run without one: the hooks are the same
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert_close(pipe(picture, output_type="pt").images, expected)


# Components


@pytest.mark.parametrize("kind", ["pipe", "plain_pipe"])
def test_from_pipe_shares_the_components_and_the_configuration(request, kind):
    pipe = request.getfixturevalue(kind)
    again = RealDenoisePipeline.from_pipe(pipe, default_num_inference_steps=3)
    assert again.unet is pipe.unet and again.scheduler is pipe.scheduler
    names = ("pixel_unshuffle", "tile_size", "tile_overlap")
    assert [again.config[name] for name in names] == [pipe.config[name] for name in names]
    assert again.config.default_num_inference_steps == 3


def test_from_pipe_takes_another_network(pipe):
    unet = make_unet(pixel_unshuffle=2)
    assert RealDenoisePipeline.from_pipe(pipe, unet=unet).unet is unet


def test_from_pipe_of_another_kind_is_refused():
    pipe = DDPMPipeline(make_unet(UNet2DModel), DDPMScheduler())
    with pytest.raises(ValueError, match="needs an InterpolationScheduler; `scheduler` is DDPMScheduler"):
        RealDenoisePipeline.from_pipe(pipe)


@pytest.mark.parametrize(
    "scheduler", [None, DDPMScheduler(), FlowMatchEulerDiscreteScheduler()], ids=lambda s: type(s).__name__
)
def test_a_scheduler_of_another_kind_is_refused(scheduler):
    with pytest.raises(ValueError, match="needs an InterpolationScheduler; `scheduler` is"):
        RealDenoisePipeline(make_unet(), scheduler)


def test_a_scheduler_of_another_kind_that_is_assigned_is_refused_by_the_call():
    pipe = make_pipeline()
    pipe.scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match="`scheduler` is DDPMScheduler"):
        pipe(random_picture("RGB"))


@pytest.mark.parametrize("unet", [None, torch.nn.Conv2d(3, 3, 1)], ids=lambda u: type(u).__name__)
def test_a_network_of_another_kind_is_refused(unet):
    with pytest.raises(ValueError, match="needs a UNet2DModel; `unet` is"):
        RealDenoisePipeline(unet, InterpolationScheduler())


def test_subclasses_and_compiled_networks_are_accepted():
    class Scheduler(InterpolationScheduler):
        pass

    pipe = RealDenoisePipeline(torch.compile(make_unet(), backend="eager"), Scheduler())
    assert pipe(random_picture("L", (16, 16))).images[0].mode == "L"


# Folders whose files do not fit together


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"


def change_weights(change):
    def apply(folder):
        file = next((folder / "unet").glob("*00002-of*"), folder / WEIGHTS)
        tensors = load_file(file)
        change(tensors, sorted(tensors)[0])
        save_file(tensors, file)

    return apply


def change_json(file, **changes):
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    "change, message",
    [
        (change_weights(lambda tensors, name: tensors.pop(name)), "the tensor conv_in.bias is missing"),
        (change_weights(lambda tensors, name: tensors.clear()), "the tensor conv_in.weight is missing"),
        (change_weights(lambda tensors, name: tensors.update({name: tensors[name].long()})), "conv_in.bias is of I64"),
        (
            change_weights(lambda tensors, name: tensors.update({name: tensors[name][:4]})),
            r"of shape \[4\], not \[8\]",
        ),
        (change_weights(lambda tensors, name: tensors.update(other=torch.ones(1))), "has no tensor other"),
        (write(WEIGHTS, b""), "model.safetensors is damaged"),
        (write("unet/diffusion_pytorch_model.bin", b""), "holds weights more than once"),
        (write(SHARDS, b"{}"), "holds weights more than once"),
        (write("model_index.json", b"[]"), "model_index.json is damaged"),
        (change_json("model_index.json", unet=5), "`unet` is None"),
        (
            change_json("model_index.json", unet=["diffusers", "UNet2DModel"]),
            "is for LocalUNet2DModel, not for UNet2D",
        ),
        (change_json("model_index.json", pixel_unshuffle="2"), "`pixel_unshuffle` must be a whole number"),
        (change_json("model_index.json", min_size=0), "`min_size` must be a whole number above 0"),
        (change_json("model_index.json", tile_size=[]), r"`tile_size` is \[\]"),
        (write("unet/config.json", b"[]"), "unet/config.json is damaged"),
        (write("unet/config.json", b"\xff"), "unet/config.json is damaged"),
        (write("unet/config.json", b"{}"), "unet/config.json is for None, not for LocalUNet2DModel"),
        (change_json("unet/config.json", in_channels="12"), "its `in_channels` is '12'"),
        (change_json("unet/config.json", layers_per_block=10**9), "more than any network has"),
        (change_json("unet/config.json", block_out_channels=[10**7] * 2), "does not fit config.json"),
        (change_json("unet/config.json", block_out_channels=["a", 16]), "does not describe a working"),
        (write("scheduler/scheduler_config.json", b"null"), "scheduler_config.json is damaged"),
        (change_json("scheduler/scheduler_config.json", clip_sample="no"), "its `clip_sample` is 'no'"),
        (change_json("scheduler/scheduler_config.json", num_train_timesteps=10**12), "must be from 1 to 1,000,000"),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "there is no file scheduler_config"),
    ],
)
def test_files_that_do_not_fit_are_refused(pipe, tmp_path, change, message):
    pipe.save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        RealDenoisePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (change_weights(lambda tensors, name: tensors.pop(name)), "the tensor .* is missing"),
        (lambda folder: next((folder / "unet").glob("*00002-of*")).unlink(), "there is no file .*00002-of"),
        (write(SHARDS, b'{"weight_map": {"a": 5}}'), "does not say which file holds which tensor"),
        (write(SHARDS, b'{"weight_map": {"a": "../../b.safetensors"}}'), "there is no file .*unet/b.safetensors"),
    ],
)
def test_shards_that_do_not_fit_are_refused(pipe, tmp_path, change, message):
    pipe.save_pretrained(tmp_path, max_shard_size="10KB")
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        RealDenoisePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("tensors", [[1], {"a": None}, {"conv_in.weight": torch.ones(8, 12, 3, 3)}])
def test_pickled_weights_that_do_not_fit_are_refused(pipe, tmp_path, tensors):
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    torch.save(tensors, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.bin is (damaged|not complete: the tensor conv_in.bias)"):
        RealDenoisePipeline.from_pretrained(tmp_path)


FORMS = [{}, {"max_shard_size": "10KB"}, {"safe_serialization": False}]
FORMS.append(FORMS[1] | FORMS[2])


@pytest.mark.parametrize("before", FORMS)
@pytest.mark.parametrize("after", FORMS)
def test_what_is_saved_is_what_loads(tmp_path, before, after):
    old, new = make_pipeline(), make_pipeline()
    old.save_pretrained(tmp_path, variant="fp16")
    old.save_pretrained(tmp_path, **before)
    new.save_pretrained(tmp_path, **after)
    loaded = RealDenoisePipeline.from_pretrained(tmp_path).unet.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in new.unet.state_dict().items())
    variant = RealDenoisePipeline.from_pretrained(tmp_path, variant="fp16").unet.state_dict()
    assert all(torch.equal(tensor, variant[name]) for name, tensor in old.unet.state_dict().items())
