"""Plan a run of `gdd denoise`: which images to denoise, where the results go, and what is left out."""

import filecmp
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..files import FORMATS, RAW_SUFFIXES, list_images, output_suffix, pictures_in, printable, readable_suffixes
from .denoising import first_line


SUFFIX = "_denoised"  # of results that lie beside their inputs
ORIGINAL = "_original"  # of inputs that --in-place has moved out of the way

VIDEO = ".3gp .avi .m2ts .m4v .mkv .mov .mp4 .mpg .mts .webm .wmv"
OTHER = ".bmp .exr .gif .hdr .jp2 .jxl .pnm .ppm .psd .svg .tga"
# Files of a folder that are left out: one, several, their extensions, and what to do with them
LEFT_OUT = [
    ("raw file", "raw files", RAW_SUFFIXES, 'pip install "gdd-diffusers[raw]" to read them'),
    ("video", "videos", VIDEO.split(), "extract the frames as images first"),
    ("image of another format", "images of other formats", OTHER.split(), "convert to PNG or TIFF first"),
]


@dataclass
class Batch:
    """The images of a run and what happened to them."""

    outputs: dict[Path, Path] = field(default_factory=dict)  # input: where its result goes
    failed: dict[Path, str] = field(default_factory=dict)  # input: the reason
    jobs: dict[Path, Path] = field(default_factory=dict)  # the outputs that are still to be made
    originals: dict[Path, Path] = field(default_factory=dict)  # inputs to be replaced: where they are kept
    format: str | None = None  # of all outputs; each input's own if None
    notes: list[str] = field(default_factory=list)  # on what was left out of the run
    remarks: dict[str, list[Path]] = field(default_factory=dict)  # on what was left out of images or changed in them
    num_skipped: int = 0
    taken: list[Path] = field(default_factory=list)  # by another run
    done: list[Path] = field(default_factory=list)
    megapixels: dict[Path, float] = field(default_factory=dict)  # of those that are done
    seconds: float = 0.0
    device: str = ""
    interrupted: bool = False

    def describe_images(self) -> list[str]:
        """Say what was left out of which images."""
        lines = []
        for remark, paths in self.remarks.items():
            is_all = len(paths) == len(self.done) > 1
            names = f"all {len(paths)} images" if is_all else ", ".join(map(printable, paths))
            lines.append(f"{names}: {remark}.")
        return lines

    def summary(self) -> str:
        parts = [f"{len(self.done)} denoised"]
        if self.num_skipped:
            why = "originals are kept already" if self.originals else "results exist (--overwrite replaces them)"
            parts.append(f"{self.num_skipped} skipped, since their {why}")
        if self.taken:
            parts.append(f"{len(self.taken)} left to another run, which is at work on the same files")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.done:
            parts.append(
                f"{self.seconds:.1f} s, {sum(self.megapixels.values()) / self.seconds:.2f} Mpx/s on {self.device}"
            )
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
    in_place: bool = False,
    originals: Path | None = None,
) -> Batch:
    """
    Find the images of a run, and where their results go; the arguments are the options of `gdd denoise`.

    Raises:
        `ValueError`: If the options do not fit each other or the inputs.
    """
    format = format and format.lower().removeprefix(".")
    if format is not None and f".{format}" not in FORMATS:
        raise ValueError(f"there is no format .{format}: use one of {', '.join(FORMATS)}.")
    if in_place and (output or format or overwrite):
        raise ValueError("--in-place keeps place and format; leave out --output, --format and --overwrite.")
    if originals and not in_place:
        raise ValueError("--originals is a folder for the originals of --in-place; add that.")
    if originals:
        for item in inputs:
            if _is_below(item / "any", originals):
                name = printable(originals)
                raise ValueError(f"--originals {name} holds {printable(item)} itself; choose another folder.")
    sources, failed, notes = _find_sources(inputs, output, recursive, in_place, originals)
    is_single = len(inputs) == 1 and list(sources) == inputs
    batch = Batch(_assign_outputs(sources, output, format, is_single), failed, notes=notes, format=format)
    for path in list(batch.outputs) if in_place else []:
        if output_suffix(path) == path.suffix:
            batch.outputs[path] = path
            kept = path.with_stem(path.stem + ORIGINAL)
            batch.originals[path] = Path(originals, sources[path]) if originals else kept
    if sheet and len(batch.outputs) > 1:
        raise ValueError(f"--compare takes one image, not {len(batch.outputs)}.")
    if sheet and os.path.realpath(sheet) in {os.path.realpath(p) for pair in batch.outputs.items() for p in pair}:
        raise ValueError(f"--compare {printable(sheet)} would replace the image or its result; choose another name.")

    for path, target in batch.outputs.items():
        try:
            if path in batch.originals:
                if is_replaced(path, batch.originals[path]):
                    batch.num_skipped += 1
                else:
                    batch.jobs[path] = target
            elif not target.exists() or overwrite:
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


def is_replaced(path: Path, original: Path) -> bool:
    """Whether an earlier run has kept the original of an image, and was not stopped before it replaced the image."""
    return original.exists() and not filecmp.cmp(original, path, shallow=False)


def _find_sources(
    inputs: list[Path], output: str | None, recursive: bool, in_place: bool, originals: Path | None
) -> tuple[dict[Path, Path], dict[Path, str], list[str]]:
    """Return the images with their paths below the output folder, the inputs without any, and notes on the rest."""
    sources, failed, notes = {}, {}, []
    for item in inputs:
        try:
            if item.is_dir():
                notes += _describe_left_out(item, output, recursive)
            paths = list_images([item], recursive)
        except OSError as error:
            failed[item] = first_line(error)
            continue
        names = {(path.parent, path.stem) for path in paths}
        orphans = 0
        for path in paths:
            if output is None:
                is_result = path != item and path.stem.endswith(SUFFIX)
                orphans += is_result and (path.parent, path.stem.removesuffix(SUFFIX)) not in names
            else:
                is_result = _is_below(output, item) and _is_below(path, output)
            if in_place:
                is_kept = path.stem.endswith(ORIGINAL) and (path.parent, path.stem.removesuffix(ORIGINAL)) in names
                is_result |= is_kept or (originals is not None and _is_below(path, originals))
            if not is_result:  # of an earlier run
                sources[path] = path.relative_to(item) if item.is_dir() else Path(path.name)
        if orphans:
            what = f"{orphans} file{'s' * (orphans > 1)} named *{SUFFIX}"
            notes.append(f"{item}: {what} left out as results of an earlier run; denoise them by their names.")
    return sources, failed, notes


def _describe_left_out(folder: Path, output: str | None, recursive: bool) -> list[str]:
    notes = []
    for one, several, suffixes, advice in LEFT_OUT:
        if count := len(pictures_in(folder, set(suffixes) - readable_suffixes(), recursive)):
            notes.append(f"{folder}: {count} {one if count == 1 else several} left out; {advice}.")
    if not recursive:
        subfolders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if count := sum(os.path.realpath(path) != (output and os.path.realpath(output)) for path in subfolders):
            notes.append(f"{folder}: {count} subfolder{'s' * (count > 1)} left out; --recursive includes them.")
    return notes


def _is_below(path: str | Path, folder: str | Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _assign_outputs(
    sources: dict[Path, Path], output: str | None, format: str | None, is_single: bool
) -> dict[Path, Path]:
    if output is None:
        targets = {path: path.with_stem(path.stem + SUFFIX) for path in sources}
    elif is_single and not output.endswith((os.sep, os.altsep or os.sep)) and not os.path.isdir(output):
        (path,), target = sources, Path(output)
        if not target.suffix:
            target = target.with_suffix(f".{format}" if format else output_suffix(path))
        if format and FORMATS.get(target.suffix.lower()) not in (None, FORMATS[f".{format}"]):
            raise ValueError(f"{printable(target)} does not end in .{format}; change the name or the --format.")
        return {path: target}
    elif os.path.isfile(Path(output)):  # Path drops the slash at the end
        raise ValueError(f"{printable(Path(output))} is a file, but a folder is needed; choose another name with -o.")
    else:
        targets = {path: Path(output, relative) for path, relative in sources.items()}
    for path, target in targets.items():
        targets[path] = target.with_suffix(f".{format}" if format else output_suffix(path))
    if output is None:
        # the shell's globs also match the results of an earlier run
        results = set(targets.values())
        targets = {path: target for path, target in targets.items() if path not in results}

    sources_of: dict[Path, list[str]] = {}
    for path, target in targets.items():
        sources_of.setdefault(target, []).append(printable(path))
    for target, paths in sources_of.items():
        if len(paths) > 1:
            both = " and ".join(paths)
            raise ValueError(f"{both} would both become {printable(target)}; denoise them into different folders.")
    return targets
