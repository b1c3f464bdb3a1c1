"""Loading from the Hub. A published repo contains this file, so it imports installed packages only."""

import hashlib
import inspect
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open


# The components of a pipeline: the classes that each can have, and the modules that these are in
COMPONENTS = {
    "unet": {"UNet2DModel": "diffusers", "LocalUNet2DModel": "unet_local"},
    "scheduler": {"InterpolationScheduler": "scheduling_interpolation"},
}


def find_components(index: dict[str, Any], source: Any) -> dict[str, list[str]]:
    """Return module and class of the components in `model_index.json`, whatever module they were saved from."""
    components = {}
    for name, modules in COMPONENTS.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
        if not isinstance(found, str) or found not in modules:
            raise ValueError(
                f"{source} is not a model for RealDenoisePipeline: "
                f"its `{name}` is {found}, not {' or '.join(modules)}."
            )
        components[name] = [modules[found], found]
    return components


def weight_files(folder: Any, variant: str | None = None) -> list[Path]:
    """Return the files, one for each form of weights, from which diffusers may load the network in `folder`."""
    end = f".{variant}" if variant else ""
    name = "diffusion_pytorch_model"
    endings = [f"{end}.safetensors", f".safetensors.index{end}.json", f"{end}.bin", f".bin.index{end}.json"]
    return [Path(folder, "unet", name + ending) for ending in endings]


def check_folder(
    folder: Any, *classes: Any, variant: str | None = None, use_safetensors: bool | None = None, **passed: Any
) -> Path | None:
    """
    Check that the files of a model fit together, since diffusers fills what is missing with random numbers.

    Args:
        folder: A folder as [`~diffusers.DiffusionPipeline.save_pretrained`] writes it.
        *classes: Those that a component may have.
        variant, use_safetensors: As for [`~diffusers.DiffusionPipeline.from_pretrained`].
        **passed: Its other arguments; a component among them does not come from the folder.

    Returns:
        The file from which to load the weights, `None` if there is none of this `variant`.

    Raises:
        `ValueError`: If a file does not hold what it should, in one sentence that names the file.
        `FileNotFoundError`: If a file is missing.
    """
    by_name = {cls.__name__: cls for cls in classes}
    index = _read_json(Path(folder, "model_index.json"))
    found = find_components(index, folder)
    for name in index.keys() - found.keys():
        if not name.startswith("_") and isinstance(index[name], list | dict) and len(index[name]) != 2:  # a component
            raise ValueError(f"{folder}/model_index.json is damaged: its `{name}` is {index[name]!r}, not a number.")
    components = {name: by_name[cls] for name, (_, cls) in found.items() if name not in passed}
    built = {name: _build(Path(folder, name, cls.config_name), cls) for name, cls in components.items()}
    if "unet" not in built:
        return None
    is_wanted = {None: (".safetensors", ".bin"), True: (".safetensors",), False: (".bin",)}[use_safetensors]
    files = [file for file in weight_files(folder, variant) if any(form in file.name for form in is_wanted)]
    present = [file for file in files if file.is_file()]
    if len(present) > 1:
        names = " and ".join(file.name for file in present)
        raise ValueError(
            f"{present[0].parent} holds weights more than once, {names}: delete those that are not wanted."
        )
    if not present:
        if variant:
            return None  # diffusers says which there are
        raise FileNotFoundError(f"There are no weights in {folder}: {files[0]} is missing.")
    _check_tensors(present[0], _read_tensors(present[0]), built["unet"].state_dict())
    return present[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise FileNotFoundError(f"There is no model in {file.parent}: there is no file {file.name}.") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{file} is damaged: it is not JSON.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no settings.")
    return content


def _build(file: Path, cls: Any) -> Any:
    """Make a component as its configuration says, without memory for its weights."""
    config = _read_json(file)
    if config.get("_class_name") != cls.__name__:
        raise ValueError(f"{file} is for {config.get('_class_name')}, not for {cls.__name__}.")
    settings = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        value, default = config.get(name), parameter.default
        if value is None:
            settings |= {name: None} if name in config else {}
            continue
        kinds = {tuple: list, float: int}  # JSON has no tuples, and writes 1.0 as 1
        if (
            default not in (None, inspect.Parameter.empty)
            and len({kinds.get(type(example), type(example)) for example in (value, default)}) == 2
        ):
            raise ValueError(f"{file} is damaged: its `{name}` is {value!r}, not something like {default!r}.")
        if name == "layers_per_block" and value > 100:  # each takes time to make, even without memory
            raise ValueError(f"{file} is damaged: its `{name}` is {value}, more than any network has.")
        settings[name] = value
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return cls(**settings)
    except Exception as error:  # of any class, raised anywhere in the component
        reason = f": {str(error).splitlines()[0]}" if isinstance(error, ValueError) and str(error) else "."
        raise ValueError(f"{file} does not describe a working {cls.__name__}{reason}") from None


def _read_tensors(file: Path) -> dict[str, tuple[list[int], str]]:
    """Return shape and dtype of the tensors in a file, or in the shards that it lists, by the file's header alone."""
    if file.suffix == ".json":
        shards = _read_json(file).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ValueError(f"{file} is damaged: it does not say which file holds which tensor.")
        tensors = {shard: _read_tensors(file.parent / Path(shard).name) for shard in set(shards.values())}
        return {name: tensors[shard][name] for name, shard in shards.items() if name in tensors[shard]}
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - not a dict
                return {name: (item.get_shape(), item.get_dtype()) for name, item in slices.items()}
        content = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return {name: (list(tensor.shape), _dtype_name(tensor)) for name, tensor in content.items()}
    except FileNotFoundError:
        raise FileNotFoundError(f"Weights are missing: there is no file {file}.") from None
    except Exception:  # of pickle, zipfile, torch or safetensors
        raise ValueError(f"{file} is damaged: it is cut, or no file of weights.") from None


def _dtype_name(tensor: torch.Tensor) -> str:
    return ("F" if tensor.is_floating_point() else "") + str(tensor.dtype)


def _check_tensors(file: Path, found: dict[str, tuple[list[int], str]], expected: dict[str, torch.Tensor]):
    for name, tensor in expected.items():
        if name not in found:
            raise ValueError(f"{file} is not complete: the tensor {name} is missing.")
        shape, dtype = found[name]
        if list(shape) != list(tensor.shape):
            raise ValueError(f"{file} does not fit config.json: {name} is of shape {shape}, not {list(tensor.shape)}.")
        if not dtype.startswith(("F", "BF")):
            raise ValueError(f"{file} is damaged: the tensor {name} is of {dtype}, not of floating-point numbers.")
    if extra := found.keys() - expected.keys():
        raise ValueError(f"{file} does not fit config.json: the network has no tensor {min(extra)}.")


def download_model(repo_id: str, **kwargs) -> str:
    """
    Download the configs and weights of a repo, but no code, and check the sha256 of the weights.

    diffusers refuses a repo whose scheduler is not its own, or asks to trust the repo's copy of it. The pipeline that
    calls this has these classes already.

    Takes the arguments of [`~diffusers.DiffusionPipeline.download`].

    Raises:
        `OSError`: If the download fails, in one sentence that says why.
    """
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
    variant = kwargs.get("variant")
    weights = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    patterns = [f"unet/{weights}.safetensors", f"unet/{weights}-*.safetensors"]
    try:
        folder = snapshot_download(
            repo_id,
            allow_patterns=["README.md", "model_index.json", "*/*.json", *patterns],
            **{name: kwargs[name] for name in names if kwargs.get(name) is not None},
        )
    except Exception as error:  # the client raises its own errors and those of the HTTP library that it uses
        raise OSError(f"Could not get {repo_id} from the Hub: {error_reason(error)}") from error
    files = [file for pattern in patterns for file in Path(folder).glob(pattern)]
    if not files and "unet" not in kwargs:
        raise OSError(
            f"{repo_id} has no weights {weights}.safetensors in its folder `unet`; pickled ones are never loaded from "
            "the Hub, since they can run any code."
        )
    for file in files:
        _check_sha256(file, repo_id)
    return folder


def _check_sha256(file: Path, repo_id: str):
    blob = file.resolve()  # the cache names large files by their sha256; the client compares sizes only
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if sha256 != blob.name:
        blob.unlink()  # so that the next call downloads it again
        raise OSError(
            f"The weights of {repo_id} arrived damaged: the sha256 of {file.name} is {sha256}, not {blob.name}. They "
            "were deleted; try again."
        )


def error_reason(error: Exception) -> str:
    """Return why a request to the Hub failed, as the rest of a sentence; the client's own messages fill pages."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(error, GatedRepoError):
        return "its owners have to let you in; ask for access on its page and log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repo, or it is private; log in with `hf auth login` or pass a `token`."
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision."
    if isinstance(error, LocalTokenNotFoundError) or _status(cause) in (401, 403):
        return "your token does not allow it, or there is none; log in with `hf auth login` or pass another `token`."
    if _status(cause):
        return f"the Hub answered with HTTP status {_status(cause)}; try again later."
    if isinstance(error, LocalEntryNotFoundError):
        return "it is not all in the cache, and the Hub cannot be reached."
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None
