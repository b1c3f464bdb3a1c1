"""
What the page's controls do: open an image, denoise it, cancel, clean up.

One [`Jobs`] serves all visitors. Each has a folder, which is deleted when they leave. Images are denoised one at a
time; the other jobs wait in Gradio's queue.
"""

import copy
import itertools
import os
import secrets
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from threading import Lock
from urllib.parse import quote

import gradio as gr
import numpy as np
from PIL import Image

from ...files import FORMATS, ImageFile, check_output, for_display, output_suffix, read_image, write_image
from ...image_processor import pixels_to_tensor
from ...metrics import psnr, ssim
from ...pipeline_real_denoise import BUNDLED, DEFAULT_MODEL, RealDenoisePipeline
from ..denoising import configure, denoise_pixels, first_line, load_model, show_progress, simulate_pixels


EXAMPLES = [Path(__file__).with_name(name) for name in ("coffee_noisy.jpg", "coffee_clean.jpg")]
MAX_PIXELS = 100_000_000
MAX_SIMULATED_MEGAPIXELS = 12  # simulated camera and SSIM hold dozens of copies of an image
SEED = 2  # the same camera and light for all settings, so that they can be compared


# The values of the controls, in the order of the page
Settings = namedtuple("Settings", "strength, steps, make_noisy, preset, iso, model, rule, tile_size")


@dataclass
class Visitor:
    """What the server keeps for an open page."""

    folder: Path | None = None  # of the image and everything made from it
    file: Path | None = None
    before: str | None = None  # URL of its preview
    job: int | None = None  # the latest, until it is done; earlier ones are cancelled
    settings: Settings | None = None  # of the last job
    opening: Lock = field(default_factory=Lock)  # held while a file is read


class JobCancelled(Exception):
    """The visitor has cancelled the job, started another one, or left."""


class Jobs:
    """
    All files lie in `root`; Gradio serves them to anyone who knows their names. With `one_model`, visitors cannot load
    another: that would use the server's own login to the Hub, for a model of any size. The rest is as for `launch`.
    """

    def __init__(
        self,
        root: Path,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        one_model: bool = False,
        allow_folders: bool = False,
    ):
        self.root, self.device, self.dtype = root, device, dtype
        self.one_model, self.allow_folders = one_model, allow_folders
        # One thread for all jobs: Gradio starts the next job while a cancelled one is still ending, and the C library
        # keeps a pool of memory for every thread.
        self.worker = ThreadPoolExecutor(max_workers=1)
        self.running: tuple[Visitor, int] | None = None
        self.visitors: dict[str, Visitor] = {}
        self.numbers = itertools.count(1)
        self.first_model, self.loaded = model or DEFAULT_MODEL, (None, None)
        self.load(self.first_model)

    def load(self, name: str) -> RealDenoisePipeline:
        """Load a model by its name; only the last one stays in memory."""
        if not name or self.one_model and name not in BUNDLED:
            name = self.first_model
        loaded, pipe = self.loaded
        if name != loaded:
            is_first = name == self.first_model
            try:
                pipe = load_model(name, self.device, self.dtype, hub_only=not (is_first or self.allow_folders))
            except OSError:
                if is_first or not self.allow_folders:
                    raise
                # the same message whether or not the folder exists, so as not to reveal it
                raise OSError(f"{name} is neither the folder of a model nor a model on the Hub.") from None
            for layer in pipe.unet.modules():  # a job can stop before any layer, even in the middle of a tile
                layer.register_forward_pre_hook(self.raise_if_cancelled)
            self.loaded = name, pipe
        return pipe

    def visitor(self, request: gr.Request) -> Visitor:
        return self.visitors.get(request.session_hash, Visitor())

    def open_upload(self, request: gr.Request, event: gr.EventData):
        """Open the file that the browser has just sent."""
        try:
            path = Path(event_value(event, "path")).resolve()
            has_arrived = path.is_relative_to(self.root) and path.is_file()
        except (OSError, RuntimeError, TypeError, ValueError):  # not sent by our page
            has_arrived = False
        if not has_arrived:
            raise page_error(ValueError("the image did not arrive; choose it again."), self.root)
        return self.open(request, path, shutil.move)

    def open_example(self, request: gr.Request, event: gr.EventData):
        number = event_value(event, "number")
        if number not in range(len(EXAMPLES)):
            raise page_error(ValueError("there is no such example."), self.root)
        return self.open(request, EXAMPLES[int(number)], shutil.copy)

    def open(self, request: gr.Request, path: Path, take: Callable):
        """Make a file the image of the visitor, in place of the last one, and show it."""
        visitor = self.visitors.setdefault(request.session_hash, Visitor())
        if not visitor.opening.acquire(blocking=False):  # waiting would hold up other visitors
            raise page_error(ValueError("the last image is still being opened; wait until it is there."), self.root)
        folder = self.root / secrets.token_hex(16)
        (folder / "image").mkdir(parents=True)
        try:
            file = Path(take(path, folder / "image" / path.name))
            image = read_image(file, MAX_PIXELS)
            before = write_preview(folder / "before.png", image.pixels)
        except Exception as error:
            shutil.rmtree(folder)
            raise page_error(error, folder / "image") from error
        finally:
            visitor.opening.release()
        self.forget_image(visitor)
        visitor.folder, visitor.file, visitor.before = folder, file, before
        if request.session_hash not in self.visitors:  # left meanwhile
            self.forget_image(visitor)
        return {"name": file.name, "before": before}, facts_html(describe(file.name, image))

    def forget_image(self, visitor: Visitor):
        """Delete the files of a visitor; what a job has yet to write, it deletes itself."""
        folder, visitor.folder = visitor.folder, None
        visitor.file = visitor.job = visitor.settings = None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def leave(self, request: gr.Request):
        """Delete all that was kept for a page that was closed."""
        self.forget_image(self.visitors.pop(request.session_hash, Visitor()))

    def start(self, request: gr.Request, *settings):
        """Ask for the image to be denoised; the job starts when its number has arrived on the page."""
        visitor = self.visitor(request)
        if visitor.file is None:
            raise page_error(ValueError("there is no image: drop one first."), self.root)
        if None in settings[:-1]:  # only the tile size can be empty
            raise page_error(ValueError("a setting is missing."), self.root)
        visitor.job, visitor.settings = next(self.numbers), Settings(*settings)
        return visitor.job, gr.Button(interactive=True)

    def restart(self, request: gr.Request, *settings):
        """Start again with changed settings, if there was a job before."""
        if self.visitor(request).settings in (None, Settings(*settings)):
            return gr.skip(), gr.skip()
        return self.start(request, *settings)

    def cancel(self, request: gr.Request):
        """Stop the visitor's job, or take it out of the queue."""
        visitor = self.visitor(request)
        visitor.job = visitor.settings = None
        return gr.Button(interactive=False), facts_html({"Image": "Cancelled."})

    def can_cancel(self, request: gr.Request):
        return gr.Button(interactive=self.visitor(request).job is not None)

    def raise_if_cancelled(self, *_):
        visitor, job = self.running
        if visitor.job != job:
            raise JobCancelled

    def denoise(self, request: gr.Request, job: int, progress: gr.Progress = gr.Progress()):  # noqa: B008
        """Run a job, unless it was cancelled or replaced while it waited."""
        run = copy_context().run  # the context tells Gradio which page to show progress on
        return self.worker.submit(run, self.run_job, self.visitor(request), job, progress).result()

    def run_job(self, visitor: Visitor, job: int, progress: gr.Progress):
        if job is None or visitor.job != job:
            return gr.skip(), gr.skip()
        folder = visitor.folder
        self.running = visitor, job
        try:
            return self.denoise_image(visitor.file, visitor.before, visitor.settings, progress)
        except Exception as error:
            if visitor.job != job:  # cancelled, perhaps by deleting its files
                return gr.skip(), gr.skip()
            raise page_error(error, folder / "image") from error
        finally:
            if visitor.job == job:
                visitor.job = None
            if visitor.folder != folder:
                shutil.rmtree(folder, ignore_errors=True)

    def denoise_image(self, file: Path, before: str, settings: Settings, progress: gr.Progress) -> tuple[dict, str]:
        """Denoise the image as `gdd denoise` does; return what the viewer shows, and the facts beside it."""
        progress(0, desc="Reading the image")
        pipe = copy.copy(self.load(settings.model))  # so that this job's settings do not affect the next
        configure(pipe, settings.steps, settings.rule, settings.tile_size)
        self.raise_if_cancelled()
        like = read_image(file, MAX_PIXELS)
        self.raise_if_cancelled()
        extension = output_suffix(file)
        if extension.lower() not in FORMATS:
            extension = f".{like.format}"
        image, noisy, clean = like, like.pixels, None

        folder = file.parent / secrets.token_hex(4)  # a new name each time, since browsers cache files by name
        folder.mkdir()
        if settings.make_noisy:
            progress(0, desc="Making it noisy")
            if noisy.shape[0] * noisy.shape[1] > MAX_SIMULATED_MEGAPIXELS * 1e6:
                raise ValueError(f"Noise can be simulated on at most {MAX_SIMULATED_MEGAPIXELS} megapixels.")
            try:
                clean, noisy = simulate_pixels(noisy, settings.preset, settings.iso, SEED)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            before, like = write_preview(folder / "noisy.png", noisy), None
            self.raise_if_cancelled()

        result = folder / f"{file.stem}_denoised{extension}"
        check_output(result, noisy, like)  # before the work, not after it
        start = time.monotonic()

        def show(done: int, total: int):
            seconds = (time.monotonic() - start) / done * (total - done)
            progress((done, total), desc=f"Denoising, about {seconds:.0f} s left", unit="tiles")

        show_progress(pipe, show)
        progress(0, desc="Denoising")
        [denoised] = denoise_pixels(pipe, [noisy], num_inference_steps=settings.steps, strength=settings.strength)
        seconds = time.monotonic() - start
        progress(1, desc="Writing the result")
        write_image(result, denoised, like=like)
        after = write_preview(folder / "denoised.png", denoised)

        megapixels = noisy.shape[0] * noisy.shape[1] / 1e6
        steps = f"{settings.steps} step{'s' * (settings.steps > 1)}"
        # only now, since writing adds notes
        facts = describe(file.name, image) | {
            "Time": f"{seconds:.2f} s, {megapixels / seconds:.2f} megapixels a second",
            "Device": f"{pipe.device}, {str(pipe.dtype).removeprefix('torch.')}",
            "Model": f"{self.loaded[0]}; {steps}, rule {settings.rule}",
        }
        if clean is not None:
            facts |= measure(clean, noisy, denoised)
        self.raise_if_cancelled()
        for old in file.parent.glob("*/"):
            if old != folder:
                shutil.rmtree(old)
        shown = {"name": file.name, "before": before, "after": after}
        return shown | {"download": file_url(result), "file": result.name}, facts_html(facts)


def event_value(event: gr.EventData, name: str):
    """Return a value that the page's JavaScript has sent; None if a visitor has sent something else."""
    data = event._data  # its attributes raise errors of several kinds
    return data.get(name) if isinstance(data, dict) else None


def page_error(error: Exception, folder: Path) -> gr.Error:
    """Return an error as the page shows it: in one sentence, with the names of files as the visitor knows them."""
    sentence = first_line(error).replace("(max_pixels)", "on this page; the command gdd denoise takes more")
    if str(folder) in sentence:
        sentence = sentence.replace(f"{folder}{os.sep}", "")
    else:
        sentence = sentence[0].upper() + sentence[1:]
    is_known = isinstance(error, OSError | ValueError)
    return gr.Error(escape(sentence), duration=20, print_exception=not is_known)


def write_preview(path: Path, pixels: np.ndarray) -> str:
    """Write pixels [H, W, C] as an 8-bit PNG, quickly, for a browser to show; return its URL."""
    Image.fromarray(for_display(pixels)).save(path, compress_level=1)
    return file_url(path)


def file_url(path: Path) -> str:
    return f"gradio_api/file={quote(path.as_posix())}"


def describe(name: str, image: ImageFile) -> dict[str, str]:
    height, width, _ = image.pixels.shape
    size = f"{width} x {height}, {width * height / 1e6:.2g} megapixels"
    facts = {"Image": f"{name}: {size}, {image.format.upper()} of {image.bits} bits"}
    return facts | ({"Note": f"{'; '.join(image.notes)}."} if image.notes else {})


def measure(clean: np.ndarray, noisy: np.ndarray, denoised: np.ndarray) -> dict[str, str]:
    """Measure noisy and denoised pixels against the ground truth."""
    clean, noisy, denoised = (pixels_to_tensor(pixels)[None] for pixels in (clean, noisy, denoised))
    return {
        "PSNR": f"{psnr(noisy, clean).item():.2f} dB noisy, {psnr(denoised, clean).item():.2f} dB denoised",
        "SSIM": f"{ssim(noisy, clean).item():.3f} noisy, {ssim(denoised, clean).item():.3f} denoised",
    }


def facts_html(facts: dict[str, str]) -> str:
    """Return a small table. Not a template of gr.HTML, which would run a file name with `${}` as JavaScript."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"
