"""Loading from the Hub. A published repo contains this file, so it imports installed packages only."""

import hashlib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


# The components of a pipeline: the classes that each can have, and the modules that these are in
COMPONENTS = {
    "unet": {"UNet2DModel": "diffusers", "LocalUNet2DModel": "unet_local"},
    "scheduler": {"InterpolationScheduler": "scheduling_interpolation"},
}


def find_components(index: dict[str, Any], source: Any) -> dict[str, list[str]]:
    """Return module and class of the components in `model_index.json`, whatever module they were saved from."""
    components = {}
    for name, modules in COMPONENTS.items():
        found = index.get(name, (None, None))[1]
        if found not in modules:
            raise ValueError(
                f"{source} is not a model for RealDenoisePipeline: "
                f"its `{name}` is {found}, not {' or '.join(modules)}."
            )
        components[name] = [modules[found], found]
    return components


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
