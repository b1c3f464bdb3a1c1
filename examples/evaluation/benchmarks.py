"""The data sets that denoisers are measured on, as they are distributed, and the files that two benchmarks ask for."""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import h5py
import numpy as np
import scipy.io
import torch
from PIL import Image

from gdd_diffusers.camera_noise import CameraNoise
from gdd_diffusers.paired_data import find_images, load_clean, load_pairs


DND_CROPS = 20  # of each image, by the rules of the benchmark


@dataclass
class PictureSet:
    """
    Pictures to denoise, read one at a time.

    Args:
        name (`str`): What tables call it.
        names (`list[str]`): A unique name of each picture, good as a file name.
        load (`Callable[[int], tuple[np.ndarray, np.ndarray | None]]`): Gives the noisy picture with that number and
            the clean one (`None` where the benchmark keeps it): [H, W, 3], uint8, or float32 in [0, 1] for DND.
        submission (`str`, *optional*): `"sidd"` or `"dnd"`, the format that results are handed in.
    """

    name: str
    names: list[str]
    load: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
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

    Noise is seeded by the picture's name, so it is the same in every run. As in a file, it is rounded to 8 bits and
    clipped, which tables of Gaussian denoising in the literature mostly leave out.

    Raises:
        ValueError: If the description cannot be read, a picture has no partner, or a `.mat` lacks its variable.
        FileNotFoundError: If there is no such folder, or nothing known in it.
    """
    match = re.fullmatch(r"([^:]+):(.+?)(?:@([a-z]+):([\d.]+))?", spec)
    if match is None:
        raise ValueError(f"--data is NAME:PATH or NAME:PATH@NOISE:LEVEL, not {spec!r}.")
    name, path, noise, level = match.groups()
    if path.startswith("hub:"):
        pictures = _from_dataset(
            name, _load_hub(path.removeprefix("hub:"), ["clean"] if noise else ["noisy", "clean"])
        )
    elif not Path(path).is_dir():
        raise FileNotFoundError(f"There is no folder {path} (for --data {spec}).")
    else:
        pictures = _from_folder(name, Path(path), clean_only=noise is not None)
    return pictures if noise is None else _with_noise(pictures, noise, float(level))


def _from_folder(name: str, folder: Path, clean_only: bool) -> PictureSet:
    if (folder / "ValidationNoisyBlocksSrgb.mat").exists():
        noisy = _open_blocks(folder / "ValidationNoisyBlocksSrgb.mat")
        clean = _open_blocks(folder / "ValidationGtBlocksSrgb.mat")
        if noisy.shape != clean.shape:
            raise ValueError(f"Noisy and clean blocks in {folder} differ in shape: {noisy.shape}, {clean.shape}.")
        return _from_blocks(name, noisy, clean)
    if (folder / "BenchmarkNoisyBlocksSrgb.mat").exists():
        return _from_blocks(name, _open_blocks(folder / "BenchmarkNoisyBlocksSrgb.mat"), None)
    if (folder / "info.mat").exists():
        return _from_dnd(name, folder)
    if clean_only:
        return _from_dataset(name, load_clean(folder / "clean" if (folder / "clean").is_dir() else folder))
    if (folder / "noisy").is_dir():
        return _from_dataset(name, load_pairs(folder / "noisy", folder / "clean"))
    return _from_crops(name, folder)


def _from_dataset(name: str, dataset: datasets.Dataset) -> PictureSet:
    paths = [cell["path"] for cell in dataset.cast_column("clean", datasets.Image(decode=False))["clean"]]
    # the number keeps names apart where folders below hold files of the same name
    names = [f"{i:04d}_{Path(path).stem}" if path else f"{i:04d}" for i, path in enumerate(paths)]

    def load(i):
        row = dataset[i]
        return tuple(np.asarray(row[key].convert("RGB")) if key in row else None for key in ("noisy", "clean"))

    return PictureSet(name, names, load)


def _load_hub(repo: str, columns: list[str]) -> datasets.Dataset:
    repo, _, split = repo.partition(":")
    splits = datasets.load_dataset(repo)
    if not split and len(splits) > 1:
        raise ValueError(f"{repo} has the splits {', '.join(splits)}: choose one, as in hub:{repo}:{list(splits)[0]}.")
    if split and split not in splits:
        raise ValueError(f"{repo} has no split {split}, but {', '.join(splits)}.")
    dataset = splits[split or list(splits)[0]]
    if not set(columns) <= set(dataset.column_names):
        raise ValueError(f"{repo} needs columns named {' and '.join(columns)}, and has {dataset.column_names}.")
    return dataset


def _from_crops(name: str, folder: Path) -> PictureSet:
    """PolyU and CC: `scene_real.JPG` beside `scene_mean.JPG`."""
    files = {path.stem: path for path in find_images(folder)}
    scenes = sorted({stem[:-5] for stem in files if stem.endswith(("_real", "_mean"))})
    if not scenes:
        raise FileNotFoundError(
            f"{folder} holds neither noisy/ and clean/, nor *_real and *_mean crops, nor the .mat files of SIDD, DND."
        )
    for scene in scenes:
        for ending in ("_real", "_mean"):
            if scene + ending not in files:
                raise ValueError(f"{scene} in {folder} has no partner {scene}{ending}.*.")

    def load(i):
        pair = []
        for ending in ("_real", "_mean"):
            with Image.open(files[scenes[i] + ending]) as image:
                pair.append(np.asarray(image.convert("RGB")))
        return tuple(pair)

    return PictureSet(name, scenes, load)


def _open_blocks(path: Path) -> np.ndarray | h5py.Dataset:
    """The blocks of SIDD, uint8 [40, 32, 256, 256, 3]; of a file of MATLAB 7.3 they stay in the file."""
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}.")
    key = path.stem
    try:
        found = [name for name, *_ in scipy.io.whosmat(path)]
        blocks = scipy.io.loadmat(path, variable_names=[key]).get(key)
    except NotImplementedError:  # scipy's way to say MATLAB 7.3, which is HDF5
        file = h5py.File(path)
        found, blocks = list(file), file.get(key)
    if blocks is None:
        raise ValueError(f"{path} must hold the variable {key}, and has {', '.join(found) or 'none'}.")
    if blocks.ndim != 5 or blocks.dtype != np.uint8:
        raise ValueError(f"{key} in {path} must be uint8 of 5 dimensions, not {blocks.dtype} {list(blocks.shape)}.")
    return blocks


def _from_blocks(name: str, noisy, clean) -> PictureSet:
    in_file = isinstance(noisy, h5py.Dataset)  # HDF5 sees MATLAB's dimensions in reverse order
    images, count = noisy.shape[::-1][:2] if in_file else noisy.shape[:2]

    def block(blocks, i):
        i, j = divmod(i, count)
        return blocks[..., j, i].T if isinstance(blocks, h5py.Dataset) else np.ascontiguousarray(blocks[i, j])

    def load(i):
        return block(noisy, i), None if clean is None else block(clean, i)

    names = [f"{i:04d}_{j:02d}" for i in range(images) for j in range(count)]
    return PictureSet(name, names, load, submission="sidd" if clean is None else None)


def _from_dnd(name: str, folder: Path) -> PictureSet:
    with h5py.File(folder / "info.mat") as file:
        if "info" not in file or "boundingboxes" not in file["info"]:
            raise ValueError(f"{folder / 'info.mat'} must hold info/boundingboxes, and has {', '.join(file)}.")
        # corners top, left, bottom, right of each crop, counted from 1 and inclusive: [images, crops, 4]
        references = file["info"]["boundingboxes"][:].flatten()
        boxes = np.stack([file[reference][:].T for reference in references]).astype(int)

    def load(i):
        i, j = divmod(i, boxes.shape[1])
        top, left, bottom, right = boxes[i, j]
        with h5py.File(folder / "images_srgb" / f"{i + 1:04d}.mat") as file:
            # MATLAB's [H, W, 3] is [3, W, H] here
            crop = file["InoisySRGB"][:, left - 1 : right, top - 1 : bottom].T
        return np.clip(crop, 0, 1).astype(np.float32), None

    names = [f"{i + 1:04d}_{j + 1:02d}" for i in range(len(boxes)) for j in range(boxes.shape[1])]
    return PictureSet(name, names, load, submission="dnd")


def _with_noise(pictures: PictureSet, noise: str, level: float) -> PictureSet:
    if pictures.submission:
        raise ValueError(f"{pictures.name} has no clean pictures to put noise on.")
    simulator = None if noise == "gaussian" else CameraNoise(noise)

    def load(i):
        clean = torch.from_numpy(np.array(pictures.load(i)[1])).permute(2, 0, 1)[None] / 255
        generator = torch.Generator().manual_seed(zlib.crc32(pictures.names[i].encode()))
        if simulator is None:
            noisy = clean + torch.randn(clean.shape, generator=generator) * level / 255
        else:
            clean, noisy = simulator(clean, generator, level)
        return tuple((x.clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy() for x in (noisy, clean))

    return PictureSet(pictures.name, pictures.names, load)


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
