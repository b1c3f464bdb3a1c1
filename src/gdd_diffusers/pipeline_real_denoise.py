"""A noisy picture goes in, a clean one comes out."""

import copy
import hashlib
import importlib
import numbers
import os
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image

from .scheduling_interpolation import InterpolationScheduler
from .tiling import apply_tiled_, count_tiles
from .unet_local import LocalUNet2DModel


PipelineImageInput = (
    Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]
)

BUNDLED = Path(__file__).parent / "pretrained" / "gdd-small"  # the weights that come with the package

# the modes of PIL that pictures come back in, and those that others than RGB stand in for
PIL_MODES = ("L", "LA", "RGB", "RGBA")
PIL_CONVERSIONS = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}


class RealDenoisePipeline(DiffusionPipeline):
    r"""
    Removes noise from real photographs by general denoising diffusion ([paper](https://arxiv.org/abs/2305.04457)).

    The walk begins at the photograph itself, x_T, and follows the line x_t = (1 - t/T) x_0 + (t/T) x_T back to the
    clean picture. Pictures come back as they came: size, count, order, grey or colour, alpha. Those larger than a tile
    are denoised in tiles, so memory is bounded by the picture itself, which stays in main memory; with a
    [`LocalUNet2DModel`] the tiles cannot be seen.

    Args:
        unet ([`~diffusers.UNet2DModel`]):
            Guesses x_0 from x_t. Any UNet2DModel; [`LocalUNet2DModel`] can be tiled without a trace.
        scheduler ([`InterpolationScheduler`]):
            Walks from x_T to x_0.
        default_num_inference_steps (`int`, defaults to 1):
            Steps to take when a call does not say how many.
        pixel_unshuffle (`int`, defaults to 1):
            The network works on pixels folded into channels by this factor; 2 makes 12 channels out of 3.
        tile_size (`int`, *optional*, defaults to 512):
            Largest side of a tile in pixels. `None` denoises every picture whole.
        tile_overlap (`int`, defaults to 48):
            Pixels that neighbouring tiles share, at most half of `tile_size`. Half of it is discarded at each border.

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
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps, pixel_unshuffle=pixel_unshuffle
        )
        if unet.config.in_channels not in (pixel_unshuffle**2, 3 * pixel_unshuffle**2):
            raise ValueError(
                f"The network has {unet.config.in_channels} input channels; with `pixel_unshuffle={pixel_unshuffle}` "
                f"it needs {3 * pixel_unshuffle**2} for colour or {pixel_unshuffle**2} for grey."
            )
        if unet.config.out_channels != unet.config.in_channels:
            raise ValueError(
                f"The network has {unet.config.in_channels} input channels, and must have as many output channels, "
                f"but has {unet.config.out_channels}."
            )
        if tile_size is None:
            self.register_to_config(tile_size=None, tile_overlap=tile_overlap)
        else:
            self.enable_tiling(tile_size, tile_overlap)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs):
        """
        Loads a pipeline from a folder, a Hub repo, or, with no argument, the weights that come with the package.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`, *optional*): A folder or a repo id.
            **kwargs: As for [`~diffusers.DiffusionPipeline.from_pretrained`]: `revision`, `variant`, `dtype`...
        """
        if pretrained_model_name_or_path is None:
            pretrained_model_name_or_path = BUNDLED
        return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """
        Downloads what this class needs of a repo, which is no code, and checks the weights' sha256.

        diffusers refuses repos whose scheduler is not its own, or asks to trust the repo's copy of it. The package has
        these classes already.

        Raises:
            `OSError`: When the repo or its weights cannot be had, in one sentence that says why.
        """
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        variant = kwargs.get("variant")
        weights = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
        patterns = [f"unet/{weights}.safetensors", f"unet/{weights}-*.safetensors"]
        try:
            folder = snapshot_download(
                pretrained_model_name,
                allow_patterns=["README.md", "model_index.json", "*/*.json", *patterns],
                **{name: kwargs[name] for name in names if kwargs.get(name) is not None},
            )
        except Exception as error:  # the client raises errors of its own, and those of the HTTP library under it
            raise OSError(f"Could not get {pretrained_model_name} from the Hub: {hub_error_reason(error)}") from error
        files = [file for pattern in patterns for file in Path(folder).glob(pattern)]
        if not files and "unet" not in kwargs:
            raise OSError(
                f"{pretrained_model_name} has no weights {weights}.safetensors in its folder `unet`; pickled ones are "
                "never loaded from the Hub, since they can run any code."
            )
        for file in files:
            blob = file.resolve()  # the cache names large files by their sha256; the client compares sizes only
            if re.fullmatch("[0-9a-f]{64}", blob.name):
                with blob.open("rb") as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                if sha256 != blob.name:
                    blob.unlink()  # so that the next try downloads it anew
                    raise OSError(
                        f"The weights of {pretrained_model_name} arrived damaged: the sha256 of {file.name} is "
                        f"{sha256}, not {blob.name}. They were deleted; try again."
                    )
        return folder

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Reads `model_index.json`; classes of this package are taken from it, wherever they were saved from."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        index["_class_name"] = cls.__name__
        allowed = {"unet": [UNet2DModel, LocalUNet2DModel], "scheduler": [InterpolationScheduler]}
        for name, classes in allowed.items():
            found = index.get(name, (None, None))[1]
            if found not in [c.__name__ for c in classes]:
                raise ValueError(
                    f"{pretrained_model_name_or_path} is not a model for {cls.__name__}: its `{name}` is {found}, "
                    f"not {' or '.join(c.__name__ for c in classes)}."
                )
            own = next(c for c in classes if c.__name__ == found)
            index[name] = ["diffusers" if own is UNet2DModel else own.__module__, found]
        return config

    def save_pretrained(self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs):
        """
        Saves as [`~diffusers.DiffusionPipeline.save_pretrained`] does; `push_to_hub=True` also does what
        [`~.push_to_hub`] does, with its arguments.
        """
        names = ("repo_id", "commit_message", "private", "token", "create_pr", "overwrite_card")
        hub_kwargs = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if push_to_hub:
            self.push_to_hub(**hub_kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Publishes the pipeline as a repo that anyone can load, with this package or without it.

        Args:
            repo_id (`str`): `ORG/NAME`.
            **kwargs: As for [`~gdd_diffusers.hub.publish`]: `commit_message`, `private`, `token`, `create_pr`,
                `overwrite_card`.
        """
        try:  # an import statement would have diffusers ask for the package where it runs this file from a repo
            hub = importlib.import_module("gdd_diffusers.hub")
        except ImportError:
            raise ImportError(
                "Publishing needs the package gdd-diffusers itself, not only its code in a repo."
            ) from None
        return hub.publish(self, repo_id, **kwargs)

    def enable_tiling(self, tile_size: int = 512, tile_overlap: int | None = None):
        """
        Denoise pictures larger than `tile_size` in tiles. Saved with the pipeline.

        Args:
            tile_size (`int`, defaults to 512): Largest side of a tile in pixels.
            tile_overlap (`int`, *optional*): Pixels that neighbours share, at most half of `tile_size`; the pipeline's
                own if not given. From twice [`~.receptive_field`] on, the result of one step is that of the whole
                picture to float rounding.

        Raises:
            `ValueError`: When the tile is smaller than the network, or than twice the overlap.
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
        """Denoise every picture whole, whatever its size. Saved with the pipeline."""
        self.register_to_config(tile_size=None, tile_overlap=self.config.tile_overlap)

    @property
    def spatial_multiple(self) -> int:
        """Sides of tiles and padded images are multiples of this, in pixels."""
        return self.config.pixel_unshuffle * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def receptive_field(self) -> int | None:
        """Pixels that an output pixel sees to each side, `None` for a network that looks at the whole picture."""
        # asked by name: where a repo's code was loaded, its LocalUNet2DModel is another class than this file's
        receptive_field = getattr(self.unet, "receptive_field", None)
        return None if receptive_field is None else (receptive_field + 1) * self.config.pixel_unshuffle - 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def check_inputs(self, num_inference_steps, strength, output_type, callback_on_step_end_tensor_inputs):
        T = self.scheduler.config.num_train_timesteps
        if not isinstance(num_inference_steps, numbers.Integral) or not 1 <= num_inference_steps <= T:
            raise ValueError(f"`num_inference_steps` must be a whole number from 1 to {T}, not {num_inference_steps}.")
        if not 0 <= strength <= 1:
            raise ValueError(f"`strength` must be in [0, 1], not {strength}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', not {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may name {self._callback_tensor_inputs}, not {sorted(unknown)}."
            )

    def preprocess(self, image: PipelineImageInput) -> list[torch.Tensor]:
        """
        Turns pictures of any kind into a list of `[C, H, W]` tensors, C from 1 to 4, in their own precision.

        Raises:
            `ValueError`: When something is not a picture, or has values that a picture cannot have.
        """
        if isinstance(image, list | tuple):
            if len(image) == 0:
                raise ValueError("`image` is an empty list, pass at least one picture.")
            return [picture for item in image for picture in self.preprocess(item)]

        if isinstance(image, Image.Image):
            if image.mode.startswith("I"):  # 16 bits, which PIL keeps in modes of 16 and of 32
                array = np.asarray(image)
                if array.size and not 0 <= array.min() <= array.max() <= 65535:
                    raise ValueError(f"A picture of mode {image.mode!r} must have values from 0 to 65535.")
                array = array.astype(np.uint16)
            elif image.mode in ("F", *PIL_MODES):
                array = np.asarray(image)
            else:
                transparent = image.mode == "P" and "transparency" in image.info
                array = np.asarray(image.convert(PIL_CONVERSIONS.get(image.mode, "RGBA" if transparent else "RGB")))
            image = array

        if not isinstance(image, np.ndarray | torch.Tensor):
            raise ValueError(f"`image` must be PIL, numpy or torch pictures, or a list of these, not {type(image)}.")
        if image.ndim not in (2, 3, 4):
            raise ValueError(f"A picture has 2 to 4 dimensions, not {image.ndim}: shape {tuple(image.shape)}.")
        if isinstance(image, np.ndarray):
            dtype = image.dtype.newbyteorder("=")
            if dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
                raise ValueError(f"A numpy picture must be uint8, uint16 or float in [0, 1], not {dtype}.")
            # a copy where it must be one: read-only, backwards or big-endian memory is nothing that torch can share
            array = torch.from_numpy(np.require(image, dtype, ["C", "W"]))
            pictures = array[None] if image.ndim == 2 else array.movedim(-1, -3)
        else:
            pictures = image[None] if image.ndim == 2 else image
            if not pictures.is_floating_point() and pictures.dtype not in (torch.uint8, torch.uint16):
                raise ValueError(f"A torch picture must be float in [0, 1], uint8 or uint16, not {pictures.dtype}.")
        if pictures.numel() == 0:
            raise ValueError(f"`image` has no pixels: shape {tuple(image.shape)}.")
        if not 1 <= pictures.shape[-3] <= 4:
            raise ValueError(
                f"A picture has 1 to 4 channels (last in numpy, before the sides in torch), not {pictures.shape[-3]}: "
                f"shape {tuple(image.shape)}."
            )
        if pictures.is_floating_point():
            low, high = (float(value) for value in torch.aminmax(pictures))  # NaN if there is one anywhere
            if not np.isfinite([low, high]).all():
                raise ValueError("`image` has NaN or infinite pixels.")
            if low < -1e-3 or high > 1 + 1e-3:
                raise ValueError(f"Float pictures must be in [0, 1]; `image` is in [{low:g}, {high:g}].")
        return list(pictures) if pictures.ndim == 4 else [pictures]

    def prepare_latents(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        """x_T in [-1, 1] of pictures of one size, `[B, C, H, W]` with sides padded to what the network can take."""
        height, width = pictures[0].shape[-2:]
        channels = self.unet.config.in_channels // self.config.pixel_unshuffle**2
        padded_height, padded_width = (
            -(-side // self.spatial_multiple) * self.spatial_multiple for side in (height, width)
        )
        latents = torch.empty(len(pictures), channels, padded_height, padded_width)
        for latent, picture in zip(latents, pictures, strict=True):
            colours = picture[: colour_channels(picture)]
            if channels < len(colours):
                raise ValueError("This network denoises grey pictures only, but `image` is in colour.")
            latent[:, :height, :width] = colours  # a grey picture is broadcast to the network's channels
            latent.mul_(2 / white(picture)).sub_(1).clamp_(-1, 1)
        latents[:, :, :height, width:] = latents[:, :, :height, width - 1 : width]
        latents[:, :, height:] = latents[:, :, height - 1 : height]
        return latents

    def postprocess(self, picture: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The denoised colours `[3, H, W]` in [0, 1] as a picture `[C, H, W]` like `picture`, with its alpha."""
        if colour_channels(picture) < len(denoised):
            denoised = denoised.mean(0, keepdim=True)
        alpha = picture[colour_channels(picture) :]
        return torch.cat([denoised, alpha.float() / white(picture)]) if len(alpha) else denoised

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
        Denoises pictures.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of these):
                PIL in any mode; numpy `[H, W]`, `[H, W, C]` or `[N, H, W, C]`, torch `[H, W]`, `[C, H, W]` or
                `[N, C, H, W]`: uint8, uint16 or float in [0, 1]. Colours are sRGB. Pictures of a list may differ in
                size; neighbours of the same size are denoised as one batch.
            num_inference_steps (`int`, *optional*):
                Steps from the photograph to the clean picture; the model's `default_num_inference_steps` if not given.
            strength (`float`, defaults to 1.0):
                How far to walk: 0 returns the input, 1 goes all the way to x_0, 0.5 stops half-way along the line.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` is a list of PIL pictures; `"np"` float arrays `[N, H, W, C]` in [0, 1]; `"pt"` float tensors
                `[N, C, H, W]` in [0, 1], both lists of single pictures where sizes or channels differ; `"latent"` is
                the end of the walk in [-1, 1], in the network's channels.
            generator (`torch.Generator`, *optional*):
                Accepted for interchangeability; nothing is drawn at random.
            return_dict (`bool`, defaults to `True`):
                Whether to return an [`~diffusers.ImagePipelineOutput`] or a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step with the pipeline, the step's number, the timestep and a dictionary of
                `callback_on_step_end_tensor_inputs`. Setting `pipe._interrupt = True` stops the walk, at the latest
                after the next batch of tiles. The next step overwrites the latents, so clone what is to be kept.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*):
                Only `["latents"]`, the default: x_t in [-1, 1] with sides padded to what the network can take.

        Raises:
            `ValueError`: When an argument is out of range, `image` is not a picture, or the network returns NaN.
        """
        # 1. Check inputs
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if callback_on_step_end_tensor_inputs is None:
            callback_on_step_end_tensor_inputs = ["latents"]
        self.check_inputs(num_inference_steps, strength, output_type, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        sources = image if isinstance(image, list | tuple) else [image]
        pictures = self.preprocess(image)  # each [C, H, W]

        # 2. Plan the walk; the call's own copy of the scheduler keeps calls from several threads apart
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, strength=strength)
        # `num_timesteps` is what callbacks ask for; here it is a local variable, for the same reason
        num_timesteps = self._num_timesteps = len(scheduler.timesteps)

        # 3. Plan the tiles
        batches = [list(batch) for _, batch in groupby(pictures, key=lambda picture: picture.shape[-2:])]
        longest = max(max(picture.shape[-2:]) for picture in pictures)
        plan = {
            "tile_size": self.config.tile_size or longest + self.spatial_multiple,
            "overlap": self.config.tile_overlap if self.config.tile_size else 0,
            "multiple": self.spatial_multiple,
        }
        tiles = sum(
            count_tiles(
                *(-(-side // self.spatial_multiple) * self.spatial_multiple for side in picture.shape[-2:]), **plan
            )
            for picture in pictures
        )

        # 4. Walk, one batch of equal sizes after another
        device, dtype, factor = self._execution_device, self.unet.dtype, self.config.pixel_unshuffle
        outputs = []
        with self.progress_bar(total=tiles * num_timesteps) as progress_bar:
            for batch in batches:
                height, width = batch[0].shape[-2:]
                latents = self.prepare_latents(batch)  # [B, C, H padded, W padded], in main memory
                # x_T; in the first step it is still x_t, and the only step needs no copy of it
                noisy = latents.clone() if num_timesteps > 1 else latents

                for i, t in enumerate(scheduler.timesteps):

                    def step(tiles, places, t=t, noisy=noisy):
                        if self.interrupt:
                            return tiles
                        model_input = F.pixel_unshuffle(tiles, factor).to(device, dtype)
                        model_output = self.unet(model_input, t.to(device)).sample
                        model_output = F.pixel_shuffle(model_output.to("cpu", torch.float32), factor)
                        noisy_tiles = torch.cat([noisy[place] for place in places])
                        progress_bar.update(len(places))
                        return scheduler.step(model_output, t, tiles, noisy_tiles).prev_sample

                    apply_tiled_(step, latents, smooth=self.receptive_field is None, **plan)

                    if callback_on_step_end is not None:
                        callback_kwargs = {}
                        for name in callback_on_step_end_tensor_inputs:
                            callback_kwargs[name] = locals()[name]
                        callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                        latents = callback_outputs.pop("latents", latents)
                    if self.interrupt:
                        break

                if not torch.isfinite(latents.sum()):
                    raise ValueError("The network returned NaN or infinite pixels; try it in float32.")
                latents = latents[:, :, :height, :width]
                if output_type == "latent":
                    outputs += list(latents)
                elif num_timesteps == 0:
                    # strength 0 is the picture itself, to the bit
                    outputs += [picture.float() / white(picture) for picture in batch]
                else:
                    latents = latents.add_(1).mul_(0.5).clamp_(0, 1)
                    outputs += [self.postprocess(picture, x) for picture, x in zip(batch, latents, strict=True)]

        # 5. Give back what came in
        if output_type == "pil":
            images = [self.to_pil(picture, output) for picture, output in zip(pictures, outputs, strict=True)]
            if all(isinstance(source, Image.Image) for source in sources):
                for source, result in zip(sources, images, strict=True):
                    kept = {"exif", "dpi"}
                    if source.mode not in ("CMYK", "YCbCr", "LAB", "HSV"):  # whose profile does not describe RGB
                        kept.add("icc_profile")
                    result.info.update({k: v for k, v in source.info.items() if k in kept})
        elif output_type == "np":
            images = stack([output.movedim(0, -1).numpy() for output in outputs], np.stack)
        else:
            images = stack(outputs, torch.stack)

        # Offload all models
        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)

    @staticmethod
    def to_pil(picture: torch.Tensor, output: torch.Tensor) -> Image.Image:
        """The result `[C, H, W]` in [0, 1] as PIL: 16 bits for grey pictures of 16 bits, else 8, all that PIL has."""
        array = output.movedim(0, -1).numpy()
        if picture.dtype == torch.uint16 and len(output) == 1:
            return Image.fromarray((array[..., 0] * 65535).round().astype(np.uint16))
        array = (array * 255).round().astype(np.uint8)
        return Image.fromarray(array[..., 0] if len(output) == 1 else array)


def colour_channels(picture: torch.Tensor) -> int:
    """1 for grey and grey with alpha, 3 for RGB and RGB with alpha."""
    return 1 if len(picture) < 3 else 3


def white(picture: torch.Tensor) -> float:
    """The value of white in a picture's precision."""
    return float(torch.iinfo(picture.dtype).max) if not picture.is_floating_point() else 1.0


def stack(pictures: list, function: Callable):
    """One array where all have one shape, else the list; a single picture is not copied."""
    if len(pictures) == 1:
        return pictures[0][None]
    return function(pictures) if len({picture.shape for picture in pictures}) == 1 else pictures


def hub_error_reason(error: Exception) -> str:
    """Why the Hub gave nothing, as the rest of a sentence; what its client says runs over pages."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(error, GatedRepoError):
        return "its owners have to let you in; ask for access on its page and log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repo, or it is private; log in with `hf auth login` or pass a `token`."
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision."
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
        return "your token does not allow it, or there is none; log in with `hf auth login` or pass another `token`."
    if isinstance(cause, HfHubHTTPError):
        return f"the Hub answered with HTTP status {cause.response.status_code}; try again later."
    if isinstance(error, LocalEntryNotFoundError):
        return "it is not all in the cache, and the Hub cannot be reached."
    return (str(error).strip() or type(error).__name__).splitlines()[0]
