"""The work of `gdd denoise`: plan which result goes where, denoise one image after another, and report."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..comparison import compare
from ..files import FORMATS, ImageFile, check_output, for_display, list_images, read_image, write_image
from .denoising import denoise_pixels, first_line, show_progress


SUFFIX = "_denoised"  # of results that lie beside their inputs


@dataclass
class Batch:
    """The images of one run, and what became of them."""

    outputs: dict[Path, Path] = field(default_factory=dict)  # input: where its result goes
    failed: dict[Path, str] = field(default_factory=dict)  # input: the reason
    jobs: dict[Path, Path] = field(default_factory=dict)  # the outputs that are to be made
    format: str | None = None  # of all outputs; each input's own if None
    num_skipped: int = 0
    done: list[Path] = field(default_factory=list)
    converted: list[Path] = field(default_factory=list)  # from CMYK to sRGB
    megapixels: float = 0.0
    seconds: float = 0.0
    device: str = ""
    interrupted: bool = False

    def summary(self) -> str:
        parts = [f"{len(self.done)} denoised"]
        if self.num_skipped:
            parts.append(f"{self.num_skipped} skipped, since their results exist (--overwrite replaces them)")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.done:
            parts.append(f"{self.seconds:.1f} s, {self.megapixels / self.seconds:.2f} Mpx/s on {self.device}")
            if len(self.outputs) == 1:
                parts.append(str(self.outputs[self.done[0]]))
        return "; ".join(parts)


def plan(
    inputs: list[Path],
    output: str | None = None,
    format: str | None = None,
    recursive: bool = False,
    overwrite: bool = False,
    sheet: Path | None = None,
) -> Batch:
    """
    Find the images of a run, and where their results go; the arguments are the options of `gdd denoise`.

    Raises:
        `ValueError`: If the options do not fit each other or the inputs.
    """
    format = format and format.lower().removeprefix(".")
    if format is not None and f".{format}" not in FORMATS:
        raise ValueError(f"there is no format .{format}: use one of {', '.join(FORMATS)}.")
    sources, failed = _find_sources(inputs, output, recursive)
    is_single = len(inputs) == 1 and list(sources) == inputs
    batch = Batch(_assign_outputs(sources, output, format, is_single), failed, format=format)
    if sheet and len(batch.outputs) > 1:
        raise ValueError(f"--compare takes one image, not {len(batch.outputs)}.")
    if sheet and os.path.realpath(sheet) in {os.path.realpath(p) for pair in batch.outputs.items() for p in pair}:
        raise ValueError(f"--compare {sheet} would replace the image or its result; choose another name.")

    for path, target in batch.outputs.items():
        try:
            if not target.exists() or overwrite:
                batch.jobs[path] = target
            elif target.samefile(path):
                failed[path] = "the result would replace the image itself; use --overwrite, or -o for another place."
            elif sheet and not os.path.exists(sheet):
                failed[path] = f"{target} exists already; {sheet} is only made along with it, so use --overwrite."
            else:
                batch.num_skipped += 1
        except OSError as error:  # the name is too long, or the folder may not be searched
            failed[path] = f"{target} cannot be written: {error.strerror}; choose another name or place with -o."
    return batch


def _find_sources(inputs: list[Path], output: str | None, recursive: bool) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Return the images with their paths below the output folder, and the inputs without any with the reasons."""
    sources, failed = {}, {}
    for item in inputs:
        try:
            paths = list_images([item], recursive)
        except OSError as error:
            failed[item] = first_line(error)
            continue
        for path in paths:
            if output is None:
                is_result = path != item and path.stem.endswith(SUFFIX)
            else:
                is_result = _is_below(output, item) and _is_below(path, output)
            if not is_result:  # of an earlier run
                sources[path] = path.relative_to(item) if item.is_dir() else Path(path.name)
    return sources, failed


def _is_below(path: str | Path, folder: str | Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _assign_outputs(
    sources: dict[Path, Path], output: str | None, format: str | None, is_single: bool
) -> dict[Path, Path]:
    if output is None:
        targets = {path: path.with_stem(path.stem + SUFFIX) for path in sources}
    elif is_single and not output.endswith((os.sep, os.altsep or os.sep)) and not os.path.isdir(output):
        target = Path(output)
        if format and FORMATS.get(target.suffix.lower()) not in (None, FORMATS[f".{format}"]):
            raise ValueError(f"{target} does not end in .{format}; change the name or the --format.")
        return dict.fromkeys(sources, target)
    elif os.path.isfile(Path(output)):  # Path drops the slash at the end
        raise ValueError(f"{Path(output)} is a file, but a folder is needed; choose another name with -o.")
    else:
        targets = {path: Path(output, relative) for path, relative in sources.items()}
    if format:
        targets = {path: target.with_suffix(f".{format}") for path, target in targets.items()}
    if output is None:
        # a glob of the shell also names the results of an earlier run
        results = set(targets.values())
        targets = {path: target for path, target in targets.items() if path not in results}

    sources_of: dict[Path, list[str]] = {}
    for path, target in targets.items():
        sources_of.setdefault(target, []).append(str(path))
    for target, paths in sources_of.items():
        if len(paths) > 1:
            raise ValueError(f"{' and '.join(paths)} would both become {target}; denoise them into different folders.")
    return targets


def run(batch: Batch, pipe, quiet: bool, **options) -> None:
    """Denoise the jobs of a batch. An image that fails does not stop the others; Ctrl-C does."""
    bar = tqdm(
        total=len(batch.jobs),
        disable=quiet or None,  # None shows it on a terminal only
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images, {remaining} left",
        leave=False,
    )
    batch.device = f"{pipe.device} in {str(pipe.dtype).removeprefix('torch.')}"
    start = time.monotonic()
    with bar:
        show_progress(pipe, lambda done, total: bar.update(number + done / total - bar.n))
        try:
            for number, (path, target) in enumerate(batch.jobs.items()):
                bar.set_description(path.name)
                try:
                    image = denoise_file(pipe, path, target, format=batch.format, **options)
                except Exception as error:  # whatever it is, the others can still be denoised
                    batch.failed[path] = first_line(error)
                else:
                    batch.done.append(path)
                    batch.megapixels += image.pixels.shape[0] * image.pixels.shape[1] / 1e6
                    if image.cmyk:
                        batch.converted.append(path)
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
    **kwargs,
) -> ImageFile:
    """Denoise one file into another; `kwargs` are passed to the pipeline."""
    image = read_image(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # checked before the work, not after it
    check_output(target, image.pixels, image, format, overwrite)
    if sheet:
        sheet_format = None if sheet.suffix else "png"
        check_output(sheet, image.pixels[..., :1], format=sheet_format, overwrite=overwrite)  # it has no alpha
    denoised = denoise_pixels(pipe, image.pixels, **kwargs)
    write_image(target, denoised, like=image, format=format, quality=quality, overwrite=overwrite)
    if sheet:
        before, after = (Image.fromarray(for_display(pixels)) for pixels in (image.pixels, denoised))
        comparison = compare({"before": before, "after": after})
        write_image(sheet, np.asarray(comparison), format=sheet_format, overwrite=overwrite)
    return image
