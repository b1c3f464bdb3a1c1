"""Datasets of (noisy, clean) pictures, and training batches that depend on nothing but a seed and the step's number.

A data set is a `datasets.Dataset` with image columns `clean` and, for real pairs, `noisy`. What has only `clean` gets its
noise from a simulator such as [`CameraNoise`] while training.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from PIL import Image, ImageOps


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm"}

# The simulator gets this much more than the crop to each side, so that its borders, and the 8x8 grid of its JPEG
# blocks, fall anywhere in what the network sees.
MARGIN = 4

# Pictures that share one call of the simulator. Fixed, so that the same noise falls on the same picture however the
# batch is divided among processes.
SIMULATION_GROUP = 4


def find_images(folder: str | Path) -> list[Path]:
    """
    All picture files below a folder, sorted by path.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(
            f"No pictures were found in {folder} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return files


def load_clean(folder: str | Path) -> datasets.Dataset:
    """A data set with the one column `clean`: every picture below a folder, for the simulator to put noise on."""
    return _dataset(clean=find_images(folder))


def load_pairs(noisy_dir: str | Path, clean_dir: str | Path) -> datasets.Dataset:
    """
    A data set of `noisy` and `clean` from two folders with the same file names (suffixes may differ).

    Raises:
        ValueError: If a picture has no partner, or one of another size.
    """
    noisy_dir, clean_dir = Path(noisy_dir), Path(clean_dir)
    noisy = {p.relative_to(noisy_dir).with_suffix(""): p for p in find_images(noisy_dir)}
    clean = {p.relative_to(clean_dir).with_suffix(""): p for p in find_images(clean_dir)}
    for name in sorted(noisy.keys() ^ clean.keys()):
        folder = noisy_dir if name not in noisy else clean_dir
        raise ValueError(f"{noisy.get(name, clean.get(name))} has no partner named {name}.* in {folder}.")
    return _dataset(noisy=list(noisy.values()), clean=[clean[name] for name in noisy])


def _dataset(**columns: list[Path]) -> datasets.Dataset:
    if len(columns) > 1:
        for noisy, clean in zip(*columns.values(), strict=True):
            sizes = [_upright_size(path) for path in (noisy, clean)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"A pair must have one size, but {noisy} is {sizes[0][0]}x{sizes[0][1]} and "
                    f"{clean} is {sizes[1][0]}x{sizes[1][1]}."
                )
    features = datasets.Features({name: datasets.Image() for name in columns})
    return datasets.Dataset.from_dict({k: [str(p) for p in v] for k, v in columns.items()}, features=features)


def _upright_size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) > 4
        return image.size[::-1] if turned else image.size


def _decode(cell: dict) -> np.ndarray:
    """A cell of an undecoded image column to uint8 [H, W, 3]."""
    with Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@dataclass
class Source:
    """One data set to draw from, how often, and what makes its noise if it has no column `noisy`."""

    dataset: datasets.Dataset
    weight: float
    simulator: Callable | None = None


class TrainingBatches(torch.utils.data.Dataset):
    """
    Item k is batch k of the training, a function of `seed`, k and the process alone.

    So a training resumes at any step with the data it would have had, without reading what came before, and two
    processes with batches of b see together what one process sees with a batch of 2b.

    Args:
        sources (`list[Source]`): Where pictures are drawn from, each picture of a source as often as the next.
        batch_size (`int`): Pictures per process and batch at the first crop size of the schedule.
        crop_schedule (`list[tuple[int, float]]`): Pairs of a crop size in pixels and the share of the training up to
            which it is used, such as `[(96, 0.5), (128, 1.0)]`. Larger crops make smaller batches of as many pixels.
        num_batches (`int`): Length of the training.
        seed (`int`): Chooses everything.
        process_index (`int`), num_processes (`int`): This process and how many there are.

    Items are dicts of `noisy` and `clean` (uint8, [B, 3, crop, crop]), `u` (float32, [B], uniform in [0, 1), to draw
    t with) and `files`, the names of the pictures.
    """

    def __init__(
        self,
        sources: list[Source],
        batch_size: int,
        crop_schedule: list[tuple[int, float]],
        num_batches: int,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.sources = sources
        self.batch_size = batch_size
        self.crop_schedule = crop_schedule
        self.num_batches = num_batches
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self.probabilities = weights / weights.sum()
        self.pictures = [Pictures(source.dataset) for source in sources]

    def __len__(self) -> int:
        return self.num_batches

    def crop_and_batch_size(self, k: int) -> tuple[int, int]:
        crop = next(size for size, until in self.crop_schedule if k < until * self.num_batches)
        return crop, max(1, round(self.batch_size * (self.crop_schedule[0][0] / crop) ** 2))

    def __getitem__(self, k: int) -> dict:
        crop, batch_size = self.crop_and_batch_size(k)
        first = self.process_index * batch_size
        samples = [self.draw(np.random.default_rng([self.seed, k, first + i]), crop) for i in range(batch_size)]
        for start in range(0, batch_size, SIMULATION_GROUP):
            self.simulate(samples[start : start + SIMULATION_GROUP], crop)
        return {
            "noisy": torch.stack([sample["noisy"] for sample in samples]),
            "clean": torch.stack([sample["clean"] for sample in samples]),
            "u": torch.tensor([sample["u"] for sample in samples], dtype=torch.float32),
            "files": [sample["file"] for sample in samples],
        }

    def draw(self, rng: np.random.Generator, crop: int) -> dict:
        """One crop of one picture, flipped and turned at random."""
        while True:
            chosen = rng.choice(len(self.sources), p=self.probabilities)
            simulator, pictures = self.sources[chosen].simulator, self.pictures[chosen]
            row = int(rng.integers(len(pictures)))
            picture = pictures[row]
            if picture is not None:
                break
        size = crop + 2 * MARGIN if simulator else crop
        height, width = picture["clean"].shape[:2]
        if min(height, width) < size:
            raise ValueError(
                f"{pictures.name(row)} is {width}x{height}, too small for crops of {crop} px (needs {size}); "
                "remove it or choose a smaller crop size."
            )
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        turns, flip = rng.integers(4), rng.integers(2)

        def cut(image):
            image = np.rot90(image[top : top + size, left : left + size], turns)
            return torch.from_numpy(np.ascontiguousarray((image[:, ::-1] if flip else image).transpose(2, 0, 1)))

        sample = {name: cut(image) for name, image in picture.items()}
        offset = rng.integers(2 * MARGIN + 1, size=2) if simulator else (0, 0)
        return sample | {
            "simulator": simulator,
            "offset": offset,
            "noise_seed": int(rng.integers(2**63)),
            "u": rng.random(dtype=np.float32),
            "file": pictures.name(row),
        }

    def simulate(self, samples: list[dict], crop: int):
        """Put noise on those of the samples that have none."""
        for simulator in {id(s["simulator"]): s["simulator"] for s in samples if s["simulator"]}.values():
            group = [sample for sample in samples if sample["simulator"] is simulator]
            generator = torch.Generator().manual_seed(group[0]["noise_seed"])
            clean, noisy = simulator(torch.stack([s["clean"] for s in group]) / 255, generator=generator)
            for i, sample in enumerate(group):
                top, left = sample["offset"]
                for name, batch in (("clean", clean), ("noisy", noisy)):
                    sample[name] = (batch[i, :, top : top + crop, left : left + crop] * 255).round().to(torch.uint8)


class Pictures:
    """The decoded rows of a data set, kept in memory once read as long as they take at most half of what is free."""

    def __init__(self, dataset: datasets.Dataset):
        self.columns = [name for name in ("noisy", "clean") if name in dataset.column_names]
        for name in self.columns:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self.dataset = dataset
        self.kept = {}
        self.free_bytes = psutil.virtual_memory().available // 2
        self.unreadable = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, row: int) -> str:
        return self.dataset[row]["clean"]["path"] or f"row {row}"

    def __getitem__(self, row: int) -> dict[str, np.ndarray] | None:
        """The pictures of a row by column; None, with a warning, where a file cannot be read."""
        if row in self.kept:
            return self.kept[row]
        try:
            picture = {name: _decode(self.dataset[row][name]) for name in self.columns}
        except (OSError, SyntaxError, ValueError) as error:
            self.unreadable.add(row)
            logger.warning(f"{self.name(row)} cannot be read and is left out ({error}).")
            if len(self.unreadable) > max(1, 0.01 * len(self)):
                names = ", ".join(self.name(i) for i in sorted(self.unreadable))
                raise ValueError(f"More than 1% of the pictures cannot be read: {names}.") from error
            picture = None
        size = sum(image.nbytes for image in picture.values()) if picture else 0
        if size <= self.free_bytes:
            self.free_bytes -= size
            self.kept[row] = picture
        return picture
