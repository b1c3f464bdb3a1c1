"""Publish a pipeline as a Hub repo that anyone can load: with this package, or without it by the repo's own code."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers import __version__ as diffusers_version
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from ..scheduling_interpolation import InterpolationScheduler
from ..unet_local import LocalUNet2DModel
from .loading import error_reason, find_components
from .model_card import model_card


logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
PIPELINE = ("pipeline_real_denoise", "RealDenoisePipeline")  # the module and the class
MODULES = ["image_processor", "memory", "scheduling_interpolation", "tiling", "unet_local", "walks", "hub/loading"]
COMPONENT_CLASSES = {cls.__name__: cls for cls in (UNet2DModel, LocalUNet2DModel, InterpolationScheduler)}
SIGNATURE = re.compile(r"\n*<!-- published with gdd-diffusers [0-9a-f]{16} -->\n*$")

# Loads a folder as users with and without the package do, in a clean process, and denoises an image
LOAD = """
import sys

sys.modules["gdd_diffusers"] = None  # importing it fails, as where it is not installed
import numpy as np
import torch
from diffusers import DiffusionPipeline

folder, output = sys.argv[1:]
image = torch.from_numpy(np.random.default_rng(0).random((1, 1, 56, 72), np.float32))


def denoise(load, **kwargs):
    pipes = [load(folder, variant=variant, **kwargs) for variant in (None, "fp16")]
    return [pipe(image, num_inference_steps=2, output_type="np").images for pipe in pipes]


print("without this package, by its own code")
by_code = denoise(DiffusionPipeline.from_pretrained, trust_remote_code=True)
print("with this package")
del sys.modules["gdd_diffusers"]
from gdd_diffusers import RealDenoisePipeline

np.save(output, [by_code, denoise(RealDenoisePipeline.from_pretrained)])
"""


def build_repo(model: DiffusionPipeline | str | os.PathLike, folder: str | os.PathLike, name: str):
    """
    Write the contents of a repo to an empty folder: what [`build_model`] writes, and the card.

    `model` is a pipeline, or the folder of one, of which only the card and the images that it shows are copied. `name`
    is the repo's id, for the code in the card.

    Raises:
        `ValueError`: If the pipeline could not be loaded again, or `name` is not a repo id.
        `FileNotFoundError`: If there is no such folder.
    """
    validate_repo_id(name)
    if "/" not in name:
        raise ValueError(f"A repo is named ORG/NAME, with your own name for ORG if it is yours, not {name}.")
    build_model(model, folder)
    _write_card(Path(model) if isinstance(model, str | os.PathLike) else None, Path(folder), name)


def build_model(model: DiffusionPipeline | str | os.PathLike, folder: str | os.PathLike):
    """
    Write a model to an empty folder that loads with this package or without it: weights as they are and in float16,
    configs and code. The components of `model`, a pipeline or the folder of one, are loaded and saved again.

    Raises:
        `ValueError`: If the pipeline could not be loaded again.
        `FileNotFoundError`: If there is no such folder.
    """
    folder = Path(folder)
    if isinstance(model, str | os.PathLike):
        source = Path(model)
        if not source.is_dir():
            raise FileNotFoundError(f"There is no folder {source}.")
        from ..pipeline_real_denoise import RealDenoisePipeline

        RealDenoisePipeline.from_pretrained(source)  # which checks that its files fit together
        index = DiffusionPipeline.load_config(source)
    else:
        source, index = None, dict(model.config)

    components = find_components(index, source or "The pipeline")
    for component, (module, class_name) in components.items():
        cls = COMPONENT_CLASSES[class_name]
        loaded = cls.from_pretrained(source, subfolder=component) if source else getattr(model, component)
        loaded.save_pretrained(folder / component)
        if module != "diffusers":
            shutil.copy(PACKAGE / f"{module}.py", folder / component)
    # loaded again rather than converted, so that what a network keeps in float32 stays in float32
    half = COMPONENT_CLASSES[components["unet"][1]].from_pretrained(folder, subfolder="unet", dtype=torch.float16)
    half.save_pretrained(folder / "unet", variant="fp16")
    (folder / "hub").mkdir(exist_ok=True)
    for module in [PIPELINE[0], *MODULES]:
        shutil.copy(PACKAGE / f"{module}.py", folder / f"{module}.py")

    # The index says which file has which class; where the model came from is left out of all configs.
    settings = {key: value for key, value in index.items() if not isinstance(value, list | tuple)}
    settings |= components | {"_diffusers_version": diffusers_version, "_class_name": PIPELINE}
    (folder / "model_index.json").write_text(json.dumps(settings), encoding="utf-8")
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_card(source: Path | None, folder: Path, name: str):
    if source is None or not (source / "README.md").is_file():
        card = str(model_card(name))
    else:
        card = (source / "README.md").read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", card, re.MULTILINE)
        if title:  # the code in a card that model_card wrote names the folder
            before = r'(from_pretrained\("|--model |hf download )'
            card = re.sub(rf'{before}{re.escape(title[1])}(?=["\s])', rf"\g<1>{name}", card)
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", card):
            image = (source / link).resolve()
            if image.is_file() and image.is_relative_to(source.resolve()):
                copy = folder / image.relative_to(source.resolve())
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, copy)
    (folder / "README.md").write_text(_sign(card), encoding="utf-8")


def _sign(card: str) -> str:
    """Append a checksum to a card, which tells later whether the card was changed."""
    card = SIGNATURE.sub("", card).rstrip()
    return f"{card}\n\n<!-- published with gdd-diffusers {hashlib.sha256(card.encode()).hexdigest()[:16]} -->\n"


def check_repo(folder: str | os.PathLike):
    """
    Load a repo in a clean process, without this package by the repo's code and then with it, float16 weights too.

    Raises:
        `RuntimeError`: If one of them fails or gives another image.
    """
    with tempfile.TemporaryDirectory() as home:
        settings = ("HF_", "HUGGING_FACE_", "DIFFUSERS_")  # tokens, caches, and whether a repo's code may run at all
        environment = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
        environment |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        output = Path(home, "images.npy")
        command = [sys.executable, "-c", LOAD, str(folder), str(output)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        if process.returncode:
            stdout, stderr = (text.strip().splitlines() for text in (process.stdout, process.stderr))
            how = stdout[-1] if stdout else "in a process of its own"
            reason = stderr[-1] if stderr else f"it ended with the code {process.returncode}"
            raise RuntimeError(f"The repo does not load {how}, so it was not published: {reason}")
        images = np.load(output)
    by_code = np.abs(images[0] - images[1]).max()
    by_variant = np.abs(images[:, 0] - images[:, 1]).max()
    if not (by_code == 0 and by_variant < 0.01):
        raise RuntimeError(
            f"The repo was not published: its own code changes images by {by_code:.2g}, its float16 weights by "
            f"{by_variant:.2g} of white."
        )


def upload_repo(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    overwrite_card: bool = False,
) -> CommitInfo:
    """
    Upload what [`build_repo`] has written to `folder` in one commit, which replaces the repo's folders `unet` and
    `scheduler`. See [`publish`] for the other arguments and the errors.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
        if private and not info.private:
            raise ValueError(f"{repo_id} exists and is public; make it private on its page first.")
        keep_card = False
        if not overwrite_card and "README.md" in {file.rfilename for file in info.siblings or []}:
            card = Path(api.hf_hub_download(repo_id, "README.md", revision=info.sha)).read_text(encoding="utf-8")
            has_own_card = Path(folder, "README.md").read_text(encoding="utf-8") != _sign(str(model_card(repo_id)))
            keep_card = not has_own_card or _sign(card) != card
            if keep_card:
                why = "was written or changed on the Hub" if has_own_card else "has no replacement"
                logger.warning(f"The card of {repo_id} {why}, so it stays as it is there.")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            commit_message=commit_message or f"Upload {PIPELINE[1]}",
            parent_commit=info.sha,  # so as not to overwrite what others change in the meantime
            create_pr=create_pr,
            ignore_patterns=["README.md"] if keep_card else None,
            delete_patterns=["unet/*", "scheduler/*"],
        )
    except Exception as error:  # the client raises its own errors and those of the HTTP library that it uses
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            raise
        raise OSError(f"Could not publish {repo_id}: {error_reason(error)}") from error


def publish(model: DiffusionPipeline | str | os.PathLike, repo_id: str, **kwargs) -> CommitInfo:
    """
    Publish a pipeline as a repo that anyone can load, with this package or without it.

    The repo is built, loaded in clean processes, and only then uploaded, in one commit. A card that was changed on the
    Hub since it was last published stays, and so does any card if the model comes without one.

    Args:
        model: A pipeline, or the folder of one, whose card is published with it.
        repo_id: `ORG/NAME`. Created if there is none.
        commit_message (`str`, *optional*): The commit's first line.
        private (`bool`, *optional*): Whether a new repo is private; the organisation's default if not given.
        token (`str`, *optional*): That of `hf auth login` if not given.
        create_pr (`bool`, defaults to `False`): Open a pull request instead of changing `main`.
        overwrite_card (`bool`, defaults to `False`): Replace the card even if somebody changed it on the Hub.

    Raises:
        `ValueError`: If the model cannot be published, or the repo is public and should be private.
        `RuntimeError`: If the repo does not load as it must; nothing has been uploaded.
        `OSError`: If the upload fails, in one sentence that says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_repo(model, folder, repo_id)
        check_repo(folder)
        return upload_repo(folder, repo_id, **kwargs)


def add_namespace(repo_id: str, token: str | None = None) -> str:
    """Put the name of the token's user in front of a `NAME` without one."""
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except Exception as error:  # see upload_repo
        raise OSError(f"Could not publish {repo_id}: {error_reason(error)}") from error
