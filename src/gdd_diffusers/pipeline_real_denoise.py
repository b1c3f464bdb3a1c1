"""The pipeline, which walks from a noisy photograph to the clean image."""

import copy
import math
import os
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput

from .hub.loading import check_folder, download_model, find_components, weight_files
from .image_processor import postprocess, prepare_latents, preprocess, read_latents, to_output_type, white
from .memory import keep_freed_memory
from .scheduling_interpolation import InterpolationScheduler
from .tiling import apply_in_bands_, apply_tiled_, count_tiles, plan_bands
from .unet_local import LocalUNet2DModel
from .walks import Walks


BUNDLED = {folder.name: folder for folder in Path(__file__).parent.glob("pretrained/*")}  # come with the package
DEFAULT_MODEL = "gdd-small"
COMPONENT_CLASSES = (UNet2DModel, LocalUNet2DModel, InterpolationScheduler)


class RealDenoisePipeline(DiffusionPipeline):
    r"""
    Removes noise from real photographs by general denoising diffusion ([paper](https://arxiv.org/abs/2305.04457)).

    The walk begins at the photograph itself, x_T, and follows the line x_t = (1 - t/T) x_0 + (t/T) x_T back to the
    clean image. Images come back as they came: size, count, order, grey or colour, alpha. Those larger than a tile
    are denoised in tiles, so that memory is bounded by the image itself, which stays in main memory unless a CUDA
    device has room for it. With a [`LocalUNet2DModel`] the tiles leave no trace.

    Args:
        unet ([`~diffusers.UNet2DModel`]): Predicts x_0 from x_t. A [`LocalUNet2DModel`] can be tiled exactly.
        scheduler ([`InterpolationScheduler`]): Walks from x_T to x_0.
        default_num_inference_steps (`int`, defaults to 1): Number of steps if a call does not give one.
        pixel_unshuffle (`int`, defaults to 1):
            The network works on pixels folded into channels by this factor; 2 makes 12 channels out of 3.
        tile_size (`int`, *optional*, defaults to 512): Largest side of a tile in pixels; `None` for no tiles.
        tile_overlap (`int`, defaults to 48):
            Pixels that neighbouring tiles share, at most half of `tile_size`. Half of it is discarded at each border.
        min_size (`int`, defaults to 1):
            Shorter sides are padded by reflection to so many pixels, such as those of the crops that the network was
            trained on: it need not know smaller images. The padding is cut off again.

    Example:
        ```py
        >>> from PIL import Image
        >>> from gdd_diffusers import RealDenoisePipeline

        >>> pipe = RealDenoisePipeline.from_pretrained()  # the bundled weights
        >>> image = Image.effect_noise((64, 48), 25).convert("RGB")
        >>> pipe(image).images[0].size
        (64, 48)

        ```
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: InterpolationScheduler,
        default_num_inference_steps: int = 1,
        pixel_unshuffle: int = 1,
        tile_size: int | None = 512,
        tile_overlap: int = 48,
        min_size: int = 1,
    ):
        super().__init__()
        check_components(unet, scheduler)
        numbers = {"default_num_inference_steps": default_num_inference_steps, "pixel_unshuffle": pixel_unshuffle}
        numbers |= {"min_size": min_size, "tile_overlap": tile_overlap}
        numbers |= {} if tile_size is None else {"tile_size": tile_size}
        for name, number in numbers.items():
            if not isinstance(number, int) or number < 1 and not name.startswith("tile"):
                raise ValueError(f"`{name}` must be a whole number above 0, not {number!r}.")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            pixel_unshuffle=pixel_unshuffle,
            tile_size=None,
            tile_overlap=tile_overlap,
            min_size=min_size,
        )
        grey, colour = pixel_unshuffle**2, 3 * pixel_unshuffle**2
        if unet.config.in_channels not in (grey, colour) or unet.config.out_channels != unet.config.in_channels:
            raise ValueError(
                f"The network has {unet.config.in_channels} input and {unet.config.out_channels} output channels; it "
                f"needs {colour} for colour or {grey} for grey, of both, with `pixel_unshuffle={pixel_unshuffle}`."
            )
        if tile_size is not None:
            self.enable_tiling(tile_size, tile_overlap)
        self._walks = Walks()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs):
        """
        Load a pipeline as [`~diffusers.DiffusionPipeline.from_pretrained`] does, from a folder or a Hub repo, or from
        the weights that come with the package: `"gdd-small"`, the default, or `"gdd-fast"`.

        Raises:
            `ValueError` or `OSError`: If a file is missing or damaged, or weights do not fit the configuration.
        """
        folder = str(pretrained_model_name_or_path or DEFAULT_MODEL)
        if not pretrained_model_name_or_path or not os.path.isdir(folder):
            folder = str(BUNDLED.get(folder, folder))
        if os.path.isdir(folder):
            weights = check_folder(folder, *COMPONENT_CLASSES, **kwargs)
            if weights and ".bin" in weights.name:
                kwargs["use_safetensors"] = False  # or diffusers does not find shards
        return super().from_pretrained(folder, **kwargs)

    @staticmethod
    def download(repo_id: str, **kwargs) -> str:
        """Download a model from the Hub as [`~hub.loading.download_model`] does, and check that its files fit."""
        folder = download_model(repo_id, **kwargs)
        check_folder(folder, *COMPONENT_CLASSES, **kwargs)
        return folder

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Read `model_index.json`; components get the classes that this module uses, wherever they were saved from."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        index["_class_name"] = cls.__name__
        for name, (module, found) in find_components(index, pretrained_model_name_or_path).items():
            index[name] = [module if module == "diffusers" else f"{__package__}.{module}", found]
        return config

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """Create a pipeline from the components of another, as [`~diffusers.DiffusionPipeline.from_pipe`] does."""
        # diffusers takes over a model only if its class is exactly the annotated one, unless it is passed
        if "unet" in pipeline.components:
            kwargs.setdefault("unet", pipeline.components["unet"])
        return super().from_pipe(pipeline, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs):
        """
        Save as [`~diffusers.DiffusionPipeline.save_pretrained`] does. `push_to_hub=True` also does what
        [`~.push_to_hub`] does, with its arguments; `repo_id` defaults to the name of the folder. Weights of another
        form that were in the folder, such as shards, are deleted: what is saved is what loads.
        """
        names = ("repo_id", "commit_message", "private", "token", "create_pr", "overwrite_card")
        hub_kwargs = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        given = dict(zip(("safe_serialization", "variant"), args, strict=False)) | kwargs
        files = weight_files(save_directory, given.get("variant"))
        in_form = files[:2] if given.get("safe_serialization", True) else files[2:]
        has_shards = any(files[0].parent.glob(f"{files[0].stem}-*-of-*"))  # diffusers deletes older ones
        for file in files:
            if file != in_form[has_shards]:
                file.unlink(missing_ok=True)
        if push_to_hub:
            hub_kwargs.setdefault("repo_id", Path(save_directory).resolve().name)
            self.push_to_hub(**hub_kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Publish the pipeline as [`~gdd_diffusers.hub.publish`] does, as a repo that anyone can load with this package
        or without it. `repo_id` is `ORG/NAME`, or `NAME` for a repo of one's own.
        """
        from . import hub

        if not hasattr(hub, "publish"):  # this file was loaded from a repo
            raise ImportError("Publishing needs the package gdd-diffusers itself, not only its code in a repo.")
        return hub.publish(self, hub.publishing.add_namespace(repo_id, kwargs.get("token")), **kwargs)

    def enable_tiling(self, tile_size: int = 512, tile_overlap: int | None = None):
        """
        Denoise images larger than `tile_size` in tiles. Saved with the pipeline.

        With an overlap, by default that of the pipeline, from twice [`~.receptive_field`] on, the result of one step
        is that of the whole image to float rounding.

        Raises:
            `ValueError`: If the tile is smaller than the network allows, or than twice the overlap.
        """
        if tile_overlap is None:
            tile_overlap = self.config.tile_overlap
        multiple = self.spatial_multiple  # of which tiles and overlaps are made
        smallest = max(2 * -(-tile_overlap // multiple), 1) * multiple
        if tile_overlap < 0 or tile_size < smallest:
            raise ValueError(
                f"`tile_size` must be at least {smallest} for this network and a `tile_overlap` of {tile_overlap}, "
                f"not {tile_size}."
            )
        self.register_to_config(tile_size=tile_size, tile_overlap=tile_overlap)

    def disable_tiling(self):
        """Denoise every image whole, whatever its size. Saved with the pipeline."""
        self.register_to_config(tile_size=None, tile_overlap=self.config.tile_overlap)

    @property
    def spatial_multiple(self) -> int:
        """Sides of tiles and padded images are multiples of this, in pixels."""
        return self.config.pixel_unshuffle * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def receptive_field(self) -> int | None:
        """Pixels that an output pixel depends on to each side, `None` for a network that sees the whole image."""
        # duck-typed: a pipeline loaded from a repo's own code has another copy of LocalUNet2DModel
        receptive_field = getattr(self.unet, "receptive_field", None)
        return None if receptive_field is None else (receptive_field + 1) * self.config.pixel_unshuffle - 1

    def _padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image once it is padded to what the network can take and knows."""
        multiple, min_size = self.spatial_multiple, self.config.min_size
        height, width = (-(-max(side, min_size) // multiple) * multiple for side in (height, width))
        return height, width

    @property
    def _in_bands(self) -> bool:
        # not if something wraps the forward of the network or of a layer, such as torch.compile or offloading
        own_forward = getattr(self.unet.forward, "__func__", None) is UNet2DModel.forward
        is_wrapped = any("forward" in vars(module) for module in self.unet.modules())
        return hasattr(self.unet, "forward_bands") and own_forward and not is_wrapped

    @property
    def num_timesteps(self) -> int | None:
        return (self._walks.own or self._walks.last).num_timesteps

    @property
    def interrupt(self) -> bool:
        return (self._walks.own or self._walks.last).interrupt

    @interrupt.setter
    def interrupt(self, value: bool):
        self._walks.set_interrupt(value)

    _interrupt = interrupt  # what callbacks for diffusers' own pipelines set

    def check_inputs(self, output_type, callback_on_step_end_tensor_inputs):
        check_components(self.unet, self.scheduler)  # which can be assigned after the constructor has checked them
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', not {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may name {self._callback_tensor_inputs}, not {sorted(unknown)}."
            )

    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        num_inference_steps: int | None = None,
        strength: float = 1.0,
        output_type: str = "pil",
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """
        Denoise images.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of these):
                PIL in any mode; numpy `[H, W]`, `[H, W, C]` or `[N, H, W, C]`, torch `[H, W]`, `[C, H, W]` or
                `[N, C, H, W]`: uint8, uint16 or float in [0, 1]. Colours are sRGB. Images of a list may differ in
                size; neighbours of the same size are denoised as one batch.
            num_inference_steps (`int`, *optional*): The model's `default_num_inference_steps` if not given.
            strength (`float`, defaults to 1.0):
                How far to walk: 0 returns the input, 1 goes all the way to x_0, 0.5 stops half-way along the line.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` is a list of PIL images; `"np"` float arrays `[N, H, W, C]` in [0, 1]; `"pt"` float tensors
                `[N, C, H, W]` in [0, 1] on the CPU, both lists of single images where sizes or channels differ;
                `"latent"` is the end of the walk in [-1, 1], in the network's channels.
            generator (`torch.Generator`, *optional*): Accepted for interchangeability; nothing is drawn at random.
            return_dict (`bool`, defaults to `True`): Return an [`~diffusers.ImagePipelineOutput`], or a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step with the pipeline, the step's number, the timestep and a dictionary of
                `callback_on_step_end_tensor_inputs`, which it may return with other values. Setting
                `pipe._interrupt = True` stops the walk, at the latest after the next batch of tiles. The next step
                overwrites the latents, so clone what is to be kept.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*):
                Only `["latents"]`, the default: x_t in [-1, 1] with sides padded to what the network can take, in main
                memory or on the CUDA device.

        Raises:
            `ValueError`: If an argument is out of range, `image` is not an image, or the network returns NaN.
        """
        # 1. Check inputs
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if callback_on_step_end_tensor_inputs is None:
            callback_on_step_end_tensor_inputs = ["latents"]
        self.check_inputs(output_type, callback_on_step_end_tensor_inputs)

        # 2. Plan the walk, on a copy of the scheduler: calls from several threads are independent
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, strength=strength)
        num_timesteps = len(scheduler.timesteps)

        # 3. Convert images to tensors [C, H, W], and plan their tiles
        images = preprocess(image)
        sizes = [self._padded_size(*tensor.shape[-2:]) for tensor in images]
        tile_size = self.config.tile_size or 2 * (max(map(max, sizes)) + self.spatial_multiple)  # one for all
        device, dtype, factor = self._execution_device, self.unet.dtype, self.config.pixel_unshuffle
        free_bytes = free_gpu_memory(device)
        plan: dict[str, Any] = {"multiple": self.spatial_multiple}
        if self._in_bands:
            pixel_bytes = 64 * self.unet.config.block_out_channels[0] * dtype.itemsize // factor**2  # generously
            # small bands would not keep a GPU busy
            plan["num_pixels"] = max(tile_size**2 // dtype.itemsize, min(2**23, free_bytes * 3 // 4 // pixel_bytes))
            num_tiles = sum(-(-height // plan_bands(width, **plan)) for height, width in sizes)
        else:
            plan |= {"tile_size": tile_size, "overlap": self.config.tile_overlap if self.config.tile_size else 0}
            num_tiles = sum(count_tiles(*size, **plan) for size in sizes)

        # 4. Walk, one batch of images of equal size after another
        channels = self.unet.config.in_channels // factor**2
        outputs: list[torch.Tensor] = []
        progress_bar = self.progress_bar(total=num_tiles * num_timesteps)
        with self._walks.start(num_timesteps) as walk, progress_bar as bar, keep_freed_memory():

            def fold(tiles):
                bar.update(len(tiles))
                return F.pixel_unshuffle(tiles.to(device, dtype), factor).to(memory_format=torch.channels_last)

            def unfold(model_output):
                return F.pixel_shuffle(model_output.float(), factor)

            for (height, width), group in groupby(images, key=lambda tensor: tuple(tensor.shape[-2:])):
                batch = list(group)
                size = self._padded_size(height, width)
                num_bytes = 2 * 4 * channels * len(batch) * math.prod(size)  # of x_t and x_T in float32
                home = device if 8 * num_bytes <= free_bytes else torch.device("cpu")
                latents = prepare_latents(batch, channels, size, home)
                # x_T; in the first step it is still x_t, and a single step needs no copy of it
                noisy = latents.clone() if num_timesteps > 1 else latents

                for i, t in enumerate(scheduler.timesteps):

                    def predict(bands, t=t, home=home):
                        for model_output in self.unet.forward_bands(map(fold, bands), t.to(device)):
                            if walk.interrupt:
                                return
                            yield unfold(model_output).to(home)

                    def step(model_output, place, t=t, latents=latents, noisy=noisy):
                        return scheduler.step(model_output, t, latents[place], noisy[place]).prev_sample

                    def predict_and_step(tiles, places, t=t, noisy=noisy, home=home):
                        if walk.interrupt:
                            return tiles
                        model_output = unfold(self.unet(fold(tiles), t.to(device)).sample).to(home)
                        noisy_tiles = torch.cat([noisy[place] for place in places])
                        return scheduler.step(model_output, t, tiles, noisy_tiles).prev_sample

                    if self._in_bands:
                        apply_in_bands_(predict, step, latents, **plan)
                    else:
                        apply_tiled_(predict_and_step, latents, smooth=self.receptive_field is None, **plan)

                    if callback_on_step_end is not None:
                        callback_kwargs = {name: latents for name in callback_on_step_end_tensor_inputs}
                        latents = read_latents(callback_on_step_end(self, i, t, callback_kwargs), latents)
                    if walk.interrupt:
                        break

                if not torch.isfinite(latents.sum()):
                    raise ValueError("The network returned NaN or infinite pixels; try it in float32.")
                latents = latents[:, :, :height, :width]
                if output_type == "latent":
                    outputs += latents.cpu()
                elif num_timesteps == 0:  # strength 0 is the image itself, to the bit
                    outputs += [tensor.float() / white(tensor) for tensor in batch]
                else:
                    outputs += [postprocess(latent, tensor) for latent, tensor in zip(latents, batch, strict=True)]

        # 5. Return images of the kind that was asked for
        results = to_output_type(outputs, images, image, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (results,)
        return ImagePipelineOutput(images=results)


def check_components(unet: Any, scheduler: Any):
    """Raise a `ValueError` unless the pipeline can use these components."""
    if not isinstance(getattr(unet, "_orig_mod", unet), UNet2DModel):  # _orig_mod: of a compiled network
        raise ValueError(f"RealDenoisePipeline needs a UNet2DModel; `unet` is {type(unet).__name__}.")
    # by name: a pipeline loaded from a repo's own code has two copies of the class
    if InterpolationScheduler.__name__ not in [cls.__name__ for cls in type(scheduler).__mro__]:
        name = type(scheduler).__name__
        raise ValueError(f"RealDenoisePipeline needs an InterpolationScheduler; `scheduler` is {name}.")


def free_gpu_memory(device: torch.device) -> int:
    """Return the bytes that a CUDA device has free, with what torch keeps of freed tensors; 0 for other devices."""
    if device.type != "cuda":
        return 0
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
