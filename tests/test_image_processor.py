import io

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image
from torch.testing import assert_close

from gdd_diffusers.image_processor import pixels_to_tensor, preprocess, tensor_to_pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 7, 3), (2, 5, 7, 4)])
def test_pixels_survive_the_way_to_a_tensor_and_back(dtype, shape):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    tensor = pixels_to_tensor(pixels)
    assert tensor.dtype == torch.float32 and tensor.shape[-3:] == (shape[-1], 5, 7)
    assert np.array_equal(tensor_to_pixels(tensor, dtype), pixels)


def test_tensors_are_clipped_and_rounded_and_not_changed():
    tensor = torch.tensor([-0.5, 0.0, 0.5 / 255, 0.6 / 255, 1.0, 1.5]).reshape(1, 1, 6)
    before = tensor.clone()
    assert tensor_to_pixels(tensor)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]
    assert torch.equal(tensor, before)


# Transparency without an alpha channel: one colour that is transparent


@pytest.fixture(scope="module")
def keyed():
    """Returns an image of a mode whose first rows have the transparent colour, as read from a PNG file."""

    def make(mode):
        pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        key = {"RGB": (255, 0, 255), "L": 7, "1": 0, "I;16": 300}[mode]
        if mode == "I;16":
            pixels = pixels[..., 0] * np.uint16(257)
            pixels[:4] = key
            image = Image.fromarray(pixels)
        else:
            image = Image.fromarray(pixels).convert(mode)
            image.paste(key, (0, 0, 40, 4))
        file = io.BytesIO()
        image.save(file, "PNG", transparency=key)
        return Image.open(file)

    return make


@pytest.mark.parametrize("mode, expected", [("RGB", "RGBA"), ("L", "LA"), ("1", "LA"), ("I;16", "LA")])
def test_a_transparent_colour_stays_transparent(pipe, keyed, mode, expected):
    image = keyed(mode)
    assert image.mode == mode and "transparency" in image.info
    result = pipe(image).images[0]
    assert result.mode == expected and "transparency" not in result.info
    alpha = np.asarray(result)[..., -1]
    assert (alpha[:4] == 0).all() and (alpha[4:] == 255).any()
    if mode != "I;16":  # which PIL itself gets wrong
        assert np.array_equal(alpha, np.asarray(image.convert("RGBA"))[..., -1])


def test_a_transparent_colour_of_16_bits_is_found_in_the_8_bits_that_pil_reads():
    image = Image.fromarray(np.array([[[18, 86, 154], [0, 0, 0]]], np.uint8))
    image.info["transparency"] = (0x1234, 0x5678, 0x9ABC)
    (tensor,) = preprocess(image)
    assert tensor[3].tolist() == [[0, 255]]


@pytest.mark.parametrize("mode, transparency", [("RGBA", (1, 2, 3)), ("L", b"\x00\xff"), ("RGB", 5), ("F", 0)])
def test_transparency_that_names_no_colour_of_the_image_is_ignored(mode, transparency):
    image = Image.new(mode, (4, 3))
    image.info["transparency"] = transparency
    (tensor,) = preprocess(image)
    assert len(tensor) == len(image.getbands())


@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize("strength", [0, 1])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.uint16])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_on_a_gpu(monkeypatch, dtype, channels, strength, has_room):
    image = torch.rand(channels, 24, 40)
    if not dtype.is_floating_point:
        image = (image * torch.iinfo(dtype).max).to(dtype)
    pipe = make_pipeline()
    expected = pipe(image, strength=strength, output_type="pt").images
    on_gpu = pipe.to("cuda")(image, strength=strength, output_type="pt").images
    if not has_room:  # so the image stays in main memory
        monkeypatch.setattr("gdd_diffusers.pipeline_real_denoise.free_gpu_memory", lambda device: 0)
    for output_type in ("np", "pil", "latent", "pt"):
        result = pipe(image.to("cuda"), strength=strength, output_type=output_type).images
    assert_close(result, on_gpu, atol=1e-3, rtol=0)
    assert_close(result, expected, atol=1e-2, rtol=0)  # a GPU may round the factors of convolutions to 10 bits


def test_tensors_come_to_the_cpu():
    """On the meta device, where there are no values to copy, the attempt is an error."""
    with pytest.raises(NotImplementedError, match="meta tensor"):
        preprocess(torch.zeros(4, 24, 40, device="meta", dtype=torch.uint8))
