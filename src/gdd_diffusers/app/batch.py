"""Run `gdd denoise`: one image after another, leaving out those that another run is working on."""

import hashlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ..comparison import compare
from ..files import MAX_PIXELS, ImageFile, RawOptions, check_output, for_display, printable, read_image, write_image
from ..files.xmp import copy_sidecars
from ..memory import keep_freed_memory
from .denoising import denoise_pixels, first_line, show_progress
from .planning import Batch, is_replaced


# Small images are denoised in groups of up to so many pixels and images. Larger ones would gain nothing, and each
# image of a group holds a lock, which is an open file.
MAX_GROUP_PIXELS, MAX_GROUP_IMAGES = 2**19, 32


class TakenByAnotherRun(Exception):
    """Another run is making, or has just made, the same result."""


@dataclass
class FileOptions:
    """How images are read and written."""

    format: str | None = None  # each input's own if None
    quality: int | None = None
    overwrite: bool = False
    sheet: Path | None = None
    max_pixels: int | None = None
    originals: dict[Path, Path] = field(default_factory=dict)  # where the images are kept that results replace
    raw: RawOptions | None = None

    def is_done(self, target: Path) -> bool:
        """Whether an earlier run has made a result."""
        if target in self.originals:
            return is_replaced(target, self.originals[target])
        return target.exists() and not self.overwrite


def run(batch: Batch, pipe, quiet: bool, files: FileOptions, **kwargs) -> None:
    """
    Denoise the jobs of a batch. An image that fails does not stop the others; Ctrl-C does.

    The next images are read, and the last ones written, while the network works. `kwargs` are passed to the pipeline.
    """
    bar = tqdm(
        total=len(batch.jobs),
        disable=quiet or None,  # None shows it on a terminal only
        bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} images, {remaining} left",
        leave=False,
    )
    batch.device = f"{pipe.device} in {str(pipe.dtype).removeprefix('torch.')}"
    position = {path: number for number, path in enumerate(batch.jobs)}
    start, number = time.monotonic(), 0
    group: dict[Path, ImageFile] = {}
    unwritten: deque[tuple[dict[Path, Future], ExitStack]] = deque()
    # the memory of one image serves the next, too
    with bar, keep_freed_memory(), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        show_progress(pipe, lambda done, total: bar.update(number + len(group) * done / total - bar.n))
        try:
            groups = read_in_groups(batch, files)
            following = reader.submit(next, groups, {})
            while group := following.result():
                following = reader.submit(next, groups, {})
                first = next(iter(group))
                number = position[first]
                bar.set_description(first.name)
                with ExitStack() as claims:
                    for path in list(group):
                        try:
                            claims.enter_context(claim(batch.jobs[path], files))
                        except Exception as error:
                            fail(batch, path, error)
                            del group[path]
                    denoised = denoise(pipe, batch, group, **kwargs)
                    results: dict[Path, Future] = {}
                    unwritten.append((results, claims.pop_all()))
                for path, pixels in denoised.items():
                    results[path] = writer.submit(write, path, group[path], batch.jobs[path], pixels, files)
                if len(unwritten) > 1:  # so as not to gather them in memory
                    record_first(batch, unwritten)
        except KeyboardInterrupt:
            batch.interrupted = True
        while unwritten:  # what is denoised is written
            try:
                record_first(batch, unwritten)
            except KeyboardInterrupt:
                batch.interrupted = True
    batch.failed = dict(sorted(batch.failed.items(), key=lambda item: position.get(item[0], -1)))
    batch.seconds = time.monotonic() - start


def fail(batch: Batch, path: Path, error: Exception):
    """Record why there is no result of an image."""
    if isinstance(error, TakenByAnotherRun):
        batch.taken.append(path)
    else:
        batch.failed[path] = first_line(error)


def record_first(batch: Batch, unwritten: deque[tuple[dict[Path, Future], ExitStack]]):
    """Wait until the first group of images is written, and record what happened to them."""
    wait(unwritten[0][0].values())  # Ctrl-C leaves the group where it is
    results, claims = unwritten.popleft()
    with claims:
        for path, result in results.items():
            try:
                image = result.result()
            except Exception as error:
                fail(batch, path, error)
            else:
                batch.done.append(path)
                batch.megapixels[path] = image.pixels.shape[0] * image.pixels.shape[1] / 1e6
                for remark in image.notes:
                    batch.remarks.setdefault(remark, []).append(path)


def read_in_groups(batch: Batch, files: FileOptions) -> Iterator[dict[Path, ImageFile]]:
    """Read the images of a batch. Yield neighbours that are small and of equal size together, all others alone."""
    group: dict[Path, ImageFile] = {}
    size_of_group = None
    for path, target in batch.jobs.items():
        try:
            image = read(path, target, files)
        except Exception as error:  # of any kind: the other images can still be denoised
            fail(batch, path, error)
            continue
        height, width = image.pixels.shape[:2]
        if group and (height, width) != size_of_group:
            yield group
            group = {}
        group[path], size_of_group = image, (height, width)
        # a large image goes on at once, before the next one is read
        if len(group) == MAX_GROUP_IMAGES or (len(group) + 1) * height * width > MAX_GROUP_PIXELS:
            yield group
            group = {}
    if group:
        yield group


def denoise(pipe, batch: Batch, group: dict[Path, ImageFile], **kwargs) -> dict[Path, np.ndarray]:
    """Denoise images of equal size at once or, if that fails, one after another."""
    if not group:
        return {}
    try:
        pixels = denoise_pixels(pipe, [image.pixels for image in group.values()], **kwargs)
        return dict(zip(group, pixels, strict=True))
    except Exception as error:  # of any kind: the other images can still be denoised
        if len(group) == 1:
            fail(batch, next(iter(group)), error)
            return {}
    results = {}  # only now: the exception kept the memory of the call that failed
    for path, image in group.items():
        results |= denoise(pipe, batch, {path: image}, **kwargs)
    return results


def read(path: Path, target: Path, options: FileOptions) -> ImageFile:
    """Read an image, and check that its result can be written."""
    if options.is_done(target):
        raise TakenByAnotherRun
    image = read_image(path, options.max_pixels or MAX_PIXELS, options.raw)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        folder = printable(target.parent)
        raise OSError(f"the folder {folder} cannot be made: {error.strerror}; choose another place.") from error
    replace = options.overwrite or target in options.originals
    check_output(target, image.pixels, image, options.format, replace)
    if sheet := options.sheet:
        # which has no alpha
        check_output(sheet, image.pixels[..., :1], None, None if sheet.suffix else "png", options.overwrite)
    return image


def write(path: Path, image: ImageFile, target: Path, denoised: np.ndarray, options: FileOptions) -> ImageFile:
    """Write the denoised pixels of an image, the sheet that compares them, and the image's XMP sidecars."""
    if target in options.originals:
        keep(target, options.originals[target])
    replace = options.overwrite or target in options.originals
    try:
        write_image(target, denoised, image, options.format, options.quality, replace)
    except FileExistsError:  # a run on another machine was faster
        raise TakenByAnotherRun from None
    if sheet := options.sheet:
        before, after = (Image.fromarray(for_display(pixels)) for pixels in (image.pixels, denoised))
        pixels = np.asarray(compare({"before": before, "after": after}))
        write_image(sheet, pixels, format=None if sheet.suffix else "png", overwrite=options.overwrite)
    copy_sidecars(path, target, image)
    return image


def keep(path: Path, original: Path) -> None:
    """Give a file a second name, which keeps its content when the first one is replaced."""
    try:
        original.parent.mkdir(parents=True, exist_ok=True)
        original.unlink(missing_ok=True)  # the same, left by a run that was stopped
        try:
            os.link(os.path.realpath(path), original)
        except OSError:  # another disk, or a memory card, which has no links
            part = original.with_name(f".{original.name}.part")
            shutil.copy2(path, part)
            os.replace(part, original)
    except OSError as error:
        name = printable(original)
        raise OSError(f"the original cannot be kept as {name}: {error.strerror}; choose --originals.") from error


@contextmanager
def claim(target: Path, options: FileOptions):
    """
    Keep other runs on this machine from making the same result.

    Raises:
        [`TakenByAnotherRun`]: If one is making it, or has made it.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(target))).hexdigest()
    # not beside the target, where it would stay if this process were killed
    lock = FileLock(Path(tempfile.gettempdir(), f"gdd-{name[:32]}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise TakenByAnotherRun from None
    except OSError:  # no lock can be had: it is another user's, or the disk is full
        lock = None
    try:
        if options.is_done(target):
            raise TakenByAnotherRun
        yield
    finally:
        if lock:
            with suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()
