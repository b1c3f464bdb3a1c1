"""A pipeline as a repo of the Hub that anyone can load: with this package, or without it, by the code in the repo."""

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
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from ..pipeline_real_denoise import RealDenoisePipeline, hub_error_reason
from .model_card import model_card


logger = logging.getLogger(__name__)

CODE = Path(__file__).parents[1]
PIPELINE_MODULES = ("pipeline_real_denoise", "scheduling_interpolation", "tiling", "unet_local")
COMPONENT_MODULES = {"InterpolationScheduler": "scheduling_interpolation", "LocalUNet2DModel": "unet_local"}
SIGNATURE = re.compile(r"\n*<!-- published with gdd-diffusers [0-9a-f]{16} -->\n*$")

# Loads a folder as two users would, in a process that knows nothing else, and denoises a picture.
LOAD = """
import sys

sys.modules["gdd_diffusers"] = None  # importing it fails, as where it is not installed
import numpy as np
import torch
from diffusers import DiffusionPipeline

folder, output = sys.argv[1:]
picture = torch.from_numpy(np.random.default_rng(0).random((1, 1, 56, 72), np.float32))


def denoise(load, **kwargs):
    pipes = [load(folder, variant=variant, **kwargs) for variant in (None, "fp16")]
    return [pipe(picture, num_inference_steps=2, output_type="np").images for pipe in pipes]


print("without this package, by its own code")
by_code = denoise(DiffusionPipeline.from_pretrained, trust_remote_code=True)
print("with this package")
del sys.modules["gdd_diffusers"]
from gdd_diffusers import RealDenoisePipeline

np.save(output, [by_code, denoise(RealDenoisePipeline.from_pretrained)])
"""


def build_repo(model: RealDenoisePipeline | str | os.PathLike, folder: str | os.PathLike, name: str):
    """
    Writes what a repo holds into an empty folder: weights as they are and in float16, configs, code and the card.

    Nothing else gets in: of a folder given as `model`, the pipeline is loaded and saved anew, and only its card and
    the pictures that the card shows are copied.

    Args:
        model: A pipeline, or the folder of one.
        folder: Where the repo is written.
        name (`str`): The repo's id, for the code in the card.

    Raises:
        `ValueError`: When the pipeline could not be loaded again, or the name is none of a repo.
        `FileNotFoundError`: When there is no such folder.
    """
    validate_repo_id(name)
    if "/" not in name:
        raise ValueError(f"A repo is named ORG/NAME, with your own name for ORG if it is yours, not {name}.")
    folder = Path(folder)
    if isinstance(model, str | os.PathLike) and not Path(model).is_dir():
        raise FileNotFoundError(f"There is no folder {model}.")
    pipe = RealDenoisePipeline.from_pretrained(model) if isinstance(model, str | os.PathLike) else model
    pipe.save_pretrained(folder)
    # read again rather than converted, so that what a network keeps in float32 stays in float32
    half = RealDenoisePipeline.from_pretrained(folder, dtype=torch.float16)
    half.unet.save_pretrained(folder / "unet", variant="fp16")

    # Which file of the repo holds which class; and no trace of where the model came from
    for file in folder.rglob("*.json"):
        _edit_json(file, lambda config: config.pop("_name_or_path", None))
    index = RealDenoisePipeline.load_config(folder)
    code = {
        component: [COMPONENT_MODULES.get(index[component][1], "diffusers"), index[component][1]]
        for component in ("unet", "scheduler")
    }
    code["_class_name"] = [PIPELINE_MODULES[0], RealDenoisePipeline.__name__]
    _edit_json(folder / RealDenoisePipeline.config_name, lambda config: config.update(code))
    for module in PIPELINE_MODULES:
        shutil.copy(CODE / f"{module}.py", folder)
    for component in ("unet", "scheduler"):
        if code[component][0] in PIPELINE_MODULES:
            shutil.copy(CODE / f"{code[component][0]}.py", folder / component)

    # The card, and the pictures it shows
    source = None if pipe is model else Path(model)
    if source is None or not (source / "README.md").is_file():
        card = str(model_card(name))
    else:
        card = (source / "README.md").read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", card, re.MULTILINE)
        if title:  # the code in a card of ours names the folder
            before = r'(from_pretrained\("|--model |hf download )'
            card = re.sub(rf'{before}{re.escape(title[1])}(?=["\s])', rf"\g<1>{name}", card)
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", card):
            picture = (source / link).resolve()
            if picture.is_file() and picture.is_relative_to(source.resolve()):
                copy = folder / picture.relative_to(source.resolve())
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, copy)
    (folder / "README.md").write_text(_sign(card), encoding="utf-8")


def _edit_json(file: Path, edit):
    config = json.loads(file.read_text(encoding="utf-8"))
    edit(config)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sign(card: str) -> str:
    """The card with a comment at its end that no longer fits once somebody changes it."""
    card = SIGNATURE.sub("", card).rstrip()
    return f"{card}\n\n<!-- published with gdd-diffusers {hashlib.sha256(card.encode()).hexdigest()[:16]} -->\n"


def check_repo(folder: str | os.PathLike):
    """
    Loads a folder in a clean process: without this package by the folder's code, then with it, float16 weights too.

    Raises:
        `RuntimeError`: When one of them fails or gives another picture.
    """
    with tempfile.TemporaryDirectory() as home:
        settings = ("HF_", "HUGGING_FACE_", "DIFFUSERS_")  # tokens, caches, and whether a repo's code may run at all
        environment = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
        environment |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        output = Path(home, "pictures.npy")
        command = [sys.executable, "-c", LOAD, str(folder), str(output)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        if process.returncode:
            lines = [text.strip().splitlines() for text in (process.stdout, process.stderr)]
            how = lines[0][-1] if lines[0] else "in a process of its own"
            reason = lines[1][-1] if lines[1] else f"it ended with the code {process.returncode}"
            raise RuntimeError(f"The repo does not load {how}, so it was not published: {reason}")
        pictures = np.load(output)
    by_code = np.abs(pictures[0] - pictures[1]).max()
    by_variant = np.abs(pictures[:, 0] - pictures[:, 1]).max()
    if not (by_code == 0 and by_variant < 0.01):
        raise RuntimeError(
            f"The repo was not published: its own code changes pictures by {by_code:.2g}, its float16 weights by "
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
    Uploads a folder that [`build_repo`] has built, in one commit, which replaces the repo's folders `unet` and
    `scheduler`.

    Args:
        folder: What [`build_repo`] has built.
        repo_id, commit_message, private, token, create_pr, overwrite_card: See [`publish`].
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.repo_info(repo_id)
        if private and not info.private:
            raise ValueError(f"{repo_id} exists and is public; make it private on its page first.")
        keep_card = False
        if not overwrite_card and "README.md" in {file.rfilename for file in info.siblings}:
            card = Path(api.hf_hub_download(repo_id, "README.md", revision=info.sha)).read_text(encoding="utf-8")
            has_own_card = Path(folder, "README.md").read_text(encoding="utf-8") != _sign(str(model_card(repo_id)))
            keep_card = not has_own_card or _sign(card) != card
        if keep_card:
            why = "was written or changed on the Hub" if has_own_card else "says more than none would"
            logger.warning(f"The card of {repo_id} {why}, so it stays as it is there.")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload {RealDenoisePipeline.__name__}",
            parent_commit=info.sha,  # what changes there meanwhile is not overwritten
            create_pr=create_pr,
            ignore_patterns=["README.md"] if keep_card else None,
            delete_patterns=["unet/*", "scheduler/*"],
        )
    except Exception as error:  # the client raises errors of its own, and those of the HTTP library under it
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            raise
        raise OSError(f"Could not publish {repo_id}: {hub_error_reason(error)}") from error


def publish(model: RealDenoisePipeline | str | os.PathLike, repo_id: str, **kwargs) -> CommitInfo:
    """
    Publishes a pipeline as a repo that anyone can load, with this package or without it.

    The repo is built, loaded in clean processes, and only then uploaded, in one commit. A card that was changed on the
    Hub since it was last published stays, and so does any card when the model comes without one.

    Args:
        model: A pipeline, or the folder of one, whose card is published with it.
        repo_id (`str`): `ORG/NAME`. Created if there is none.
        commit_message (`str`, *optional*): The commit's first line.
        private (`bool`, *optional*): Whether a new repo is private; the organisation's default if not given.
        token (`str`, *optional*): That of `hf auth login` if not given.
        create_pr (`bool`, defaults to `False`): Open a pull request instead of changing `main`.
        overwrite_card (`bool`, defaults to `False`): Replace the card even if somebody changed it on the Hub.

    Raises:
        `ValueError`: When the model cannot be published, or the repo is public and should be private.
        `RuntimeError`: When the repo does not load as it must; nothing has been uploaded.
        `OSError`: When the Hub does not take it, in one sentence that says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_repo(model, folder, repo_id)
        check_repo(folder)
        return upload_repo(folder, repo_id, **kwargs)
