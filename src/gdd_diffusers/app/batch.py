"""Run `gdd denoise`: one image after another, leaving out those that another run is working on."""

import hashlib
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ..comparison import compare
from ..files import MAX_PIXELS, ImageFile, check_output, for_display, printable, read_image, write_image
from .denoising import denoise_pixels, first_line, show_progress
from .planning import Batch


class TakenByAnotherRun(Exception):
    """Another run is making, or has just made, the same result."""


def run(batch: Batch, pipe, quiet: bool, **options) -> None:
    """Denoise the jobs of a batch. An image that fails does not stop the others; Ctrl-C does."""
    bar = tqdm(
        total=len(batch.jobs),
        disable=quiet or None,  # None shows it on a terminal only
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images, {remaining} left",
        leave=False,
    )
    batch.device = f"{pipe.device} in {str(pipe.dtype).removeprefix('torch.')}"
    start, number = time.monotonic(), 0
    with bar:
        show_progress(pipe, lambda done, total: bar.update(number + done / total - bar.n))
        try:
            for number, (path, target) in enumerate(batch.jobs.items()):
                bar.set_description(path.name)
                try:
                    image = denoise_file(pipe, path, target, format=batch.format, **options)
                except TakenByAnotherRun:
                    batch.num_taken += 1
                except Exception as error:  # of any kind: the other images can still be denoised
                    batch.failed[path] = first_line(error)
                else:
                    batch.done.append(path)
                    batch.megapixels += image.pixels.shape[0] * image.pixels.shape[1] / 1e6
                    batch.notes += [f"{path}: {note}." for note in image.notes]
                    if image.cmyk:
                        batch.notes.append(f"{path} was CMYK, and its result is sRGB.")
                bar.update(number + 1 - bar.n)
        except KeyboardInterrupt:
            batch.interrupted = True
    batch.seconds = time.monotonic() - start


def denoise_file(
    pipe,
    path: Path,
    target: Path,
    *,
    format: str | None = None,
    quality: int | None = None,
    overwrite: bool = False,
    sheet: Path | None = None,
    max_pixels: int | None = None,
    **kwargs,
) -> ImageFile:
    """Denoise one file into another; `kwargs` are passed to the pipeline."""
    with claim(target):
        if target.exists() and not overwrite:
            raise TakenByAnotherRun
        image = read_image(path, max_pixels or MAX_PIXELS)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            folder = printable(target.parent)
            raise OSError(f"the folder {folder} cannot be made: {error.strerror}; choose another place.") from error
        # checked before the work, not after it
        check_output(target, image.pixels, image, format, overwrite)
        if sheet:
            sheet_format = None if sheet.suffix else "png"
            check_output(sheet, image.pixels[..., :1], format=sheet_format, overwrite=overwrite)  # it has no alpha
        denoised = denoise_pixels(pipe, image.pixels, **kwargs)
        try:
            write_image(target, denoised, like=image, format=format, quality=quality, overwrite=overwrite)
        except FileExistsError:  # a run on another machine was faster
            raise TakenByAnotherRun from None
    if sheet:
        before, after = (Image.fromarray(for_display(pixels)) for pixels in (image.pixels, denoised))
        comparison = compare({"before": before, "after": after})
        write_image(sheet, np.asarray(comparison), format=sheet_format, overwrite=overwrite)
    return image


@contextmanager
def claim(target: Path):
    """
    Keep other runs on this machine from making the same result.

    Raises:
        [`TakenByAnotherRun`]: If one is making it.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(target))).hexdigest()
    # not beside the target, where it would stay if this process were killed
    lock = FileLock(Path(tempfile.gettempdir(), f"gdd-{name[:32]}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise TakenByAnotherRun from None
    except OSError:  # no lock can be had: it is another user's, or the disk is full
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
