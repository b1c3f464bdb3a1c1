"""The `gdd` command. Heavy imports wait until a command needs them, so that `gdd --help` answers at once."""

import os
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from .denoising import configure, first_line, load_model, simulate_pixels


app = typer.Typer(
    help="Remove noise from photographs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="What to compute on.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Precision of the network; the image itself is kept in float32."),
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Largest image to read, as width times height; a limit of memory.")
]
Model = Annotated[str | None, typer.Option(help="gdd-small, gdd-fast, a folder, or ORG/NAME[@REVISION] on the Hub.")]


def say(message: str):
    from ..files import printable

    typer.echo(printable(message.replace("(max_pixels)", "(--max-pixels)")), err=True)


def fail(message: str | Exception, code: int = 1) -> typer.Exit:
    say(f"gdd: {first_line(message) if isinstance(message, Exception) else message}")
    return typer.Exit(code)


@contextmanager
def exit_on_errors(*failures: type[Exception]):
    """Turn errors into one sentence and exit code 1, or 2 for a `ValueError`, which means wrong usage."""
    expected: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except expected as error:
        raise fail(error) from None
    except ValueError as error:
        raise fail(error, 2) from None


@app.command()
def denoise(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, folders of images, or globs.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="File or folder; beside the input as NAME_denoised if not given."
        ),
    ] = None,
    model: Model = None,
    fast: Annotated[bool, typer.Option("--fast", help="Short for --model gdd-fast.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the model's own if not given.")] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="0 leaves the image as it is, 1 removes all noise.")
    ] = 1.0,
    rule: Annotated[
        Literal["improved", "origin"] | None, typer.Option(help="Step rule; the model's own if not given.")
    ] = None,
    tile_size: Annotated[int | None, typer.Option(min=1, help="Largest side of a tile in pixels.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    format: Annotated[str | None, typer.Option(help="jpg, png, tif, webp, avif...; the input's if not given.")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of lossy formats.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Also write a before/after image of the one input.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist, and inputs.")] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the images; the originals stay beside them as NAME_original.")
    ] = False,
    originals: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where --in-place keeps the originals instead.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Include folders within folders.")] = False,
    max_pixels: MaxPixels = None,
    raw_exposure: Annotated[
        float, typer.Option(min=-5, max=5, help="Stops to brighten raw files by, or to darken them if negative.")
    ] = 0.0,
    raw_white_balance: Annotated[
        Literal["camera", "daylight", "auto"], typer.Option(help="White balance of raw files.")
    ] = "camera",
    raw_half_size: Annotated[
        bool, typer.Option("--raw-half-size", help="Develop raw files to half their width and height, at once.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
):
    """Remove the noise from images. Depth, colour profile and metadata stay as they are; CMYK becomes sRGB."""
    from ..files import RawOptions, printable
    from .batch import FileOptions, run
    from .planning import plan

    if fast and model:
        raise fail("--fast is short for --model gdd-fast; leave one of them out.", 2)
    with exit_on_errors():
        batch = plan(inputs, output, format, recursive, overwrite, compare, in_place, originals)
        if batch.jobs:
            pipe = load_model("gdd-fast" if fast else model, device, dtype)
            configure(pipe, steps, rule, tile_size)
            raw = RawOptions(raw_white_balance, raw_exposure, raw_half_size)
            files = FileOptions(batch.format, quality, overwrite, compare, max_pixels, batch.originals, raw)
            run(batch, pipe, quiet, files, num_inference_steps=steps, strength=strength)

    for note in batch.notes + batch.describe_images() if not quiet else []:
        say(note)
    for path, reason in batch.failed.items():
        is_named = printable(path) in printable(reason)
        say(f"gdd: {reason}" if is_named else f"gdd: {path}: {reason}")
    if batch.interrupted:
        rest = "the same command goes on with the rest"
        if overwrite and batch.done:
            rest = f"leave out all up to {batch.done[-1]} the next time, or --overwrite denoises them again"
        raise fail(f"stopped. {len(batch.done)} of {len(batch.jobs)} images are done; {rest}.", 130)
    if not quiet:
        say(batch.summary())
    if batch.failed:
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="gdd-small, gdd-fast, a folder, or a Hub repo.")] = None,
):
    """Print what a model is: size, settings, training data, licence, measured quality."""
    with exit_on_errors():
        pipe = load_model(model, "cpu", "float32")
        card = load_card(pipe)
    parameters = sum(parameter.numel() for parameter in pipe.unet.parameters())
    steps, overlap, tile_size = (
        pipe.config[key] for key in ("default_num_inference_steps", "tile_overlap", "tile_size")
    )
    rows = {
        "model": model or "gdd-small",
        "network": f"{type(pipe.unet).__name__}, {parameters / 1e6:.2f} million parameters",
        "sees": f"{pipe.receptive_field} px to each side" if pipe.receptive_field else "the whole image",
        "prediction": pipe.scheduler.config.prediction_type,
        "default": f"{steps} step{'s' * (steps > 1)}, rule {pipe.scheduler.config.step_rule}",
        "tiles": f"up to {tile_size} px, overlapping by {overlap} px" if tile_size else "none",
        "licence": (card and card.data.license) or "not stated",
        "trained on": first_paragraph(card.text, "Training") if card else "not stated",
    }
    for name, value in rows.items():
        typer.echo(f"{name:12}{value}")
    for result in (card and card.data.eval_results) or []:
        metric = result.metric_name or result.metric_type
        typer.echo(f"{'measured':12}{metric} {result.metric_value} on {result.dataset_name}")


def load_card(pipe):
    import yaml
    from huggingface_hub import ModelCard, logging

    file = Path(pipe.name_or_path, "README.md")
    logging.set_verbosity_error()
    try:
        return ModelCard.load(file) if file.is_file() else None
    except UnicodeDecodeError:
        raise OSError(f"{file} is not in UTF-8; save it as such.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise OSError(
            f"the metadata at the top of {file} is no valid YAML ({first_line(error)}); correct it."
        ) from None
    except Exception:  # whatever the Hub's client stumbles over
        raise OSError(
            f"the metadata at the top of {file} is not what https://huggingface.co/docs/hub/model-cards asks for; "
            "correct it."
        ) from None


def first_paragraph(markdown: str, heading: str) -> str:
    """Return the first paragraph of the section whose heading starts with `heading`."""
    _, _, section = markdown.partition(f"\n## {heading}")
    paragraphs = [" ".join(block.split()) for block in section.split("\n\n")[1:]]
    return next(filter(None, paragraphs), "not stated")


@app.command()
def simulate(
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="A clean photograph.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the noisy photograph goes.")],
    preset: Annotated[
        Literal["mixed", "phone", "camera", "gaussian"], typer.Option(help="The camera that takes it.")
    ] = "mixed",
    iso: Annotated[float | None, typer.Option(min=1, help="Of the camera; drawn at random if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same noise.")] = 0,
    clean_output: Annotated[
        Path | None,
        typer.Option(help="Also write what the camera would have recorded without noise: the ground truth."),
    ] = None,
    max_pixels: MaxPixels = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
):
    """Make a clean photograph noisy as a camera would have: to try a denoiser with the ground truth at hand."""
    from ..files import MAX_PIXELS, check_output, output_suffix, read_image, write_image

    if iso is not None and preset == "gaussian":
        raise fail("--iso is for cameras, and --preset gaussian is none; leave one of them out.", 2)
    outputs = [path.with_suffix(path.suffix or output_suffix(clean)) for path in (output, clean_output) if path]
    if len(set(map(os.path.realpath, outputs))) < len(outputs):
        raise fail(f"the noisy and the clean photograph cannot both be {output}; choose another --clean-output.", 2)
    with exit_on_errors(ValueError):
        pixels = read_image(clean, max_pixels or MAX_PIXELS).pixels
        for path in outputs:  # both before either is written, so as not to leave half a pair; neither has alpha
            check_output(path, pixels[..., :1], overwrite=overwrite)
        try:
            recorded, noisy = simulate_pixels(pixels, preset, iso, seed)
        except ValueError as error:
            raise ValueError(f"{clean}: {error}") from None
        for path, image in zip(outputs, (noisy, recorded), strict=False):
            write_image(path, image, overwrite=overwrite)


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

    with exit_on_errors(RuntimeError, ValueError):
        load_card(load_model(str(folder), "cpu", "float32"))  # raises if the model or its card is broken
        if not dry_run:
            commit = hub.publish(folder, repo, private=private or None, overwrite_card=overwrite_card)
            typer.echo(commit.commit_url)
            return
        with tempfile.TemporaryDirectory() as built:
            hub.build_repo(folder, built, repo)
            hub.check_repo(built)
            for file in sorted(path for path in Path(built).rglob("*") if path.is_file()):
                typer.echo(f"{file.stat().st_size:12,}  {file.relative_to(built).as_posix()}")
        say(f"{repo} loads with this package and without it; nothing was uploaded.")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="gdd-small, gdd-fast, a folder, or a Hub repo.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", file_okay=False, help="Where the file goes.")
    ],
    format: Annotated[Literal["onnx", "openvino"], typer.Option(help="For ONNX Runtime or for OpenVINO.")] = "onnx",
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Precision of the network; float16 halves the file.")
    ] = "float32",
):
    """Write one step of a model as a file that ONNX Runtime or OpenVINO runs, without PyTorch or this package."""
    try:
        from ..hub.export import export_pipeline
    except ModuleNotFoundError as error:
        if error.name not in ("onnxruntime", "onnxscript", "openvino"):
            raise
        raise fail(f'exporting needs {error.name}: pip install "gdd-diffusers[export]"') from None
    with exit_on_errors(RuntimeError, ValueError):
        pipe = load_model(model, "cpu", "float32")
        exported = export_pipeline(pipe, output, format, dtype)
    multiple, overlap, min_size = (exported.metadata[key] for key in ("multiple", "tile_overlap", "min_size"))
    rows = {
        "file": exported.file,
        "input": f"noisy, an image in [0, 1] whose sides are multiples of {multiple}, best of {min_size} px or more",
        "output": "denoised, of the same shape",
        "tiles": f"those that overlap by {overlap} px give what the whole image gives"
        if pipe.receptive_field
        else f"the network sees the whole image, and no overlap makes them exact; {overlap} px for this model",
        "checked": f"its output is within {exported.difference:.1g} of PyTorch's",
    }
    for name, value in rows.items():
        typer.echo(f"{name:12}{value}")
    if pipe.config.default_num_inference_steps > 1:
        say(f"This is one step; the model takes {pipe.config.default_num_inference_steps} by default.")


@app.command()
def demo(
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    host: Annotated[str, typer.Option(help="Who can see the page: this machine, or with 0.0.0.0 the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The first free one from 7860 on if not given.")
    ] = None,
    allow_folders: Annotated[
        bool, typer.Option("--allow-folders", help="Let the page load models from folders of this machine.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page at once.")] = True,
):
    """Open a page in the browser to drop images on. They stay on this machine."""
    try:
        from .demo import launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise fail('the page needs Gradio: pip install "gdd-diffusers[demo]"') from None
    with exit_on_errors():
        launch(model, device, dtype, host, port, browser, allow_folders)


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
