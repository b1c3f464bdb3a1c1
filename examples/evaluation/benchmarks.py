"""Load test sets in the form in which they are distributed, and write the files that two benchmarks ask for."""

import base64
import csv
import re
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import scipy.io
import torch
from PIL import Image

from gdd_diffusers.data.camera_noise import PRESETS, CameraNoise
from gdd_diffusers.data.decoding import UNREADABLE, decode, is_grey, open_cell
from gdd_diffusers.data.layouts import (
    FMD_LEVELS,
    load_cifar10,
    load_clean,
    load_fmd,
    load_hub_dataset,
    load_oct,
    load_pairs,
    load_polyu,
    load_scenes,
)
from gdd_diffusers.data.matlab_files import open_dnd, open_sidd_blocks
from gdd_diffusers.image_processor import pixels_to_tensor, tensor_to_pixels


NAMED = {"cifar10": "cifar10:hub:uoft-cs/cifar10:test"}  # what --data NAME stands for
DND_CROPS = 20  # of each image, by the rules of the benchmark
CAMERAS = (*PRESETS, "mixed")
# Files by which a layout is known
KNOWN_FILES = {
    "*_real.*": load_polyu,
    "*Reference.bmp": load_scenes,
    "*_Averaged Image.tif": load_oct,
    "average.tif": load_oct,
}


@dataclass
class ImageSet:
    """
    Images to denoise, read one at a time.

    Args:
        name: What tables call it.
        names: A unique name of each image that is valid as a file name.
        load: Returns the noisy image with that index and its ground truth (`None` where the benchmark withholds it):
            [H, W, 3], or [H, W, 1] where both are grey; uint8, uint16 or float32 in [0, 1].
        files: Their files, if the test set has one for each image.
        min_side: Reads how many pixels the shorter side of that image has, if the test set does not fix it.
        sigma: The standard deviation of the noise in [0, 1], if it is known.
        submission: `"sidd"` or `"dnd"`, the format in which results are submitted.
    """

    name: str
    names: list[str]
    load: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    files: list[str | None] | None = None
    min_side: Callable[[int], int] | None = None
    sigma: float | None = None
    submission: str | None = None


def load_data(spec: str) -> ImageSet:
    """
    Load `NAME:PATH`, `NAME:PATH#LIST` or either with `@NOISE:LEVEL`, with the layout that the folder's files suggest.

    | PATH | content |
    | --- | --- |
    | folder of pairs | `noisy/` and `clean/` with the same file names |
    | PolyU, CC | crops named `*_real.*` and `*_mean.*` in one folder |
    | RENOIR | a folder for each scene: `*Noisy.bmp` and `*Reference.bmp` |
    | OCT of Duke | a folder for each eye: `test.tif`, `average.tif`; or `*_Raw Image.tif`, `*_Averaged Image.tif` |
    | FMD | `gt/` beside `raw/`; or the `avg2/` to `avg16/` of a sample |
    | W2S | `avg400/` beside `avg1/`; or another of its levels |
    | SIDD validation | `ValidationNoisyBlocksSrgb.mat` and `ValidationGtBlocksSrgb.mat` |
    | SIDD benchmark | `BenchmarkNoisyBlocksSrgb.mat` |
    | DND | `info.mat` and `images_srgb/` |
    | CIFAR-10 | `test_batch`, of its Python files |
    | `hub:REPO` or `hub:REPO:SPLIT` | a dataset on the Hub with image columns `noisy` and `clean`, or with one |
    | any of them `#LIST` | the images that a text file names, a line each, as train.py writes `held_out.txt` |
    | any of them `@gaussian:25` | its clean images with Gaussian noise of sigma 25/255 |
    | any of them `@phone:1600` | its clean images through [`CameraNoise`] with that preset and ISO |
    | any of them `@none` | its clean images as they are, to see whether a denoiser leaves them alone |
    | any of them `@grey-gaussian:25`, `@grey-phone:1600`, ... | the same in grey |

    `cifar10` alone is the test split of CIFAR-10 on the Hub.

    Noise is seeded by the image's name, so it is the same in every run. It is rounded to 8 bits and clipped, as in a
    file, which tables of Gaussian denoising in the literature mostly do not do. Clean images that are grey get grey
    noise.

    Raises:
        ValueError: If the description cannot be parsed, an image has no partner, or a `.mat` file lacks its variable.
        FileNotFoundError: If the folder does not exist or has no known layout.
    """
    name, at, noise = spec.partition("@")
    described = NAMED.get(name, name) + at + noise
    match = re.fullmatch(r"([^:]+):(.+?)(?:#(.+?))?(?:@(grey-)?([a-z]+)(?::(\d+(?:\.\d+)?))?)?", described)
    if match is None:
        raise ValueError(f"--data is NAME:PATH[#LIST][@NOISE:LEVEL], not {spec!r}.")
    name, path, list_file, grey, noise, level = match.groups()
    if noise and (noise not in ("none", "gaussian", *CAMERAS) or (noise == "none") != (level is None)):
        raise ValueError(
            f"The noise in --data {spec} must be @none, @gaussian:SIGMA or @CAMERA:ISO with one of the cameras "
            f"{', '.join(CAMERAS)}; for grey images, @grey-gaussian:SIGMA and so on."
        )
    if path.startswith("hub:"):
        dataset = _load_hub(path.removeprefix("hub:"))
        if not noise and "noisy" not in dataset.column_names:
            raise ValueError(
                f"{path} has no image column 'noisy'; add noise to its clean images, as in {spec}@phone:1600."
            )
        images = _from_dataset(name, dataset)
    elif not Path(path).is_dir():
        raise FileNotFoundError(f"There is no folder {path} (for --data {spec}).")
    else:
        images = _from_folder(name, Path(path), clean_only=noise is not None)
    if list_file:
        images = _listed(images, Path(list_file))
    return _with_noise(images, noise, level, grey is not None) if noise else images


def _listed(images: ImageSet, list_file: Path) -> ImageSet:
    """Select the images whose files are listed, by names without suffix that may begin with their folders."""
    if not list_file.is_file():
        raise FileNotFoundError(f"There is no file {list_file}, which should name images of {images.name}.")
    listed = set(filter(None, map(str.strip, list_file.read_text(encoding="utf-8").splitlines())))
    indices, found = [], set()
    for i, file in enumerate(images.files or []):
        path = Path(file or "")
        parts = [*path.parts[:-1], re.sub("_(mean|real)$", "", path.stem)]  # _mean: of PolyU and CC
        if names := listed & {"/".join(parts[start:]) for start in range(len(parts))}:
            indices.append(i)
            found |= names
    if not indices:
        raise ValueError(f"None of the {len(listed)} names in {list_file} is one of the images of {images.name}.")
    if missing := listed - found:
        print(f"{len(missing)} of the {len(listed)} names in {list_file} are not in {images.name}.", file=sys.stderr)
    return replace(
        images,
        names=[images.names[i] for i in indices],
        load=lambda i: images.load(indices[i]),
        files=[images.files[i] for i in indices],
        min_side=images.min_side and (lambda i: images.min_side(indices[i])),
    )


def _from_folder(name: str, folder: Path, clean_only: bool) -> ImageSet:
    if (folder / "ValidationNoisyBlocksSrgb.mat").exists():
        return ImageSet(name, *open_sidd_blocks(folder, "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"))
    if (folder / "BenchmarkNoisyBlocksSrgb.mat").exists():
        names, load = open_sidd_blocks(folder, "BenchmarkNoisyBlocksSrgb")
        return ImageSet(name, names, lambda i: (*load(i), None), submission="sidd")
    if (folder / "info.mat").exists():
        names, load = open_dnd(folder)
        return ImageSet(name, names, lambda i: (load(i), None), submission="dnd")
    if (folder / "test_batch").exists() and clean_only:
        return _from_dataset(name, load_cifar10(folder, "test_batch"))
    if (folder / "noisy").is_dir() and not clean_only:
        return _from_dataset(name, load_pairs(folder / "noisy", folder / "clean"))
    if clean_only and (folder / "clean").is_dir():
        return _from_dataset(name, load_clean(folder / "clean"))
    for pattern, load in KNOWN_FILES.items():
        if any(folder.rglob(pattern)):
            return _from_dataset(name, load(folder))
    levels = [level for level in (folder, *folder.rglob("raw")) if level.name in FMD_LEVELS]
    if any((level.parent / "gt").is_dir() for level in levels):
        return _from_dataset(name, load_fmd(folder))
    if (folder / "avg400").is_dir() or (folder.parent / "avg400").is_dir():
        return _open_w2s(name, folder if folder.name.startswith("avg") else folder / "avg1")
    if clean_only:
        return _from_dataset(name, load_clean(folder))
    raise FileNotFoundError(
        f"{folder} holds neither noisy/ and clean/ nor the files of a known data set, see docs/measuring.md. "
        f"If its images are clean, say what to do with them, as in {name}:{folder}@none."
    )


def _from_dataset(name: str, dataset: datasets.Dataset) -> ImageSet:
    columns = [column for column in ("noisy", "clean") if column in dataset.column_names]
    for column in columns:
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    paths = [cell and cell["path"] for cell in dataset["clean"]]
    # the index keeps names unique where subfolders hold files of the same name
    names = [f"{i:04d}_{Path(path).stem}" if path else f"{i:04d}" for i, path in enumerate(paths)]

    def read(i, column, reader):
        cell = dataset[i][column]
        try:
            return reader(cell)
        except UNREADABLE as error:
            file = cell and cell["path"] or f"row {i} of {name}"
            raise OSError(f"{file} cannot be read: {error}") from error

    def load(i):
        pair = [read(i, column, partial(decode, grey_dtype=np.uint16)) for column in columns]
        return (None, *_one_channel_if_grey(*pair))[-2:]

    def read_size(cell):
        with open_cell(cell) as image:
            return image.size

    return ImageSet(name, names, load, paths, lambda i: min(read(i, "clean", read_size)))


def _open_w2s(name: str, level: Path) -> ImageSet:
    """Open the arrays `avg1/001_0.npy` and `avg400/001_0.npy`, scaled such that the noisy one spans [0, 1]."""
    files = sorted(level.glob("*.npy"))
    if not files:
        raise FileNotFoundError(f"There is no .npy file of W2S in {level}.")

    def read(file):
        try:
            return np.load(file)[..., None].astype(np.float32)
        except (OSError, ValueError, EOFError) as error:
            raise OSError(f"{file} cannot be read: {error}") from error

    def load(i):
        noisy, clean = read(files[i]), read(level.parent / "avg400" / files[i].name)
        low, high = noisy.min(), noisy.max()
        return (noisy - low) / (high - low), ((clean - low) / (high - low)).clip(0, 1)

    return ImageSet(name, [file.stem for file in files], load)


def _load_hub(repo: str) -> datasets.Dataset:
    repo, _, split = repo.partition(":")
    splits = datasets.get_dataset_split_names(repo)
    if not split and len(splits) > 1:
        raise ValueError(f"{repo} has the splits {', '.join(splits)}: choose one, as in hub:{repo}:{splits[0]}.")
    if split and split not in splits:
        raise ValueError(f"{repo} has no split {split}, but {', '.join(splits)}.")
    return load_hub_dataset(repo, split or splits[0])


def _with_noise(images: ImageSet, noise: str, level: str | None, grey: bool) -> ImageSet:
    if images.submission:
        raise ValueError(f"{images.name} has no clean images to add noise to.")
    simulator = CameraNoise(noise) if noise in CAMERAS else None
    sigma = {"none": 0.0, "gaussian": float(level or 0) / 255}.get(noise)

    def load(i):
        (pixels,) = _one_channel_if_grey(images.load(i)[1])
        clean = pixels_to_tensor(_to_grey(pixels) if grey else pixels)[None]
        generator = torch.Generator().manual_seed(zlib.crc32(images.names[i].encode()))
        if simulator is None:
            noisy = clean + torch.randn(clean.shape, generator=generator) * sigma
            return tensor_to_pixels(noisy[0]), tensor_to_pixels(clean[0])
        recorded, noisy = simulator(clean, generator, float(level))
        return tensor_to_pixels(noisy[0]), tensor_to_pixels(recorded[0])

    return replace(images, load=load, sigma=sigma)


def _one_channel_if_grey(*images: np.ndarray) -> list[np.ndarray]:
    """Reduce images [H, W, C] whose channels are equal to [H, W, 1], all of them or none."""
    grey = all(map(is_grey, images))
    return [pixels[..., :1] if grey else pixels for pixels in images]


def _to_grey(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 [H, W, 3] to its luma, [H, W, 1]; what is grey already stays."""
    return pixels if pixels.shape[-1] == 1 else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def write_submission(images: ImageSet, results: Iterable[np.ndarray], folder: Path, seconds_per_megapixel: float):
    """
    Write what a benchmark asks for: `SubmitSrgb.mat` and, for Kaggle, `SubmitSrgb.csv` for SIDD, `bundled/0001.mat` to
    `0050.mat` for DND.

    SIDD takes uint8 [40, 32, 256, 256, 3], Kaggle a row of each block's bytes in base64; DND a cell of the 20 crops of
    each image, single precision in [0, 1].
    """
    results = iter(results)
    if images.submission == "sidd":
        blocks = np.stack(list(results))
        num_images = 1 + int(images.names[-1].split("_")[0])
        content = {
            "DenoisedBlocksSrgb": blocks.reshape(num_images, -1, *blocks.shape[1:]),
            "TimeMPSrgb": seconds_per_megapixel,
            "OptionalData": {"MethodName": folder.name},
        }
        folder.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(folder / "SubmitSrgb.mat", content, do_compression=True)
        with (folder / "SubmitSrgb.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["ID", "BLOCK"])
            table.writerows([i, base64.b64encode(block).decode()] for i, block in enumerate(blocks))
        return
    (folder / "bundled").mkdir(parents=True, exist_ok=True)
    for name in images.names[::DND_CROPS]:
        crops = np.empty(DND_CROPS, dtype=object)
        for j in range(DND_CROPS):
            crops[j] = next(results)
        content = {"Idenoised": crops, "israw": False, "eval_version": "1.0"}
        scipy.io.savemat(folder / "bundled" / f"{name.split('_')[0]}.mat", content)
