"""The data sets that denoisers are measured on, as they are distributed, and the files that two benchmarks ask for."""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import scipy.io
import torch

from gdd_diffusers.data.camera_noise import PRESETS, CameraNoise
from gdd_diffusers.data.layouts import UNREADABLE, decode, load_clean, load_hub_dataset, load_pairs, load_polyu
from gdd_diffusers.data.matlab_files import open_dnd, open_sidd_blocks


DND_CROPS = 20  # of each image, by the rules of the benchmark
CAMERAS = (*PRESETS, "mixed")


@dataclass
class PictureSet:
    """
    Pictures to denoise, read one at a time.

    Args:
        name (`str`): What tables call it.
        names (`list[str]`): A unique name of each picture, good as a file name.
        load (`Callable[[int], tuple[np.ndarray, np.ndarray | None]]`): Gives the noisy picture with that number and
            the clean one (`None` where the benchmark keeps it): [H, W, 3], uint8, or float32 in [0, 1] for DND.
        sigma (`float`, *optional*): The standard deviation of the noise in [0, 1], where it is known.
        submission (`str`, *optional*): `"sidd"` or `"dnd"`, the format that results are handed in.
    """

    name: str
    names: list[str]
    load: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    sigma: float | None = None
    submission: str | None = None


def load_data(spec: str) -> PictureSet:
    """
    Reads `NAME:PATH` or `NAME:PATH@NOISE:LEVEL`; the layout is told from what lies in the folder.

    | PATH | what it holds |
    | --- | --- |
    | folder of pairs | `noisy/` and `clean/` with the same file names |
    | PolyU, CC | crops named `*_real.*` and `*_mean.*` in one folder |
    | SIDD validation | `ValidationNoisyBlocksSrgb.mat` and `ValidationGtBlocksSrgb.mat` |
    | SIDD benchmark | `BenchmarkNoisyBlocksSrgb.mat` |
    | DND | `info.mat` and `images_srgb/` |
    | `hub:REPO` or `hub:REPO:SPLIT` | a data set of the Hub with image columns `noisy` and `clean` |
    | anything `@gaussian:25` | its clean pictures with Gaussian noise of sigma 25/255 |
    | anything `@phone:1600` | its clean pictures through [`CameraNoise`] of that preset, at that ISO |
    | anything `@none` | its clean pictures as they are: how well does a denoiser leave them alone? |

    Noise is seeded by the picture's name, so it is the same in every run. As in a file, it is rounded to 8 bits and
    clipped, which tables of Gaussian denoising in the literature mostly leave out.

    Raises:
        ValueError: If the description cannot be read, a picture has no partner, or a `.mat` lacks its variable.
        FileNotFoundError: If there is no such folder, or nothing known in it.
    """
    match = re.fullmatch(r"([^:]+):(.+?)(?:@([a-z]+)(?::(\d+(?:\.\d+)?))?)?", spec)
    if match is None:
        raise ValueError(f"--data is NAME:PATH or NAME:PATH@NOISE:LEVEL, not {spec!r}.")
    name, path, noise, level = match.groups()
    if noise and (noise not in ("none", "gaussian", *CAMERAS) or (noise == "none") != (level is None)):
        raise ValueError(
            f"The noise in --data {spec} must be @none, @gaussian:SIGMA or @CAMERA:ISO with one of the cameras "
            f"{', '.join(CAMERAS)}."
        )
    if path.startswith("hub:"):
        dataset = _load_hub(path.removeprefix("hub:"))
        if not noise and "noisy" not in dataset.column_names:
            raise ValueError(
                f"{path} has no image column 'noisy'; put noise on its clean pictures, as in {spec}@phone:1600."
            )
        pictures = _from_dataset(name, dataset)
    elif not Path(path).is_dir():
        raise FileNotFoundError(f"There is no folder {path} (for --data {spec}).")
    else:
        pictures = _from_folder(name, Path(path), clean_only=noise is not None)
    return _with_noise(pictures, noise, level) if noise else pictures


def _from_folder(name: str, folder: Path, clean_only: bool) -> PictureSet:
    if (folder / "ValidationNoisyBlocksSrgb.mat").exists():
        return PictureSet(name, *open_sidd_blocks(folder, "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"))
    if (folder / "BenchmarkNoisyBlocksSrgb.mat").exists():
        names, load = open_sidd_blocks(folder, "BenchmarkNoisyBlocksSrgb")
        return PictureSet(name, names, lambda i: (*load(i), None), submission="sidd")
    if (folder / "info.mat").exists():
        names, load = open_dnd(folder)
        return PictureSet(name, names, lambda i: (load(i), None), submission="dnd")
    if (folder / "noisy").is_dir() and not clean_only:
        return _from_dataset(name, load_pairs(folder / "noisy", folder / "clean"))
    if clean_only and (folder / "clean").is_dir():
        return _from_dataset(name, load_clean(folder / "clean"))
    if any(folder.rglob("*_real.*")):
        return _from_dataset(name, load_polyu(folder))
    if not clean_only:
        raise FileNotFoundError(
            f"{folder} holds neither noisy/ and clean/, nor *_real and *_mean crops, nor the .mat files of SIDD or "
            f"DND; of clean pictures say what to do with them, as in {name}:{folder}@none."
        )
    return _from_dataset(name, load_clean(folder))


def _from_dataset(name: str, dataset: datasets.Dataset) -> PictureSet:
    columns = [column for column in ("noisy", "clean") if column in dataset.column_names]
    for column in columns:
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    paths = [cell["path"] for cell in dataset["clean"]]
    # the number keeps names apart where folders below hold files of the same name
    names = [f"{i:04d}_{Path(path).stem}" if path else f"{i:04d}" for i, path in enumerate(paths)]

    def load(i):
        pixels = {"noisy": None}
        for column in columns:
            cell = dataset[i][column]
            try:
                pixels[column] = decode(cell)
            except UNREADABLE as error:
                raise OSError(f"{cell['path'] or f'row {i} of {name}'} cannot be read: {error}") from error
        return pixels["noisy"], pixels["clean"]

    return PictureSet(name, names, load)


def _load_hub(repo: str) -> datasets.Dataset:
    repo, _, split = repo.partition(":")
    splits = datasets.get_dataset_split_names(repo)
    if not split and len(splits) > 1:
        raise ValueError(f"{repo} has the splits {', '.join(splits)}: choose one, as in hub:{repo}:{splits[0]}.")
    if split and split not in splits:
        raise ValueError(f"{repo} has no split {split}, but {', '.join(splits)}.")
    return load_hub_dataset(repo, split or splits[0])


def _with_noise(pictures: PictureSet, noise: str, level: str | None) -> PictureSet:
    if pictures.submission:
        raise ValueError(f"{pictures.name} has no clean pictures to put noise on.")
    simulator = CameraNoise(noise) if noise in CAMERAS else None
    sigma = {"none": 0.0, "gaussian": float(level or 0) / 255}.get(noise)

    def load(i):
        clean = torch.from_numpy(np.array(pictures.load(i)[1])).permute(2, 0, 1)[None] / 255
        generator = torch.Generator().manual_seed(zlib.crc32(pictures.names[i].encode()))
        if simulator is None:
            noisy = clean + torch.randn(clean.shape, generator=generator) * sigma
        else:
            clean, noisy = simulator(clean, generator, float(level))
        return tuple((x.clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy() for x in (noisy, clean))

    return PictureSet(pictures.name, pictures.names, load, sigma)


def write_sidd_submission(folder: Path, names: list[str], results: Iterator[np.ndarray], seconds_per_mpx: float):
    """`SubmitSrgb.mat` as the SIDD benchmark takes it: `DenoisedBlocksSrgb`, uint8 [40, 32, 256, 256, 3]."""
    results = np.stack(list(results))
    images = 1 + int(names[-1].split("_")[0])
    scipy.io.savemat(
        folder / "SubmitSrgb.mat",
        {
            "DenoisedBlocksSrgb": results.reshape(images, -1, *results.shape[1:]),
            "TimeMPSrgb": seconds_per_mpx,
            "OptionalData": {"MethodName": folder.name},
        },
        do_compression=True,
    )


def write_dnd_submission(folder: Path, names: list[str], results: Iterator[np.ndarray]):
    """`bundled/0001.mat` to `0050.mat` as DND takes them: a cell of the 20 crops of each image, single in [0, 1]."""
    (folder / "bundled").mkdir(exist_ok=True)
    for first in range(0, len(names), DND_CROPS):
        crops = np.empty(DND_CROPS, dtype=object)
        for j in range(DND_CROPS):
            crops[j] = next(results)
        scipy.io.savemat(
            folder / "bundled" / f"{names[first].split('_')[0]}.mat",
            {"Idenoised": crops, "israw": False, "eval_version": "1.0"},
        )
