import pytest
import torch
from conftest import make_unet
from diffusers import UNet2DModel
from diffusers.utils import logging
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gdd_diffusers import LocalUNet2DModel


CONVOLUTIONAL = dict(
    block_out_channels=(8, 8, 8),
    down_block_types=("DownBlock2D",) * 3,
    up_block_types=("UpBlock2D",) * 3,
    norm_num_groups=8,
    add_attention=False,
)


@pytest.mark.parametrize(
    "levels, layers, mid_block_type",
    [
        (3, 1, "UNetMidBlock2D"),
        (2, 1, "UNetMidBlock2D"),
        (1, 1, "UNetMidBlock2D"),
        (2, 2, "UNetMidBlock2D"),
        (3, 1, None),
    ],
)
def test_receptive_field_is_where_the_gradient_ends(levels, layers, mid_block_type):
    unet = LocalUNet2DModel(
        block_out_channels=(8,) * levels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        layers_per_block=layers,
        mid_block_type=mid_block_type,
        norm_num_groups=8,
        add_attention=False,
    ).double()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.3)
    reached = 0
    for position in range(unet.spatial_multiple):
        column = 128 + position
        x = torch.randn(1, 3, 2 * unet.spatial_multiple, 256, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(unet(x, torch.tensor(500.0)).sample[0, :, 1, column].sum(), x)
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        reached = max(reached, column - int(columns[0]), int(columns[-1]) - column)
    assert unet.receptive_field == reached


def test_far_pixels_change_nothing():
    unet = make_unet()
    radius = unet.receptive_field
    x = torch.rand(1, 3, 16, 4 * radius // 4 * 4 + 8)
    y = x.clone()
    y[..., -4:] = 100.0
    with torch.no_grad():
        a, b = (unet(z, torch.tensor(1000.0)).sample for z in (x, y))
    assert torch.equal(a[..., : -4 - radius], b[..., : -4 - radius])
    assert not torch.equal(a, b)


def test_starts_as_a_sum_of_identities():
    unet = LocalUNet2DModel(**CONVOLUTIONAL)
    assert not any(isinstance(module, nn.GroupNorm) for module in unet.modules())
    resnet = unet.mid_block.resnets[0]
    x, temb = torch.randn(1, 8, 4, 4), torch.randn(1, 32)
    assert torch.equal(resnet(x, temb), x)


def test_configuration_and_parameter_names_are_those_of_unet2d():
    local, plain = LocalUNet2DModel(**CONVOLUTIONAL), UNet2DModel(**CONVOLUTIONAL)
    assert {k: v for k, v in local.config.items() if not k.startswith("_")} == {
        k: v for k, v in plain.config.items() if not k.startswith("_")
    }
    names = {name for name in plain.state_dict() if "norm" not in name}
    assert set(local.state_dict()) == names


@pytest.mark.parametrize(
    "change",
    [
        {"add_attention": True},
        {"down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")},
        {"up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")},
        {"downsample_type": "resnet", "down_block_types": ("ResnetDownsampleBlock2D",) * 3},
        {"downsample_padding": 0},
        {"mid_block_scale_factor": 2},
        {"resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_type": "fourier"},
        {"center_input_sample": True},
    ],
)
def test_what_looks_beyond_a_neighbourhood_is_refused(change):
    with pytest.raises(ValueError, match="convolutions only"):
        LocalUNet2DModel(**{**CONVOLUTIONAL, **change})


@pytest.mark.parametrize("height", [4, 20, 64])
@pytest.mark.parametrize("change", [{}, {"layers_per_block": 4}, {"mid_block_type": None}, {"act_fn": "gelu"}])
def test_bands_equal_the_whole_and_compute_no_row_twice(change, height):
    unet = LocalUNet2DModel(**{**CONVOLUTIONAL, **change}).eval()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    image, timestep = torch.randn(2, 3, 100, 12), torch.tensor(500.0)
    convolutions = []
    with torch.no_grad():
        for function in (
            lambda: unet(image, timestep).sample,
            lambda: torch.cat(list(unet.forward_bands(image.split(height, -2), timestep)), -2),
        ):
            with FlopCounterMode(display=False) as counter:
                result = function()
            convolutions.append((counter.get_flop_counts()["Global"][torch.ops.aten.convolution], result))
    (whole_flops, whole), (bands_flops, in_bands) = convolutions
    assert_close(in_bands, whole, atol=1e-4, rtol=1e-4)
    assert bands_flops == whole_flops


def test_save_and_load_give_the_same_bits(tmp_path):
    unet = make_unet()
    unet.save_pretrained(tmp_path)
    weights = LocalUNet2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_writes_the_image_in_float32(tmp_path, dtype):
    unet = make_unet()
    unet.save_pretrained(tmp_path)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = unet(x, torch.tensor(1000.0)).sample
        loaded = LocalUNet2DModel.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.dtype == dtype and loaded.conv_out.weight.dtype == torch.float32
        for half in (loaded, unet.to(dtype)):
            result = half(x.to(dtype), torch.tensor(1000.0)).sample
            assert result.dtype == torch.float32
            assert_close(result, expected, atol=0.05, rtol=0.05)


def test_autocast_leaves_the_last_convolution_in_float32():
    unet = make_unet()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert unet(torch.rand(1, 3, 16, 16), torch.tensor(1000.0)).sample.dtype == torch.float32


def test_converted_it_keeps_the_weights_that_write_the_image_and_warns_of_nothing(caplog):
    unet = make_unet()
    before = unet.conv_out.weight.clone()
    logging.get_logger("diffusers").addHandler(caplog.handler)
    try:
        unet.to(torch.bfloat16).to("cpu", dtype=torch.float16).half()
    finally:
        logging.get_logger("diffusers").removeHandler(caplog.handler)
    assert caplog.text == ""
    assert unet.dtype == unet.conv_in.weight.dtype == torch.float16
    assert torch.equal(unet.conv_out.weight, before) and unet.conv_out.weight.dtype == torch.float32
    assert unet.double().conv_out.weight.dtype == torch.float32
    assert unet.to("meta").conv_out.weight.is_meta
