"""Export one step of a pipeline as a file that ONNX Runtime or OpenVINO runs, without PyTorch or this package."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import onnxruntime
import onnxscript  # noqa: F401 - which torch.onnx uses
import openvino
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import nn


FILES = {"onnx": ["model.onnx"], "openvino": ["openvino_model.xml", "openvino_model.bin"]}  # named as on the Hub
TOLERANCES = {"float32": 1e-4, "float16": 0.5 / 255}  # of the output, in [0, 1]


class Exported(NamedTuple):
    """What [`export_pipeline`] wrote: the file, the metadata in it, and how far its output is from PyTorch's."""

    file: Path
    metadata: dict[str, int]
    difference: float


class OneStepDenoiser(nn.Module):
    """
    A single step of a pipeline as a network from noisy to denoised images.

    Both are `[B, C, H, W]` float32 in [0, 1]; H and W are multiples of `pipe.spatial_multiple`.
    """

    def __init__(self, pipe: DiffusionPipeline):
        super().__init__()
        self.unet, self.scheduler, self.pixel_unshuffle = pipe.unet, pipe.scheduler, pipe.config.pixel_unshuffle
        self.channels = pipe.unet.config.in_channels // pipe.config.pixel_unshuffle**2
        self.multiple = pipe.spatial_multiple

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        T = float(self.scheduler.config.num_train_timesteps)
        x_T = 2 * noisy - 1
        folded = F.pixel_unshuffle(x_T, self.pixel_unshuffle).to(self.unet.dtype)
        model_output = F.pixel_shuffle(self.unet(folded, torch.tensor(T)).sample.float(), self.pixel_unshuffle)
        x_0 = self.scheduler.get_pred_original_sample(model_output, T, x_T)
        return ((x_0 + 1) / 2).clamp(0, 1)


@torch.no_grad()
def export_pipeline(
    pipe: DiffusionPipeline,
    folder: str | Path,
    format: Literal["onnx", "openvino"] = "onnx",
    dtype: Literal["float32", "float16"] = "float32",
) -> Exported:
    """
    Write one step of a pipeline to a folder, once its output there was compared with PyTorch's.

    The network in the file takes `noisy`, float32 of shape `[1, C, H, W]` in [0, 1], and returns `denoised`, the same.
    The metadata in the file are `multiple`, of which H and W must be multiples, the pipeline's `min_size`, and
    `tile_overlap`, the pixels that tiles of an image must share to give what the whole image gives. For a network that
    sees the whole image, which no overlap does, it is that of the pipeline.

    Args:
        pipe ([`RealDenoisePipeline`]): In float32 and on the CPU.
        folder: Is made if it does not exist. The file is `model.onnx`, or `openvino_model.xml` with its `.bin`.
        format (`"onnx"` or `"openvino"`, defaults to `"onnx"`): What is written.
        dtype (`"float32"` or `"float16"`, defaults to `"float32"`):
            Precision of the network; float16 halves the file. Layers that write the image stay in float32.

    Raises:
        `FileExistsError`: If the file exists.
        `ValueError`: If PyTorch cannot export the network.
        `RuntimeError`: If the output differs from PyTorch's by more than [`TOLERANCES`]. Nothing is written.
    """
    folder = Path(folder)
    names = FILES[format]
    for name in names:
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists already; delete it or choose another folder.")

    denoiser = OneStepDenoiser(pipe)
    metadata = {name: pipe.config[name] for name in ("min_size", "tile_overlap")} | {"multiple": denoiser.multiple}
    if pipe.receptive_field is not None:
        metadata["tile_overlap"] = 2 * -(-pipe.receptive_field // denoiser.multiple) * denoiser.multiple
    program = _to_onnx(denoiser if dtype == "float32" else copy.deepcopy(denoiser).half())

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as draft:
        file = Path(draft, names[0])
        _save(program, file, metadata)
        run = load_exported(file)
        difference = float(torch.stack([(run(x) - denoiser(x)).abs().max() for x in _noisy_images(denoiser)]).max())
        if not difference <= TOLERANCES[dtype]:  # NaN neither
            raise RuntimeError(
                f"The exported network gives another result than PyTorch, by up to {difference:.2g} where white is 1 "
                f"and {TOLERANCES[dtype]:.2g} is allowed; nothing was written."
            )
        for name in reversed(names):  # the weights first
            Path(draft, name).replace(folder / name)
    return Exported(folder / names[0], metadata, difference)


def load_exported(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that runs an exported network on the CPU, in the precision that it was exported in."""
    if file.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda noisy: torch.from_numpy(session.run(None, {"noisy": noisy.numpy()})[0])
    # by default it computes in bfloat16 on processors that can
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda noisy: torch.from_numpy(model({"noisy": noisy.numpy()})["denoised"])


def _to_onnx(denoiser: OneStepDenoiser) -> torch.onnx.ONNXProgram:
    example = torch.zeros(1, denoiser.channels, 4 * denoiser.multiple, 6 * denoiser.multiple)
    sides = {2: denoiser.multiple * torch.export.Dim("rows"), 3: denoiser.multiple * torch.export.Dim("columns")}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # or it names libraries that are not installed
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.export(denoiser, (example,), dynamic_shapes=(sides,))
            onnx = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=(sides,),
                input_names=["noisy"],
                output_names=["denoised"],
                verbose=False,
            )
    except Exception as error:  # of any class, raised anywhere in the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"PyTorch cannot export this {type(denoiser.unet).__name__}: {reason}") from error
    finally:
        logger.setLevel(level)
    assert onnx is not None  # as with dynamo=True
    return onnx


def _save(program: torch.onnx.ONNXProgram, file: Path, metadata: dict[str, int]):
    program.model.metadata_props.update({name: str(value) for name, value in metadata.items()})
    onnx_file = file.with_suffix(".onnx")
    program.save(onnx_file, external_data=False)
    if file.suffix == ".xml":
        model = openvino.Core().read_model(onnx_file)
        for name, value in metadata.items():
            model.set_rt_info(str(value), [name])
        openvino.save_model(model, file, compress_to_fp16=False)


def _noisy_images(denoiser: OneStepDenoiser) -> list[torch.Tensor]:
    """Make images of several sizes, none of them the size that the network was exported with."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for rows, columns in [(9, 7), (5, 8)]:
        height, width = rows * denoiser.multiple, columns * denoiser.multiple
        clean = torch.linspace(0, 1, height * width).view(1, 1, height, width).expand(1, denoiser.channels, -1, -1)
        images.append((clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1))
    return images
