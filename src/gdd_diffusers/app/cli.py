"""The `gdd` command. Heavy imports wait until a command needs them, so that `gdd --help` answers at once."""

import os
import sys
import time
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from .denoising import choose_device, denoise_pixels, find_model, load_pipeline, one_line, set_up, simulate_pixels


app = typer.Typer(
    help="Removes noise from photographs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SUFFIX = "_denoised"  # of results that lie beside their inputs


class Rule(StrEnum):
    improved = "improved"
    origin = "origin"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Preset(StrEnum):
    mixed = "mixed"
    phone = "phone"
    camera = "camera"
    gaussian = "gaussian"


def say(message: str):
    typer.echo(message, err=True)


def fail(message: str, code: int = 1) -> typer.Exit:
    say(f"gdd: {message}")
    return typer.Exit(code)


def load_model(model: str | None, device: str = "cpu", dtype: str = "float32"):
    """The pipeline of a model, ready to work, and the folder it came from."""
    try:
        chosen_device, chosen_dtype = choose_device(device, dtype)
    except ValueError as error:
        raise fail(one_line(error), 2) from None
    try:
        folder = find_model(model)
        return load_pipeline(folder, dtype=chosen_dtype).to(chosen_device), folder
    except OSError as error:
        raise fail(one_line(error)) from None


def is_below(path: str | Path, folder: str | Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def plan_outputs(
    inputs: list[Path], output: str | None, format: str | None, recursive: bool
) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Which file each picture goes to, and which inputs are no pictures, and why."""
    from ..files import FORMATS, list_images

    sources: dict[Path, Path] = {}  # picture: its path below the output folder
    failed = {}
    for item in inputs:
        try:
            paths = list_images([item], recursive)
        except OSError as error:
            failed[item] = one_line(error)
            continue
        for path in paths:
            if path != item and output is None and path.stem.endswith(SUFFIX):
                continue  # what an earlier run on this folder has made
            if output is not None and is_below(output, item) and is_below(path, output):
                continue  # the same, in a folder within this one
            sources[path] = path.relative_to(item) if item.is_dir() else Path(path.name)
    single = len(inputs) == 1 and list(sources) == inputs
    as_folder = False
    if output is not None:
        slash = output.endswith((os.sep, os.altsep or os.sep))
        output = Path(output)  # which has no slash at its end
        as_folder = not single or slash or os.path.isdir(output)  # is_dir raises where it may not look
    if as_folder and os.path.isfile(output):
        raise fail(f"{output} is a file, but a folder is needed; choose another name with -o.", 2)

    outputs = {}
    for path, relative in sources.items():
        if output is None:
            target = path.with_stem(path.stem + SUFFIX)
        elif as_folder:
            target = output / relative
        else:
            target = output
        if format and (output is None or as_folder):
            target = target.with_suffix(f".{format}")
        elif format and FORMATS.get(target.suffix.lower()) not in (None, FORMATS[f".{format}"]):
            raise fail(f"{target} would be no {target.suffix[1:]} but {format}; change the name or the --format.", 2)
        outputs[path] = target
    if output is None:
        # a shell's *.jpg names what an earlier run has made, too
        made = set(outputs.values())
        outputs = {path: target for path, target in outputs.items() if path not in made}
    for target in set(outputs.values()):
        origins = [str(path) for path, other in outputs.items() if other == target]
        if len(origins) > 1:
            raise fail(f"{' and '.join(origins)} would both become {target}; denoise them into different folders.", 2)
    return outputs, failed


class BatchProgress:
    """One bar for the whole batch: a pipeline's `progress_bar` that adds shares of a picture to it."""

    def __init__(self, count: int, quiet: bool):
        from tqdm import tqdm

        self.bar = tqdm(
            total=count,
            disable=True if quiet else None,  # None: only where a person watches
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} pictures, {remaining} left",
            leave=False,
        )
        self.finished = 0

    def start(self, path: Path):
        self.bar.set_description(path.name)

    def finish(self):
        self.finished += 1
        self.bar.n = self.finished
        self.bar.refresh()

    def __call__(self, total: int):
        self.share = 1 / max(total, 1)
        return self

    def update(self, tiles: int):
        self.bar.update(tiles * self.share)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@app.command()
def denoise(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Pictures, folders of pictures, or globs.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help=f"File or folder; beside the input as NAME{SUFFIX} if not given."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub repo, ORG/NAME or ORG/NAME@REVISION.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the walk; the model's own number if not given.")
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="0 leaves the picture as it is, 1 removes all noise.")
    ] = 1.0,
    rule: Annotated[Rule | None, typer.Option(help="Step rule; the model's own if not given.")] = None,
    tile_size: Annotated[int | None, typer.Option(min=1, help="Largest side of a tile in pixels.")] = None,
    device: Annotated[Device, typer.Option(help="What to compute on.")] = Device.auto,
    dtype: Annotated[
        Dtype, typer.Option(help="Precision of the network; the picture itself is kept in float32.")
    ] = Dtype.auto,
    format: Annotated[str | None, typer.Option(help="jpg, png, tif, webp, avif...; the input's if not given.")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of lossy formats.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Also write a before/after picture of the one input.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist, and inputs.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Folders below the given ones, too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
):
    """Remove the noise from pictures. Depth, colour profile and metadata stay as they are; CMYK becomes sRGB."""
    from ..files import FORMATS, check_output, read_image, write_image

    if format is not None:
        format = format.lower().removeprefix(".")
        if f".{format}" not in FORMATS:
            raise fail(f"there is no format .{format}: use one of {', '.join(FORMATS)}.", 2)
    outputs, failed = plan_outputs(inputs, output, format, recursive)
    if compare and len(outputs) > 1:
        raise fail(f"--compare takes one picture, not {len(outputs)}.", 2)
    sheet_format = None if compare and compare.suffix else "png"
    if compare and os.path.realpath(compare) in {os.path.realpath(path) for pair in outputs.items() for path in pair}:
        raise fail(f"--compare {compare} would replace the picture or its result; choose another name.", 2)

    skipped = 0
    jobs = {}
    for path, target in outputs.items():
        try:
            if not target.exists() or overwrite:
                jobs[path] = target
            elif target.samefile(path):
                failed[path] = "the result would replace the picture itself; use --overwrite, or -o for another place."
            elif compare and not os.path.exists(compare):
                failed[path] = f"{target} exists already; {compare} is only made along with it, so use --overwrite."
            else:
                skipped += 1
        except OSError as error:  # the name is too long, or the folder may not be searched
            failed[path] = f"{target} cannot be written: {error.strerror}; choose another name or place with -o."

    done, were_cmyk, megapixels, stopped, start = [], [], 0.0, False, time.monotonic()
    if jobs:
        pipe, _ = load_model(model, device, dtype)
        try:
            set_up(pipe, steps, rule and rule.value, tile_size)
        except ValueError as error:
            raise fail(one_line(error), 2) from None
        progress = BatchProgress(len(jobs), quiet)
        pipe.progress_bar = progress
        start = time.monotonic()
        try:
            for path, target in jobs.items():
                progress.start(path)
                try:
                    picture = read_image(path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    check_output(target, picture.pixels, picture, format, overwrite)  # before the long part
                    if compare:  # which has no transparency, whatever the picture has
                        check_output(compare, picture.pixels[..., :1], format=sheet_format, overwrite=overwrite)
                    pixels = denoise_pixels(pipe, picture.pixels, num_inference_steps=steps, strength=strength)
                    write_image(target, pixels, like=picture, format=format, quality=quality, overwrite=overwrite)
                    done.append(path)
                    if picture.cmyk:
                        were_cmyk.append(path)
                    megapixels += picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6
                    if compare:
                        write_comparison(compare, picture.pixels, pixels, sheet_format, overwrite)
                except Exception as error:  # one picture's trouble, whatever it is, must not end the batch
                    failed[path] = one_line(error)
                progress.finish()
        except KeyboardInterrupt:
            stopped = True
        progress.bar.close()

    for path in were_cmyk if not quiet else []:
        say(f"{path} was CMYK, and its result is sRGB.")
    for path, reason in failed.items():
        say(f"gdd: {reason}" if str(path) in reason else f"gdd: {path}: {reason}")
    if stopped:
        rest = "the same command goes on with the rest"
        if overwrite and done:
            rest = f"leave out all up to {done[-1]} the next time, or --overwrite denoises them again"
        raise fail(f"stopped. {len(done)} of {len(jobs)} pictures are done; {rest}.", 130)
    if not quiet:
        parts = [f"{len(done)} denoised"]
        parts += [f"{skipped} skipped, since their results exist (--overwrite replaces them)"] if skipped else []
        parts += [f"{len(failed)} failed"] if failed else []
        if done:
            seconds = time.monotonic() - start
            dtype_name = str(pipe.dtype).removeprefix("torch.")
            parts += [f"{seconds:.1f} s, {megapixels / seconds:.2f} Mpx/s on {pipe.device} in {dtype_name}"]
        if len(outputs) == 1 and done:
            parts += [str(next(iter(jobs.values())))]
        say("; ".join(parts))
    if failed:
        raise typer.Exit(1)


def write_comparison(path: Path, before, after, format: str | None, overwrite: bool):
    """The labelled before/after picture of `--compare`."""
    import numpy as np
    from PIL import Image

    from ..comparison import compare
    from ..files import for_display, write_image

    pictures = {"before": before, "after": after}
    sheet = compare({name: Image.fromarray(for_display(pixels)) for name, pixels in pictures.items()})
    write_image(path, np.asarray(sheet), format=format, overwrite=overwrite)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="Folder or Hub repo; the bundled weights if not given.")] = None,
):
    """Print what a model is: size, settings, training data, licence, measured quality."""
    from huggingface_hub import ModelCard

    pipe, folder = load_model(model)
    parameters = sum(parameter.numel() for parameter in pipe.unet.parameters())
    steps, overlap, tile_size = (
        pipe.config[key] for key in ("default_num_inference_steps", "tile_overlap", "tile_size")
    )
    rows = {
        "model": model or "gdd-small, bundled with gdd",
        "network": f"{type(pipe.unet).__name__}, {parameters / 1e6:.2f} million parameters",
        "sees": f"{pipe.receptive_field} px to each side" if pipe.receptive_field else "the whole picture",
        "prediction": pipe.scheduler.config.prediction_type,
        "default": f"{steps} step{'s' * (steps > 1)}, rule {pipe.scheduler.config.step_rule}",
        "tiles": f"up to {tile_size} px, overlapping by {overlap} px" if tile_size else "none",
    }
    card_file = folder / "README.md"
    card = ModelCard.load(card_file) if card_file.is_file() else None
    rows["licence"] = (card and card.data.license) or "not stated"
    rows["trained on"] = first_paragraph(card.text, "Training") if card else "not stated"
    for name, value in rows.items():
        typer.echo(f"{name:12}{value}")
    for result in (card and card.data.eval_results) or []:
        typer.echo(
            f"{'measured':12}{result.metric_name or result.metric_type} {result.metric_value} on {result.dataset_name}"
        )


def first_paragraph(markdown: str, heading: str) -> str:
    """What a card says first below the heading that begins so."""
    _, _, section = markdown.partition(f"\n## {heading}")
    paragraphs = [" ".join(block.split()) for block in section.split("\n\n")[1:]]
    return next(filter(None, paragraphs), "not stated")


@app.command()
def simulate(
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="A clean photograph.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the noisy photograph goes.")],
    preset: Annotated[Preset, typer.Option(help="The camera that takes it.")] = Preset.mixed,
    iso: Annotated[float | None, typer.Option(min=1, help="Of the camera; drawn at random if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same noise.")] = 0,
    clean_output: Annotated[
        Path | None,
        typer.Option(help="Also write what the camera would have recorded without noise, to measure against."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
):
    """Make a clean photograph noisy as a camera would have: to try a denoiser with the truth at hand."""
    from ..files import check_output, read_image, write_image

    if iso is not None and preset == Preset.gaussian:
        raise fail("--iso is for cameras, and --preset gaussian is none; leave one of them out.", 2)
    if clean_output and os.path.realpath(clean_output) == os.path.realpath(output):
        raise fail(f"the noisy and the clean photograph cannot both be {output}; choose another --clean-output.", 2)
    outputs = [path for path in (output, clean_output) if path]
    try:
        pixels = read_image(clean).pixels
        for path in outputs:  # before the first is written, so that there is no half a pair; neither has transparency
            check_output(path, pixels[..., :1], overwrite=overwrite)
        try:
            recorded, noisy = simulate_pixels(pixels, preset.value, iso, seed)
        except ValueError as error:
            raise fail(f"{clean}: {one_line(error)}") from None
        for path, pixels in zip(outputs, (noisy, recorded), strict=False):
            write_image(path, pixels, overwrite=overwrite)
    except (OSError, ValueError) as error:
        raise fail(one_line(error)) from None


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="A model, as train.py writes it.")
    ],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where it goes on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace the card even if somebody changed it on the Hub.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and check the repo, and upload nothing.")] = False,
):
    """Put a model on the Hub, where anyone can load it, with this package or without it."""
    import tempfile

    from .. import hub

    load_model(str(folder))  # which says what is wrong with it, if anything is
    try:
        if dry_run:
            with tempfile.TemporaryDirectory() as built:
                hub.build_repo(folder, built, repo)
                hub.check_repo(built)
                for file in sorted(path for path in Path(built).rglob("*") if path.is_file()):
                    typer.echo(f"{file.stat().st_size:12,}  {file.relative_to(built).as_posix()}")
            say(f"{repo} loads with this package and without it; nothing was uploaded.")
        else:
            commit = hub.publish(folder, repo, private=private or None, overwrite_card=overwrite_card)
            typer.echo(commit.commit_url)
    except (OSError, RuntimeError, ValueError) as error:
        raise fail(one_line(error)) from None


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Folder or Hub repo to begin with, as for denoise.")] = None,
    device: Annotated[Device, typer.Option(help="What to compute on.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the network.")] = Dtype.auto,
    host: Annotated[str, typer.Option(help="Who can see the page: this machine, or with 0.0.0.0 the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 on if not given.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page at once.")] = True,
):
    """Open a page in the browser to drop pictures on. They stay on this machine."""
    try:
        from .demo.page import launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise fail('the page needs Gradio: pip install "gdd-diffusers[demo]"') from None
    try:
        launch(model, device.value, dtype.value, host, port, open_browser=browser)
    except ValueError as error:
        raise fail(one_line(error), 2) from None
    except OSError as error:
        raise fail(one_line(error)) from None


def print_version(value: bool):
    if value:
        typer.echo(f"gdd-diffusers {version('gdd-diffusers')}")
        raise typer.Exit()


@app.callback()
def callback(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
):
    pass


def main():
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
