"""
The page of `gdd demo`: drop a picture on it, and see before and after.

One [`Page`] serves all visitors. Each has a folder, which is deleted when they leave; one picture is worked on at a
time, and the others wait in Gradio's queue. The two parts of the page for which Gradio has no component, where
pictures are dropped and where they are looked at, are the HTML and JavaScript in `demo_files`.
"""

import itertools
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr
import numpy as np
import pyvips
import torch
from PIL import Image

from ...files import FORMATS, ImageFile, check_output, for_display, read_image, write_image
from ...metrics import psnr, ssim
from ...pipeline_real_denoise import RealDenoisePipeline
from ..denoising import choose_device, denoise_pixels, find_model, load_pipeline, one_line, set_up, simulate_pixels


FILES = Path(__file__).parent
EXAMPLES = ("coffee_noisy.jpg", "coffee_clean.jpg")
MAX_MEGABYTES = 200
MAX_MEGAPIXELS = 100
MAX_SIMULATED_MEGAPIXELS = 12  # simulated camera and SSIM hold dozens of copies of a picture
MAX_STEPS = 10
MAX_TILE_SIZE = 2048
PRESETS = [("Phone", "phone"), ("Large camera", "camera"), ("Either", "mixed"), ("White noise", "gaussian")]
SEED = 2  # one camera and light for all, so that settings can be compared
ISO = [100, 200, 400, 800, 1600, 3200, 6400, 12800]
HELP = {
    "strength": "0 leaves the picture as it is, 1 takes off all noise.",
    "steps": "How often the picture is gone over; each step takes as long as the first.",
    "make_noisy": "For a clean picture: shows how near to it the denoiser comes back.",
    "preset": "What takes the noisy picture.",
    "iso": "The higher, the noisier. White noise has none.",
    "rule": "What steps add up to: improved is the mean of their guesses, origin the last one.",
    "tile_size": "Side in pixels of the pieces that a large picture is cut into; smaller ones need less memory.",
    "model": "A folder, or a repo on the Hugging Face Hub such as org/name; empty is the bundled one. Press Enter.",
}

# Gradio's own colours, but dark enough on light and light enough on dark to be read: 4.5 to 1 at least
THEME = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_100",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
)

# Templates of gr.HTML, to which curly brackets mean something in pairs and after a dollar
DROP = """
<label class="drop">
  <input type="file" accept="image/*,.tif,.tiff,.avif,.heic">
  <strong>Drop a picture on the page, paste it, or choose a file</strong>
  <span>JPEG, PNG, TIFF, WebP or AVIF. It stays on the machine that runs this page, and is deleted when you close it.
  </span>
</label>
<p class="examples">Or try
  <button type="button" data-number="0">a noisy photograph</button> or
  <button type="button" data-number="1">a clean one</button>
</p>
<p class="state" role="status"></p>
"""
FACTS = '<div role="status">${value}</div>'
VIEWER = """
<div class="viewer" hidden>
  <div class="bar">
    <span role="group" aria-label="What to show">
      <button type="button" data-view="compare" aria-pressed="true">Before and after</button>
      <button type="button" data-view="removed" aria-pressed="false">What was removed</button>
    </span>
    <span role="group" aria-label="Zoom">
      <button type="button" data-zoom="out" aria-label="Zoom out">&minus;</button>
      <output class="zoom">100 %</output>
      <button type="button" data-zoom="in" aria-label="Zoom in">+</button>
      <button type="button" data-zoom="one">1:1</button>
      <button type="button" data-zoom="fit">Fit</button>
    </span>
    <a class="download" hidden>Download</a>
  </div>
  <canvas tabindex="0" role="img"></canvas>
  <label class="split" hidden>
    <input type="range" min="0" max="1000" value="500" aria-label="Where before ends and after begins">
    <span>Before</span> <span>After</span>
  </label>
  <label class="gain" hidden>
    <input type="range" min="1" max="32" value="4" aria-label="How much the difference is amplified">
    <output></output>
  </label>
  <p class="hint">Drag to move, scroll or pinch to zoom. Keys: arrows, + and &minus;, 1 for 1:1, 0 to fit.</p>
</div>
"""


class Stopped(Exception):
    """Nobody waits for the result any more."""


@dataclass
class Model:
    """A pipeline, and the settings that it came with."""

    name: str
    pipe: RealDenoisePipeline
    steps: int
    rule: str
    tile_size: int | None


@dataclass(frozen=True)
class Settings:
    """The controls of the page, in the order of [`Page.build`]."""

    strength: float
    steps: int
    make_noisy: bool
    preset: str
    iso: int
    model: str
    rule: str
    tile_size: int | None


@dataclass
class Visitor:
    """What the server keeps of an open page."""

    folder: Path | None = None  # of the picture and all that is made of it
    picture: Path | None = None
    before: str | None = None  # URL of what the viewer shows of it
    wanted: int | None = None  # number of the last job, until it is done; any other one is to stop
    settings: Settings | None = None  # of the last job


class PageProgress:
    """A pipeline's `progress_bar` that tells the page how much is done, and how long the rest will take."""

    def __init__(self, show: Callable):
        self.show = show

    def __call__(self, total: int):
        self.done, self.total, self.start = 0, total, time.monotonic()
        return self

    def update(self, tiles: int):
        self.done += tiles
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        self.show((self.done, self.total), desc=f"Denoising, about {left:.0f} s left", unit="tiles")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


class Page:
    """
    What happens when something on the page is pressed.

    Args:
        root (`Path`): The folder of all files that visitors send and get; Gradio serves them to who knows their names.
        model (`str`, *optional*): What the page begins with: a folder or a Hub repo; the bundled model if not given.
        device, dtype (`str`, defaults to `"auto"`): As for `gdd denoise`.
        one_model (`bool`, defaults to `False`): Whether visitors get this model alone. Any other one would be loaded
            with the rights of who serves the page: from this machine's folders, by its login to the Hub, at any size.

    Raises:
        `OSError`: When the model cannot be loaded.
        `ValueError`: When there is no such device.
    """

    def __init__(
        self,
        root: Path,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        one_model: bool = False,
    ):
        self.root, self.one_model = root, one_model
        self.device, self.dtype = choose_device(device, dtype)
        # One thread for all jobs: Gradio begins the next one while a cancelled one still ends, and the C library keeps
        # memory for each thread that has ever asked for much.
        self.worker = ThreadPoolExecutor(max_workers=1)
        self.running: tuple[Visitor, int] | None = None
        self.visitors: dict[str, Visitor] = {}
        self.jobs = itertools.count(1)
        self.models: dict[str, Model] = {}
        self.first_model = model or ""
        self.load(self.first_model)

    def load(self, name: str) -> Model:
        """A model by its name; only the last one stays in memory."""
        if self.one_model:
            name = self.first_model
        model = self.models.get(name)
        if model is None:
            pipe = load_pipeline(find_model(name or None), dtype=self.dtype).to(self.device)
            for layer in pipe.unet.modules():  # a job can end before any layer, so within a tile
                layer.register_forward_pre_hook(self.raise_if_stopped)
            defaults = pipe.config.default_num_inference_steps, pipe.scheduler.config.step_rule, pipe.config.tile_size
            model = Model(name or "gdd-small, bundled", pipe, *defaults)
            self.models = {name: model}
        return model

    def raise_if_stopped(self, *_):
        visitor, job = self.running
        if visitor.wanted != job:
            raise Stopped

    def upload(self, request: gr.Request, event: gr.EventData):
        """Take the file that the browser has just sent."""
        path = Path(event.path).resolve()
        if not path.is_relative_to(self.root) or not path.is_file():
            raise told(ValueError("the picture did not arrive; choose it again."), self.root)
        return self.open(request, path, shutil.move)

    def select(self, request: gr.Request, event: gr.EventData):
        """Take one of the examples."""
        return self.open(request, FILES / EXAMPLES[event.number], shutil.copy)

    def open(self, request: gr.Request, path: Path, take: Callable):
        """Make a file the picture of the visitor, in place of the last one, and show it."""
        visitor = self.visitors.setdefault(request.session_hash, Visitor())
        folder = self.root / secrets.token_hex(16)
        (folder / "picture").mkdir(parents=True)
        try:
            file = Path(take(path, folder / "picture" / path.name))
            check_pixels(file)
            picture = read_image(file)
            before = write_preview(folder / "before.png", picture.pixels)
        except Exception as error:
            shutil.rmtree(folder)
            raise told(error, folder / "picture") from error
        self.forget_picture(visitor)
        visitor.folder, visitor.picture, visitor.before = folder, file, before
        if request.session_hash not in self.visitors:  # left meanwhile
            self.forget_picture(visitor)
        return {"name": file.name, "before": before}, figures({"Picture": describe(file.name, picture)})

    def forget_picture(self, visitor: Visitor):
        """Delete the files of a visitor; what a job has yet to write, it deletes itself."""
        folder, visitor.folder = visitor.folder, None
        visitor.picture = visitor.wanted = visitor.settings = None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def ask(self, request: gr.Request, *settings):
        """Ask for the picture to be denoised; the job starts when its number has arrived on the page."""
        visitor = self.visitors.get(request.session_hash)
        if visitor is None or visitor.picture is None:
            raise told(ValueError("there is no picture: drop one first."), self.root)
        visitor.wanted, visitor.settings = next(self.jobs), Settings(*settings)
        return visitor.wanted, gr.Button(interactive=True)

    def ask_again(self, request: gr.Request, *settings):
        """The same when settings have changed, if there was a job before."""
        visitor = self.visitors.get(request.session_hash)
        if visitor is None or visitor.settings in (None, Settings(*settings)):
            return gr.skip(), gr.skip()
        return self.ask(request, *settings)

    def cancel(self, request: gr.Request):
        """End the job that runs, or forget the one that waits."""
        visitor = self.visitors.get(request.session_hash)
        if visitor is not None:
            visitor.wanted = visitor.settings = None
        return gr.Button(interactive=False), figures({"Picture": "Cancelled."})

    def can_cancel(self, request: gr.Request):
        visitor = self.visitors.get(request.session_hash)
        return gr.Button(interactive=visitor is not None and visitor.wanted is not None)

    def leave(self, request: gr.Request):
        """The page was closed: delete all that was kept for it."""
        if request.session_hash in self.visitors:
            self.forget_picture(self.visitors.pop(request.session_hash))

    def set_defaults(self, name: str):
        """Load a model, and set the controls as it wants them."""
        try:
            model = self.load(name.strip())
        except Exception as error:
            raise told(error, self.root) from error
        return (
            gr.Slider(value=model.steps, maximum=max(MAX_STEPS, model.steps)),
            gr.Radio(value=model.rule),
            gr.Number(value=model.tile_size, maximum=max(MAX_TILE_SIZE, model.tile_size or 0)),
        )

    def denoise(self, request: gr.Request, job: int, progress: gr.Progress = gr.Progress()):  # noqa: B008
        """Do a job, unless another one, or none, is wanted by then."""
        run = copy_context().run  # in which Gradio finds the page to show progress on
        return self.worker.submit(run, self.do_job, request.session_hash, job, progress).result()

    def do_job(self, session: str, job: int, progress: gr.Progress):
        visitor = self.visitors.get(session)
        if visitor is None or visitor.wanted != job:
            return gr.skip(), gr.skip()
        folder = visitor.folder
        self.running = visitor, job
        try:
            return self.work(visitor, progress)
        except Exception as error:
            if visitor.wanted != job:  # it was stopped, or its files were deleted, which comes to the same
                return gr.skip(), gr.skip()
            raise told(error, folder / "picture") from error
        finally:
            if visitor.wanted == job:
                visitor.wanted = None
            if visitor.folder != folder:
                shutil.rmtree(folder, ignore_errors=True)

    def work(self, visitor: Visitor, progress: gr.Progress) -> tuple[dict, str]:
        """Denoise the picture as `gdd denoise` does; what the viewer shows of it, and the figures."""
        settings, file = visitor.settings, visitor.picture
        progress(0, desc="Reading the picture")
        model = self.load(settings.model.strip())
        model.pipe.disable_tiling()  # which another visitor may have wanted
        set_up(model.pipe, settings.steps, settings.rule, settings.tile_size or model.tile_size)
        self.raise_if_stopped()
        like = read_image(file)
        self.raise_if_stopped()
        noisy, truth, before = like.pixels, None, visitor.before
        extension = file.suffix if file.suffix.lower() in FORMATS else f".{like.format}"
        facts = {"Picture": describe(file.name, like)}

        folder = file.parent / secrets.token_hex(4)  # a new name, for browsers keep what they had under an old one
        folder.mkdir()
        if settings.make_noisy:
            progress(0, desc="Making it noisy")
            if noisy.shape[0] * noisy.shape[1] > MAX_SIMULATED_MEGAPIXELS * 1e6:
                raise ValueError(f"Noise can be simulated on at most {MAX_SIMULATED_MEGAPIXELS} megapixels.")
            try:
                truth, noisy = simulate_pixels(noisy, settings.preset, settings.iso, SEED)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            like, before = None, write_preview(folder / "noisy.png", noisy)
            self.raise_if_stopped()

        result = folder / f"{file.stem}_denoised{extension}"
        check_output(result, noisy, like)  # before the long part
        model.pipe.progress_bar = PageProgress(progress)
        start = time.monotonic()
        denoised = denoise_pixels(model.pipe, noisy, num_inference_steps=settings.steps, strength=settings.strength)
        seconds = time.monotonic() - start
        progress(1, desc="Writing the result")
        write_image(result, denoised, like=like)
        after = write_preview(folder / "denoised.png", denoised)

        megapixels = noisy.shape[0] * noisy.shape[1] / 1e6
        precision = str(model.pipe.dtype).removeprefix("torch.")
        facts |= {
            "Time": f"{seconds:.2f} s, {megapixels / seconds:.2f} megapixels a second",
            "Device": f"{model.pipe.device}, {precision}",
            "Model": f"{model.name}; {settings.steps} step{'s' * (settings.steps > 1)}, rule {settings.rule}",
        }
        if truth is not None:
            facts |= quality(truth, noisy, denoised)
        self.raise_if_stopped()
        for old in file.parent.glob("*/"):
            if old != folder:
                shutil.rmtree(old)
        shown = {"name": file.name, "before": before, "after": after}
        return shown | {"download": url_of(result), "file": result.name}, figures(facts)

    def build(self) -> gr.Blocks:
        """The page itself."""
        model = self.load(self.first_model)
        script = (FILES / "page.js").read_text("utf-8")
        with gr.Blocks(title="gdd", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
            gr.Markdown("# Take the noise off a photograph")
            with gr.Row(elem_id="page"):
                with gr.Column(elem_id="picture"):
                    drop = gr.HTML(
                        html_template=DROP,
                        js_on_load=f"{script}dropZone(element, props, upload, trigger);",
                        apply_default_css=False,
                        max_megabytes=MAX_MEGABYTES,
                    )
                    with gr.Row():
                        start = gr.Button("Denoise", variant="primary", min_width=100)
                        cancel = gr.Button("Cancel", interactive=False, min_width=100)
                    facts = gr.HTML("", html_template=FACTS, elem_id="facts", apply_default_css=False)
                with gr.Column(elem_id="viewer"):
                    viewer = gr.HTML(
                        html_template=VIEWER,
                        js_on_load=f"{script}viewer(element, props, watch);",
                        apply_default_css=False,
                    )
                with gr.Column(elem_id="controls"):
                    strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", info=HELP["strength"])
                    steps = gr.Slider(
                        1,
                        max(MAX_STEPS, model.steps),
                        model.steps,
                        step=1,
                        label="Quality (steps)",
                        info=HELP["steps"],
                    )
                    make_noisy = gr.Checkbox(label="Make it noisy first", info=HELP["make_noisy"])
                    with gr.Group(visible=False) as camera:
                        preset = gr.Radio(PRESETS, value="phone", label="Camera", info=HELP["preset"])
                        iso = gr.Dropdown(ISO, value=800, label="ISO", info=HELP["iso"])
                    with gr.Accordion("More", open=False):
                        rule = gr.Radio(["improved", "origin"], value=model.rule, label="Rule", info=HELP["rule"])
                        tile_size = gr.Number(
                            model.tile_size,
                            precision=0,
                            minimum=1,
                            maximum=max(MAX_TILE_SIZE, model.tile_size or 0),
                            label="Tile size",
                            info=HELP["tile_size"],
                        )
                        name = gr.Textbox(
                            self.first_model,
                            label="Model",
                            placeholder="gdd-small, bundled",
                            info=HELP["model"],
                            visible=not self.one_model,
                        )

            settings = [strength, steps, make_noisy, preset, iso, name, rule, tile_size]
            job = gr.State()
            quick = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
            slow = {"concurrency_limit": 1, "show_progress_on": facts, "api_visibility": "private"}

            drop.upload(self.upload, None, [viewer, facts], concurrency_id="open", **slow)
            drop.select(self.select, None, [viewer, facts], concurrency_id="open", **slow)
            start.click(self.ask, settings, [job, cancel], **quick)
            changed = [
                strength.release,
                steps.release,
                iso.input,
                preset.input,
                rule.input,
                tile_size.submit,
                tile_size.blur,
                make_noisy.input,
            ]
            gr.on(changed, self.ask_again, settings, [job, cancel], trigger_mode="always_last", **quick)
            make_noisy.change(lambda on: gr.Group(visible=on), make_noisy, camera, **quick)
            loaded = name.submit(self.set_defaults, name, [steps, rule, tile_size], **slow)
            loaded.success(self.ask_again, settings, [job, cancel], **quick)

            work = job.change(self.denoise, job, [viewer, facts], trigger_mode="always_last", **slow)
            work.then(self.can_cancel, None, cancel, **quick)
            cancel.click(self.cancel, None, [cancel, facts], cancels=[work], **quick)
            page.unload(self.leave)
        return page


def launch(
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
):
    """
    Serve the page until Ctrl+C or SIGTERM, and delete all files of its visitors then.

    Args:
        model (`str`, *optional*): What the page begins with: a folder or a Hub repo; the bundled model if not given.
        device, dtype (`str`, defaults to `"auto"`): As for `gdd denoise`.
        host (`str`, defaults to `"127.0.0.1"`): Who is served: by default this machine alone, `"0.0.0.0"` the network,
            which gets `model` alone.
        port (`int`, *optional*): The first free one from 7860 on if not given.
        open_browser (`bool`, defaults to `False`): Whether to show the page at once.

    Raises:
        `OSError`: When the model cannot be loaded, or the port is taken.
        `ValueError`: When there is no such device.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gdd-demo-", ignore_cleanup_errors=True) as root:
        os.environ["GRADIO_TEMP_DIR"] = root
        one_model = host not in ("127.0.0.1", "localhost", "::1")
        page = Page(Path(root).resolve(), model, device, dtype, one_model).build()
        try:
            page.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_MEGABYTES * 10**6,
                allowed_paths=[str(FILES)],
                theme=THEME,
                css_paths=FILES / "page.css",
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
        except OSError as error:
            if "empty port" not in str(error):
                raise
            raise OSError(f"port {port or 'after port from 7860 on'} of {host} is taken; try another one.") from None
        print(f"The page is at {page.local_url} and ends with Ctrl+C.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close()


def told(error: Exception, folder: Path) -> gr.Error:
    """An error as the page shows it: in one sentence, with the names of files as the visitor knows them."""
    sentence = one_line(error)
    if str(folder) in sentence:
        sentence = sentence.replace(f"{folder}{os.sep}", "")
    else:
        sentence = sentence[0].upper() + sentence[1:]
    is_known = isinstance(error, OSError | ValueError)
    return gr.Error(escape(sentence), duration=20, print_exception=not is_known)


def check_pixels(file: Path):
    """
    Raise `ValueError` for a picture with more pixels than the page takes, before they are decoded.

    What is no picture at all is left to [`~gdd_diffusers.files.read_image`], which knows how to say so.
    """
    try:
        header = pyvips.Image.new_from_source(pyvips.Source.new_from_file(str(file)), "")
    except pyvips.Error:
        return
    if header.width * header.height > MAX_MEGAPIXELS * 1e6:
        raise ValueError(
            f"{file} has {header.width} x {header.height} pixels; this page takes up to {MAX_MEGAPIXELS} "
            "megapixels, and the command gdd denoise takes more."
        )


def write_preview(path: Path, pixels: np.ndarray) -> str:
    """Write pixels [H, W, C] as an 8-bit PNG, quickly, for a browser to show; its URL."""
    Image.fromarray(for_display(pixels)).save(path, compress_level=1)
    return url_of(path)


def url_of(path: Path) -> str:
    return f"gradio_api/file={quote(path.as_posix())}"


def describe(name: str, picture: ImageFile) -> str:
    height, width, _ = picture.pixels.shape
    megapixels = width * height / 1e6
    return f"{name}: {width} x {height}, {megapixels:.2g} megapixels, {picture.format.upper()} of {picture.bits} bits"


def quality(truth: np.ndarray, noisy: np.ndarray, denoised: np.ndarray) -> dict[str, str]:
    """How near noisy and denoised pixels are to what the simulated camera saw."""
    truth, noisy, denoised = (
        torch.from_numpy(pixels / np.float32(255)).movedim(-1, 0)[None] for pixels in (truth, noisy, denoised)
    )
    return {
        "PSNR": f"{psnr(noisy, truth).item():.2f} dB noisy, {psnr(denoised, truth).item():.2f} dB denoised",
        "SSIM": f"{ssim(noisy, truth).item():.3f} noisy, {ssim(denoised, truth).item():.3f} denoised",
    }


def figures(facts: dict[str, str]) -> str:
    """A small table."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"
