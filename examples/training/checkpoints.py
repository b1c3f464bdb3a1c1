"""Save the pipeline and the checkpoints of train.py, and load them."""

import json
import logging
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

from gdd_diffusers.hub import build_model


logger = logging.getLogger("train")

# Options that may change from run to run, and former ones whose values the checkpoint contains
NOT_COMPARED = {"command", "resume_from_checkpoint", "max_train_minutes", "hub_private_repo"}
NOT_COMPARED |= {"adam_beta2", "adam_weight_decay", "ema_decay"}
# What older checkpoints were trained with if their recipe.json does not say, and what has no option any more
DEFAULTS = {"optimizer": "adamw", "lr_scheduler": "cosine"}


def step_of(checkpoint: Path) -> int | None:
    """Return the step in the name of a folder, `checkpoint-STEP` or a copy of it such as `checkpoint-STEP-old`."""
    match = re.match(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def find_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the complete checkpoints, the latest last."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=step_of)


@contextmanager
def partial_folder(folder: Path):
    """Yield a folder beside `folder` to write to, which is deleted if writing fails."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        yield partial
    except Exception as error:  # each library raises its own class for a full disk
        free = shutil.disk_usage(partial.parent).free
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{folder.name} could not be written, with {free / 1e6:.1f} MB free on the disk: {error}. The checkpoints "
            "before it are complete; make room, and go on with --resume_from_checkpoint latest."
        ) from error


def save_checkpoint(accelerator, folder: Path, recipe: dict, limit: int):
    """Write a checkpoint and rename it into place once it is complete; then delete all but the last `limit`."""
    with partial_folder(folder) as partial:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            (partial / "recipe.json").write_text(json.dumps(recipe, indent=2))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder)
        for old in find_checkpoints(folder.parent)[:-limit]:
            shutil.rmtree(old)


@contextmanager
def averaged_weights(ema, unet):
    """Give the network its averaged weights, in evaluation mode, within the context."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    unet.eval()
    try:
        yield
    finally:
        ema.restore(unet.parameters())
        unet.train()


def save_pipeline(pipeline, card, folder: Path):
    """Write a pipeline as it is published, with its card, and move the files into place once all are complete."""
    with partial_folder(folder / "pipeline") as partial:
        build_model(pipeline, partial)
        card.save(partial / "README.md")
    files = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(partial / file, folder / file)
    # Older weights of another form, such as shards, would be loaded instead of these.
    for old in (folder / "unet").glob("diffusion_pytorch_model*"):
        if old.relative_to(folder) not in files:
            old.unlink()
    shutil.rmtree(partial)


def remove_partial_folders(output_dir: Path):
    """Delete what was being written when a training was killed."""
    for pattern in ("checkpoint-*.partial", "pipeline.partial", "best/pipeline.partial"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder)


def load_checkpoint(accelerator, folder: Path, recipe: dict) -> int:
    """Restore the state of the training, and return the number of its steps."""
    step = step_of(folder)
    if step is None or not (folder / "recipe.json").is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint of this script, named checkpoint-STEP.")
    latest = find_checkpoints(recipe["options"]["output_dir"])[-1:]
    if latest and step_of(latest[0]) > step:
        raise ValueError(f"{latest[0]} is later than {folder}: to go on from there, move the later ones elsewhere.")
    if accelerator.scaler is not None and not (folder / "scaler.pt").is_file():
        raise ValueError(f"{folder} was not trained with --mixed_precision fp16: go on without it.")
    saved, recipe = json.loads((folder / "recipe.json").read_text()), json.loads(json.dumps(recipe))
    before, now = DEFAULTS | saved["options"], DEFAULTS | recipe["options"]
    before["mixed_precision"] = before.get("mixed_precision") or now["mixed_precision"]  # formerly None if not given

    if changes := describe_changes(saved["model"], recipe["model"]):
        raise ValueError(f"{folder} is of a model with another architecture: {changes}.")
    for name in ("optimizer", "learning_rate"):  # their state is part of the checkpoint
        if before[name] != now[name]:
            raise ValueError(
                f"{folder} was trained with --{name} {before[name]}: go on with it, or start again from the weights, "
                f"with --pretrained_model {folder.parent} and another --output_dir."
            )
    if changes := describe_changes(before, now):
        logger.warning(f"Options differ from those of {folder}: {changes}.")
    accelerator.load_state(str(folder))
    accelerator.step = 0  # of gradient accumulation, which may be another now
    logger.info(f"Resuming from {folder}.")
    return step


def describe_changes(before: dict, now: dict) -> str:
    keys = sorted((before.keys() | now.keys()) - NOT_COMPARED)
    return ", ".join(f"{k} was {before.get(k)} and is {now.get(k)}" for k in keys if before.get(k) != now.get(k))


def rewind_log(log_file: Path, step: int) -> list[dict]:
    """Delete the log of later steps, which will be done again, and return the rest."""
    lines = log_file.read_text().splitlines(keepends=True) if log_file.exists() else []
    # A line without an end was being written when the process was killed.
    lines = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    log_file.write_text("".join(lines))
    return [json.loads(line) for line in lines]
