"""The page of `gdd demo` in a real browser, against a real server with a small model."""

import asyncio
import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import make_pipeline
from PIL import Image, ImageCms
from typer.testing import CliRunner

from gdd_diffusers.app import cli
from gdd_diffusers.files import write_image


gr = pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from gdd_diffusers.app.demo.jobs import SEED, Jobs, Settings  # noqa: E402
from gdd_diffusers.app.demo.page import MAX_MEGABYTES, build_page  # noqa: E402
from gdd_diffusers.app.demo.server import LateAnswers, OwnRequestsOnly, quiet  # noqa: E402


pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
SPACE = Path(__file__).parents[1] / "examples" / "space"

# Python imports this when it starts; the server then writes down whom it looks up and talks to.
SPY = """
import os, socket
connect, look_up = socket.socket.connect, socket.getaddrinfo
def note(host):
    with open(os.environ["CONNECTIONS"], "a") as file:
        print(host, file=file)
def noted_connect(self, address):
    note(address[0] if isinstance(address, tuple) else "a file")
    return connect(self, address)
def noted_look_up(host, *args, **kwargs):
    note(host)
    return look_up(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = noted_connect, noted_look_up
note("nobody")
"""

# Controls without a name for those who cannot see them, and texts that stand out from their background by less than
# 4.5 to 1 (WCAG 2.2, 1.4.3).
NAMELESS = """
() => [...document.querySelectorAll("button, input, select, textarea, a, img, canvas")]
  .filter((e) => e.checkVisibility() && e.type !== "hidden")
  .filter((e) => ![e.ariaLabel, e.alt, e.title, e.textContent, ...[...(e.labels ?? [])].map((l) => l.textContent)]
    .some((text) => text?.trim()))
  .map((e) => e.outerHTML.slice(0, 200))
"""
FAINT = """
() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3)
    .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = (e) => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.querySelector("gradio-app"), NodeFilter.SHOW_TEXT);
  const faint = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !e.checkVisibility({ opacityProperty: true })) continue;
    if (e.closest(":disabled, style, script")) continue;
    const [a, b] = [numbers(getComputedStyle(e).color), background(e)].map(luminance).sort((a, b) => b - a);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${texts.currentNode.textContent.trim().slice(0, 60)}`);
  }
  return faint;
}
"""


class Server:
    """`gdd demo` as a process; its temporary files lie in `folder`."""

    def __init__(self, command, folder, cwd=None):
        (folder / "spy").mkdir(parents=True)
        (folder / "spy" / "sitecustomize.py").write_text(SPY)
        self.connections, self.folder = folder / "connections", folder / "files"
        self.connections.touch()
        self.folder.mkdir()
        path = os.pathsep.join([str(folder / "spy"), *filter(None, [os.environ.get("PYTHONPATH")])])
        places = {"TMPDIR": self.folder, "CONNECTIONS": self.connections, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | {name: str(path) for name, path in places.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def files(self):
        """All that visitors have left; Gradio's own empty files do not count."""
        return [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


def command(*options):
    return [sys.executable, "-m", "gdd_diffusers", "demo", "--no-browser", *map(str, options)]


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    server = Server(
        command("--model", model, "--dtype", "float32", "--allow-folders"), tmp_path_factory.mktemp("server")
    )
    yield server
    assert server.stop() == 0
    assert not server.files()
    assert set(server.connections.read_text().split()) - {"127.0.0.1"} == {"nobody"}


@pytest.fixture(scope="module")
def browser(server):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # what Chromium itself would ask of its makers has nothing to do with the page
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()


class Visit:
    """A browser with the page open, and what somebody does there."""

    def __init__(self, browser, server, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        self.requests = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        sync_api.expect.set_options(timeout=120_000)
        self.page.goto(server.url)
        self.page.locator(".drop").wait_for()
        self.canvas = self.page.locator("canvas")
        self.facts = self.page.locator("#facts")
        self.download_link = self.page.get_by_role("link", name="Download")

    def drop(self, path):
        self.page.locator("input[type=file]").set_input_files(path)
        sync_api.expect(self.facts).to_contain_text(path.name)

    def press(self, name):
        self.page.get_by_role("button", name=re.compile(f"^{re.escape(name)}")).click()

    def told(self, sentence):
        return self.page.get_by_text(sentence)

    def denoise(self):
        self.press("Denoise")
        sync_api.expect(self.facts).to_contain_text("megapixels a second")
        sync_api.expect(self.download_link).to_be_visible()

    def download(self):
        with self.page.expect_download() as download:
            self.download_link.click()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    def screen(self):
        """The pixels of the canvas, [H, W, 3]."""
        png = self.page.evaluate("document.querySelector('canvas').toDataURL().split(',')[1]")
        return np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGB"))


@pytest.fixture
def visit(browser, server):
    visits = []

    def visit(**options):
        visits.append(Visit(browser, server, **options))
        return visits[-1]

    yield visit
    for each in visits:
        each.context.close()
        own = server.url.split("/")[2]
        assert {url.split("/")[2] for url in each.requests if not url.startswith(("data:", "blob:"))} == {own}


def photograph(size=(90, 60), channels=3, bits=8, seed=0):
    """Something with edges and noise, [H, W, C]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    scene = np.stack([(x + y) % 40 * 4, x * 255 / size[0], y * 255 / size[1], np.full_like(x, 200)], -1)[
        ..., :channels
    ]
    noisy = np.clip(scene + rng.normal(0, 20, scene.shape), 0, 255)
    return np.uint16(noisy * 257) if bits == 16 else np.uint8(noisy)


def save_photograph(path, **kwargs):
    Image.fromarray(photograph(**kwargs)).save(path)
    return path


def save_kinds(folder):
    """Pictures of many kinds, each in its own way easy to get wrong."""
    write_image(folder / "deep colour.png", photograph(bits=16))
    write_image(folder / "grey.tif", photograph(channels=1, bits=16))
    write_image(folder / "clear.png", photograph(channels=4))
    write_image(folder / "tiny.webp", photograph(size=(3, 2)))
    Image.fromarray(photograph(channels=4), "CMYK").save(folder / "press.jpg")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"  # on its side
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photograph()).save(folder / "upright.jpg", exif=exif, icc_profile=profile, quality=90)
    return sorted(folder.iterdir())


@needs_browser
def test_downloads_equal_the_files_of_the_command_to_the_byte(visit, model, tmp_path):
    page = visit()
    (tmp_path / "in").mkdir()
    for path in save_kinds(tmp_path / "in"):
        page.drop(path)
        page.denoise()
        name, content = page.download()
        arguments = ["denoise", path, "-o", tmp_path / "out" / path.name, "--model", model, "--dtype", "float32"]
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        assert name == f"{path.stem}_denoised{path.suffix}"
        assert content == (tmp_path / "out" / path.name).read_bytes(), path.name


@needs_browser
def test_viewer_shows_the_pixels_at_one_to_one(visit, tmp_path):
    page = visit()
    before = photograph()
    page.drop(save_photograph(tmp_path / "noisy.png"))
    sync_api.expect(page.canvas).to_be_visible()
    height, width = page.screen().shape[:2]
    top, left = height // 2 - 30, width // 2 - 45
    shown = (slice(top, top + 60), slice(left, left + 90))
    np.testing.assert_array_equal(page.screen()[shown], before)
    page.denoise()
    after = np.asarray(Image.open(BytesIO(page.download()[1])))
    assert not np.array_equal(before, after)

    split = page.page.get_by_label("Where before ends")
    split.fill("0")
    np.testing.assert_array_equal(page.screen()[shown], after)
    split.fill("1000")
    np.testing.assert_array_equal(page.screen()[shown], before)
    split.fill("500")
    split.press("ArrowRight")  # the line goes along
    edge = round(0.501 * width) - left
    np.testing.assert_array_equal(page.screen()[shown][:, : edge - 2], before[:, : edge - 2])
    np.testing.assert_array_equal(page.screen()[shown][:, edge + 2 :], after[:, edge + 2 :])

    page.press("What was removed")
    page.page.get_by_label("How much the difference").fill("3")
    removed = np.clip(128 + 3 * (before.astype(int) - after), 0, 255)
    np.testing.assert_array_equal(page.screen()[shown], removed)

    page.press("Before and after")
    split.fill("0")
    page.canvas.focus()
    page.canvas.press("+")
    page.canvas.press("1")  # back
    np.testing.assert_array_equal(page.screen()[shown], after)
    page.press("Fit")
    enlarged = page.screen()
    assert (enlarged[height // 2] != enlarged[0, 0]).any(-1).sum() > 90  # it fills more of the screen than at 1:1


@needs_browser
def test_images_are_dropped_and_pasted_too(visit, tmp_path):
    page = visit()
    content = base64.b64encode(save_photograph(tmp_path / "any.png").read_bytes()).decode()
    for event, names in {"drop": ["dropped.png"], "paste": ["pasted.png"], "drop ": ["one.png", "two.png"]}.items():
        page.page.evaluate(
            """async ([event, names, content]) => {
                const data = new DataTransfer();
                const bytes = await (await fetch(`data:image/png;base64,${content}`)).arrayBuffer();
                for (const name of names) data.items.add(new File([bytes], name));
                const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
                const kind = event === "paste" ? ClipboardEvent : DragEvent;
                document.body.dispatchEvent(new kind(event, options));
            }""",
            [event.strip(), names, content],
        )
        sync_api.expect(page.facts if len(names) == 1 else page.page.locator(".state")).to_contain_text(
            names[0] if len(names) == 1 else "One image at a time"
        )


@needs_browser
def test_large_images_are_moved_by_hand_and_by_key(visit, tmp_path):
    page = visit()
    pixels = photograph(size=(2000, 1500))
    page.drop(save_photograph(tmp_path / "large.png", size=(2000, 1500)))
    sync_api.expect(page.canvas).to_be_visible()
    height, width = page.screen().shape[:2]
    middle = page.screen()[height // 2, width // 2]
    np.testing.assert_array_equal(middle, pixels[750, 1000])
    box = page.canvas.bounding_box()
    page.page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 100, box["y"] + 250)
    page.page.mouse.up()
    np.testing.assert_array_equal(page.screen()[height // 2, width // 2], pixels[800, 1200])
    page.canvas.press("ArrowLeft")
    np.testing.assert_array_equal(page.screen()[height // 2, width // 2], pixels[800, 1150])


@needs_browser
def test_another_strength_runs_again_by_keyboard_and_zero_changes_nothing(visit, tmp_path):
    page = visit()
    page.drop(save_photograph(tmp_path / "noisy.png"))
    page.denoise()
    full = page.download()[1]
    old = page.download_link.get_attribute("href")
    page.page.get_by_label("range slider for Strength").press("Home")
    sync_api.expect(page.download_link).not_to_have_attribute("href", old)
    none = np.asarray(Image.open(BytesIO(page.download()[1])))
    np.testing.assert_array_equal(none, photograph())

    old = page.download_link.get_attribute("href")
    page.page.get_by_label("number input for Strength").fill("0.5")
    page.page.get_by_label("number input for Strength").blur()
    sync_api.expect(page.download_link).not_to_have_attribute("href", old)
    half = np.asarray(Image.open(BytesIO(page.download()[1]))).astype(int)
    full = np.asarray(Image.open(BytesIO(full)))
    assert 0 < np.abs(half - none).mean() < np.abs(full - none.astype(int)).mean()


@needs_browser
def test_controls_start_with_the_defaults_of_the_model(visit, tmp_path):
    page = visit()
    assert page.page.get_by_label("number input for Quality").input_value() == "2"
    page.press("More")
    assert page.page.get_by_label("Tile size").input_value() == "64"
    assert page.page.get_by_role("radio", name="improved").is_checked()
    field = page.page.get_by_role("combobox", name="Model")
    field.fill("gdd-small")
    field.press("Enter")
    sync_api.expect(page.page.get_by_label("Tile size")).to_have_value("1024")
    field.fill(str(tmp_path))
    field.press("Enter")
    sync_api.expect(page.told(f"{tmp_path} is neither the folder of a model nor a model on the Hub.")).to_be_visible()


@needs_browser
def test_made_noisy_the_truth_is_at_hand(visit, tmp_path):
    page = visit()
    page.drop(save_photograph(tmp_path / "clean.png"))
    page.page.get_by_label("Make it noisy first").check()
    page.denoise()
    sync_api.expect(page.facts).to_contain_text(re.compile(r"PSNR.*\d+\.\d\d dB noisy, \d+\.\d\d dB denoised"))
    sync_api.expect(page.facts).to_contain_text(re.compile(r"SSIM.*0\.\d{3} noisy, 0\.\d{3} denoised"))
    arguments = ["simulate", tmp_path / "clean.png", "-o", tmp_path / "noisy.png", "--preset", "phone", "--iso", 800]
    arguments += ["--seed", SEED]
    assert CliRunner().invoke(cli.app, [str(argument) for argument in arguments]).exit_code == 0
    page.page.get_by_label("Where before ends").fill("1000")
    height, width = page.screen().shape[:2]
    shown = page.screen()[height // 2 - 30 : height // 2 + 30, width // 2 - 45 : width // 2 + 45]
    np.testing.assert_array_equal(shown, np.asarray(Image.open(tmp_path / "noisy.png")))


@needs_browser
def test_files_that_are_not_images_give_one_sentence(visit, server, tmp_path):
    page = visit()
    good = save_photograph(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    Image.new("L", (20_000, 6_000)).save(tmp_path / "bomb.png")
    with open(tmp_path / "heavy.png", "wb") as file:
        file.truncate(MAX_MEGABYTES * 10**6 + 1_000_000)

    for name, sentence in {
        "text.jpg": "text.jpg is no JPEG, PNG, TIFF, WebP, AVIF, HEIC or raw image, or is damaged.",
        "cut.png": "cut.png is damaged",
        "bomb.png": "bomb.png has 20000 x 6000 pixels, which is 120 million; the limit for PNG is 100 million on",
    }.items():
        page.page.locator("input[type=file]").set_input_files(tmp_path / name)
        sync_api.expect(page.told(sentence)).to_be_visible()
        assert str(server.folder) not in page.page.content().replace(server.url, "")
    page.page.locator("input[type=file]").set_input_files(tmp_path / "heavy.png")
    sync_api.expect(page.page.get_by_text("heavy.png has 201 MB; this page takes up to 200 MB.")).to_be_visible()
    page.press("Denoise")
    sync_api.expect(page.told("There is no image")).to_be_visible()
    page.drop(good)
    page.page.locator("input[type=file]").set_input_files(tmp_path / "cut.png")
    sync_api.expect(page.told("cut.png is damaged")).to_have_count(2)
    page.denoise()  # the one before is still there
    assert page.download()[0] == "good_denoised.png"


@needs_browser
def test_cancel_in_the_middle_and_two_visitors_at_once(visit, tmp_path):
    first, second = visit(), visit()
    first.drop(save_photograph(tmp_path / "large.jpg", size=(3000, 2000)))
    first.page.get_by_label("number input for Quality").fill("10")
    first.press("Denoise")
    sync_api.expect(first.facts).to_contain_text(re.compile(r"Denoising, about \d+ s left"))
    second.drop(save_photograph(tmp_path / "small.png", seed=1))
    second.press("Denoise")
    sync_api.expect(second.facts).to_contain_text("queue: 1/1")
    first.press("Cancel")
    sync_api.expect(first.facts).to_contain_text("Cancelled.")
    sync_api.expect(second.download_link).to_be_visible()
    sync_api.expect(first.download_link).to_be_hidden()
    assert second.download()[0] == "small_denoised.png"
    sync_api.expect(first.page.get_by_role("button", name="Cancel")).to_be_disabled()
    first.drop(save_photograph(tmp_path / "other.png"))
    first.denoise()
    assert first.download()[0] == "other_denoised.png"


@needs_browser
def test_files_are_deleted_with_the_visit(visit, server, tmp_path):
    page, other = visit(), visit()
    for each in (page, other):
        each.drop(save_photograph(tmp_path / "same.png", seed=7))  # the same file, sent twice
        each.denoise()
    kept = len(server.files())
    assert kept == 2 * 4  # each the upload, two previews and the result
    page.context.close()
    deadline = time.monotonic() + 300
    while len(server.files()) > 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(server.files()) == 4
    other.page.get_by_label("range slider for Strength").press("Home")
    sync_api.expect(other.facts).to_contain_text("megapixels a second")
    assert len(server.files()) == 4  # the old result made room


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(visit, scheme, tmp_path):
    page = visit(color_scheme=scheme, viewport={"width": 390, "height": 844})
    page.press("a noisy photograph")
    sync_api.expect(page.canvas).to_be_visible()
    page.page.get_by_label("Make it noisy first").check()
    page.press("More")
    page.denoise()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.page.evaluate(NAMELESS) == []
    assert page.page.evaluate(FAINT) == []


def test_cancelled_job_ends_before_the_next_layer(model, tmp_path):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32")
    someone = SimpleNamespace(session_hash="someone")
    jobs.open(someone, save_photograph(tmp_path / "noisy.png", size=(200, 150)), shutil.copy)
    unet = jobs.load(str(model)).unet
    entered = []
    unet.conv_in.register_forward_hook(lambda *_: entered.append("first layer"))
    unet.mid_block.resnets[0].conv1.register_forward_hook(lambda *_: jobs.cancel(someone))
    unet.conv_out.register_forward_hook(lambda *_: entered.append("last layer"))
    settings = Settings(1, 2, False, "phone", 1600, str(model), "improved", 64)
    job, _ = jobs.start(someone, *settings)
    assert jobs.denoise(someone, job, progress=lambda *_, **__: None) == (gr.skip(), gr.skip())
    assert set(entered) == {"first layer"}
    assert not list(tmp_path.rglob("*_denoised*"))


def test_what_the_result_cannot_hold_is_said_beside_it(model, tmp_path):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32")
    someone = SimpleNamespace(session_hash="someone")
    write_image(tmp_path / "deep.jpg", photograph(bits=16), format="png")
    jobs.open(someone, tmp_path / "deep.jpg", shutil.copy)
    job, _ = jobs.start(someone, 0, 1, False, "phone", 1600, str(model), "improved", 64)
    _, facts = jobs.denoise(someone, job, progress=lambda *_, **__: None)
    assert "its 16 bits became 8, all that jpeg holds." in facts


def test_no_name_of_an_upload_is_that_of_a_file_of_the_page(model, tmp_path):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32")
    for name in ("before.png", "noisy.png"):
        write_image(tmp_path / name, photograph(bits=16))
        jobs.open(SimpleNamespace(session_hash="someone"), tmp_path / name, shutil.copy)
        file = jobs.visitors["someone"].file
        assert file.name == name and file.read_bytes() == (tmp_path / name).read_bytes()


def test_settings_of_one_visitor_are_not_those_of_the_next(tmp_path):
    make_pipeline(tile_size=None, tile_overlap=16).save_pretrained(tmp_path / "model")
    jobs = Jobs(tmp_path, str(tmp_path / "model"), "cpu", "float32")
    unet = jobs.load(str(tmp_path / "model")).unet
    photo, numbers, counts = save_photograph(tmp_path / "a.png", size=(90, 90)), [], []
    for session, tile_size in (("one", 32), ("two", None)):
        visitor = SimpleNamespace(session_hash=session)
        jobs.open(visitor, photo, shutil.copy)
        settings = Settings(1, 1, False, "phone", 1600, str(tmp_path / "model"), "improved", tile_size)
        numbers.append(jobs.start(visitor, *settings)[0])
        parts = []
        hook = unet.conv_in.register_forward_hook(lambda *_, parts=parts: parts.append(1))
        jobs.denoise(visitor, numbers[-1], progress=lambda *_, **__: None)
        hook.remove()
        counts.append(len(parts))
    assert counts[0] > counts[1] == 1  # tiles or bands, and the whole image
    assert numbers[0] != numbers[1]


def test_strangers_choose_no_model(model, tmp_path):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32", one_model=True)
    assert jobs.load("org/huge") is jobs.load(str(model)) is jobs.load(str(tmp_path))


def test_server_takes_no_path_that_it_did_not_give(model, tmp_path):
    jobs = Jobs(tmp_path / "root", str(model), "cpu", "float32")
    secret = save_photograph(tmp_path / "secret.png")
    for path in (secret, tmp_path / "root" / ".." / "secret.png", tmp_path / "root" / "missing.png"):
        with pytest.raises(gr.Error, match="did not arrive"):
            jobs.open_upload(SimpleNamespace(session_hash="someone"), gr.EventData(None, {"path": str(path)}))
    assert secret.exists()


@pytest.mark.parametrize("number", [None, -1, 2, "0", [], float("nan")])
def test_an_example_that_is_not_there_is_named(model, tmp_path, number):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32")
    for data in ({"number": number}, {}, None, 5):
        with pytest.raises(gr.Error, match="There is no such example") as error:
            jobs.open_example(SimpleNamespace(session_hash="someone"), gr.EventData(None, data))
        assert not error.value.print_exception


@pytest.mark.parametrize("path", [None, "", ".", "\0", 3, [], "a" * 5000])
def test_an_upload_that_is_not_there_is_named(model, tmp_path, path):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32")
    for data in ({"path": path}, {}, None, 5):
        with pytest.raises(gr.Error, match="did not arrive") as error:
            jobs.open_upload(SimpleNamespace(session_hash="someone"), gr.EventData(None, data))
        assert not error.value.print_exception


def test_settings_that_are_missing_are_named(model, tmp_path):
    jobs, someone = Jobs(tmp_path, str(model), "cpu", "float32"), SimpleNamespace(session_hash="someone")
    assert jobs.denoise(someone, None) == (gr.skip(), gr.skip())
    jobs.open(someone, save_photograph(tmp_path / "a.png"), shutil.copy)
    with pytest.raises(gr.Error, match="setting is missing"):
        jobs.start(someone, None, 1, False, "phone", None, "", "improved", None)


def test_a_slow_file_keeps_its_own_visitor_waiting_only(model, tmp_path):
    jobs = Jobs(tmp_path, str(model), "cpu", "float32")
    photo, slow, other = save_photograph(tmp_path / "a.png"), *(SimpleNamespace(session_hash=name) for name in "ab")
    started, finish = threading.Event(), threading.Event()

    def take_slowly(*args):
        started.set()
        finish.wait(300)
        return shutil.copy(*args)

    with ThreadPoolExecutor() as executor:
        first = executor.submit(jobs.open, slow, photo, take_slowly)
        started.wait(300)
        with pytest.raises(gr.Error, match="still being opened"):
            jobs.open(slow, photo, shutil.copy)
        assert jobs.open(other, photo, shutil.copy)[0]["name"] == "a.png"
        finish.set()
        assert first.result()[0]["name"] == "a.png"
    assert jobs.open(slow, photo, shutil.copy)[0]["name"] == "a.png"
    limits = {fn.name: fn.concurrency_limit for fn in build_page(jobs).fns.values()}
    assert limits["open_upload"] > 1 and limits["open_example"] > 1


def test_requests_that_the_page_would_not_send_print_nothing(model, tmp_path):
    page = quiet(build_page(Jobs(tmp_path, str(model), "cpu", "float32")))
    start = next(fn for fn in page.fns.values() if fn.name == "start")
    without = next(fn for fn in page.fns.values() if fn.fn is None)  # of the browser alone
    settings = [1, 1, False, "phone", 800, "", "improved", 64]
    wrong = [(start, []), (start, settings[:3]), (start, ["x"] * 8), (start, [1e308, *settings[1:]]), (without, [])]
    with ThreadPoolExecutor(1) as pool:  # the browser of other tests keeps an event loop in this thread
        for fn, values in wrong:
            with pytest.raises(gr.Error, match="does not send such requests|greater than maximum value 1") as error:
                pool.submit(asyncio.run, page.process_api(fn, values)).result()
            assert not error.value.print_exception


def test_an_event_is_answered_after_what_was_sent_before():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start"})

    async def ask(path):
        async def send(message):
            sent.append(path)

        await LateAnswers(app)({"type": "http", "path": f"/gradio_api/queue/{path}"}, None, send)

    async def ask_both():
        await asyncio.gather(ask("join"), ask("data"))

    with ThreadPoolExecutor(1) as pool:  # the browser of other tests keeps an event loop in this thread
        pool.submit(asyncio.run, ask_both()).result()
    assert sent == ["data", "join"]


def test_folders_are_loaded_only_if_that_was_allowed(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    jobs = Jobs(tmp_path, None, "cpu", "float32")
    for folder in (model, tmp_path / "missing"):
        with pytest.raises(OSError, match=f"^Could not get {folder} from the Hub: "):
            jobs.load(str(folder))
    jobs = Jobs(tmp_path, None, "cpu", "float32", allow_folders=True)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=f"^{folder} is neither the folder of a model nor a model on the Hub.$"):
            jobs.load(str(folder))
    assert jobs.load(str(model)).config.tile_size == 64


def test_requests_of_other_sites_are_refused(server):
    own = server.url.removeprefix("http://")
    port = int(own.rpartition(":")[2])

    def status(method="GET", path="/", body=None, **headers):
        connection = HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        assert answer.status != 403 or "evil" not in str(answer.headers)
        return answer.status

    assert status() == status(Host=f"localhost:{port}") == status(Origin=f"http://{own}") == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", "[", ""):
        assert status(Host=host) == 403
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    body = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--x--\r\n'
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"https://evil.example:{port}", "http://["):
        assert status(Origin=origin) == 403
        assert status("OPTIONS", "/gradio_api/queue/join", Origin=origin) == 403
        assert status("POST", "/gradio_api/queue/join", "{}", Origin=origin) == 403
        assert status("POST", "/gradio_api/upload", body, Origin=origin, **form) == 403
    assert not any(path.name == "a.png" for path in server.files())


def test_a_page_for_the_network_answers_to_its_addresses_and_names(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "me-gdd.hf.space")
    gate = OwnRequestsOnly(None, "0.0.0.0")
    name = socket.gethostname()
    for host in (
        "192.168.0.2:7860",
        "[fe80::1]:7860",
        f"{name}:7860",
        f"{name}.local",
        "localhost",
        "me-gdd.hf.space",
    ):
        assert gate.is_own(host, [f"http://{host}"])
    assert not gate.is_own("evil.example:7860", [])
    assert not gate.is_own("192.168.0.2:7860", ["http://evil.example:7860"])


def test_what_keeps_the_page_from_opening_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # which the page sets, as it does the handler of SIGTERM
    handler = signal.getsignal(signal.SIGTERM)

    def run(*options):
        result = CliRunner().invoke(cli.app, ["demo", "--no-browser", *map(str, options)])
        signal.signal(signal.SIGTERM, handler)
        assert isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, " ".join(result.output.split())

    code, said = run("--model", tmp_path)
    assert code == 1 and f"cannot load the model {tmp_path}" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = run("--model", model, "--port", port)
    assert code == 1 and f"port {port} of 127.0.0.1 is taken" in said
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("gdd_diffusers.app.demo")]:
        monkeypatch.delitem(sys.modules, name)
    code, said = run()
    assert code == 1 and 'pip install "gdd-diffusers[demo]"' in said


def test_space_runs_from_the_files_its_readme_names(tmp_path):
    """Its files and the package beside them, and nothing that is installed."""
    readme = (SPACE / "README.md").read_text("utf-8")
    assert "sdk: gradio" in readme and "app_file: app.py" in readme
    for upload in ("examples/space .", "src/gdd_diffusers gdd_diffusers"):
        source, target = upload.split()
        assert f"hf upload ORG/NAME {upload}" in readme
        shutil.copytree(SPACE.parents[1] / source, tmp_path / "space" / target, dirs_exist_ok=True)
    server = Server([sys.executable, "app.py"], tmp_path / "server", cwd=tmp_path / "space")
    with urlopen(server.url.replace("0.0.0.0", "127.0.0.1")) as answer:
        assert b"gradio" in answer.read()
    assert server.stop() == 0
