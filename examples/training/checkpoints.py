"""Stopping a training at any moment and going on from there, for train.py."""

import json
import logging
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path


logger = logging.getLogger("train")

# Options that may differ each time a training goes on.
OF_ONE_RUN = {"command", "resume_from_checkpoint", "max_train_minutes"}


def find_checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole checkpoints, the latest last."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(accelerator, folder: Path, recipe: dict, limit: int):
    """Write a checkpoint beside its place and rename it when it is whole, so that the latest one always is."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            (partial / "recipe.json").write_text(json.dumps(recipe, indent=2))
    except Exception as error:  # every library on the way has its own class for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{folder.name} could not be written: {error}. The checkpoints before it are whole; make room, and go on "
            "with --resume_from_checkpoint latest."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder)
        for old in find_checkpoints(folder.parent)[:-limit]:
            shutil.rmtree(old)


def load_checkpoint(accelerator, folder: Path, recipe: dict) -> int:
    """Put everything back as it was, and return the number of steps that were done."""
    if not (folder / "recipe.json").is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint of this script.")
    saved, recipe = json.loads((folder / "recipe.json").read_text()), json.loads(json.dumps(recipe))

    def changes(part):
        old, new = saved[part], recipe[part]
        keys = sorted(key for key in (old.keys() | new.keys()) - OF_ONE_RUN if old.get(key) != new.get(key))
        return ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in keys)

    if changes("model"):
        raise ValueError(f"{folder} holds a model of another architecture: {changes('model')}.")
    if changes("options"):
        logger.warning(f"Not all is as in {folder}: {changes('options')}.")
    accelerator.load_state(str(folder))
    logger.info(f"Going on from {folder}.")
    return int(folder.name.split("-")[1])


@contextmanager
def stop_signals():
    """The SIGTERM and Ctrl-C that have come, in a list, instead of what they do by themselves."""
    received = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
