"""What train.py keeps: the averaged weights as a pipeline, and checkpoints to go on from after any stop."""

import json
import logging
import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path


logger = logging.getLogger("train")

# Options that may differ each time a training goes on.
OF_ONE_RUN = {"command", "resume_from_checkpoint", "max_train_minutes"}


def step_of(checkpoint: Path) -> int | None:
    """From the folder's name, behind which a copy may say more; `None` if it is named otherwise."""
    name = re.match(r"checkpoint-(\d+)", checkpoint.name)
    return int(name[1]) if name else None


def find_checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole checkpoints, the latest last."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=step_of)


@contextmanager
def written_whole(folder: Path):
    """A folder to write in, beside `folder`, whose content is moved there by the caller when it is whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        yield partial
    except Exception as error:  # every library on the way has its own class for a full disk
        free = shutil.disk_usage(partial.parent).free
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{folder.name} could not be written, with {free / 1e6:.1f} MB free on the disk: {error}. The checkpoints "
            "before it are whole; make room, and go on with --resume_from_checkpoint latest."
        ) from error


def save_checkpoint(accelerator, folder: Path, recipe: dict, limit: int):
    """Write a checkpoint beside its place and rename it when it is whole, so that the latest one always is."""
    with written_whole(folder) as partial:
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
    """The network's own weights are replaced by their average for as long as this lasts."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())


def save_pipeline(pipeline, card, folder: Path):
    """Write a pipeline and its card beside their place and move each file there when all are whole."""
    with written_whole(folder / "pipeline") as partial:
        pipeline.save_pretrained(partial)
        card.save(partial / "README.md")
    for file in [path for path in partial.rglob("*") if path.is_file()]:
        target = folder / file.relative_to(partial)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(partial)


def remove_unfinished(output_dir: Path):
    """Delete what was being written when a training was killed."""
    for folder in output_dir.glob("checkpoint-*.partial"):
        shutil.rmtree(folder)
    for folder in (output_dir, output_dir / "best"):
        shutil.rmtree(folder / "pipeline.partial", ignore_errors=True)


def load_checkpoint(accelerator, folder: Path, recipe: dict) -> int:
    """Put everything back as it was, and return the number of steps that were done."""
    step = step_of(folder)
    if step is None or not (folder / "recipe.json").is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint of this script, named checkpoint-STEP.")
    latest = find_checkpoints(recipe["options"]["output_dir"])[-1:]
    if latest and step_of(latest[0]) > step:
        raise ValueError(f"{latest[0]} is later than {folder}: to go on from there, move the later ones elsewhere.")
    if accelerator.scaler is not None and not (folder / "scaler.pt").is_file():
        raise ValueError(f"{folder} was not trained with --mixed_precision fp16: go on without it.")
    saved, recipe = json.loads((folder / "recipe.json").read_text()), json.loads(json.dumps(recipe))

    def changes(part):
        old, new = saved[part], recipe[part]
        keys = sorted(key for key in (old.keys() | new.keys()) - OF_ONE_RUN if old.get(key) != new.get(key))
        return ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in keys)

    if changes("model"):
        raise ValueError(f"{folder} holds a model of another architecture: {changes('model')}.")
    before = saved["options"].setdefault("optimizer", "adamw")  # the only one that there once was
    if before != recipe["options"]["optimizer"]:
        raise ValueError(
            f"{folder} was trained with --optimizer {before}: go on with it, or begin anew from the weights, with "
            f"--pretrained_model {folder.parent} and another --output_dir."
        )
    if changes("options"):
        logger.warning(f"Not all is as in {folder}: {changes('options')}.")
    accelerator.load_state(str(folder))
    accelerator.step = 0  # of accumulation, which may be another now
    logger.info(f"Going on from {folder}.")
    return step


def rewind_log(log_file: Path, step: int) -> list[dict]:
    """Drop what was logged after a step, which is about to be done again, and return the rest."""
    lines = log_file.read_text().splitlines(keepends=True) if log_file.exists() else []
    # A line that was being written when the process was killed has no end.
    lines = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    log_file.write_text("".join(lines))
    return [json.loads(line) for line in lines]


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


def outlive_signals(worker: int | None = None):
    """
    For the processes that prepare batches or simulate noise: a terminal or a scheduler signals them as well as the
    training, which still needs them up to its checkpoint. Only the training itself ends them, when it fails.
    """

    def end_with_the_training():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_with_the_training, daemon=True).start()
