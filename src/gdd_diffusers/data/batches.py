"""Build training batches that depend on a seed and the number of the batch alone."""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import psutil
import torch

from .decoding import UNREADABLE, decode, image_size, is_grey


logger = logging.getLogger(__name__)

# Images per call of the simulator on a CPU. Fixed, so that an image gets the same noise on any number of processes.
SIMULATION_GROUP = 8


class PairedImages:
    """
    The decoded rows of a dataset, kept in memory once read while a quarter of the machine's memory stays free.

    A row that cannot be read is skipped with a warning.

    `dataset` has an image column `clean`, and `noisy` for real pairs.

    Raises:
        ValueError: If more than 1% of the rows, and more than one, cannot be read, or the sizes of a pair differ.
    """

    def __init__(self, dataset: datasets.Dataset | datasets.IterableDataset):
        self.columns = [name for name in ("noisy", "clean") if name in dataset.features]
        for name in self.columns:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self.dataset = dataset
        self.cache = {}
        self.unreadable = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict | None:
        """Return a row as [`~.read`] does, from memory if possible."""
        if row in self.cache:
            return self.cache[row]
        images = self.read(self.dataset[row], row, len(self))
        if psutil.virtual_memory().percent < 75:
            self.cache[row] = images
        return images

    def draw(self, rng: np.random.Generator, sample_number: int) -> dict:
        """Return a readable row chosen by `rng`."""
        while (images := self[int(rng.integers(len(self)))]) is None:
            pass
        return images

    def read(self, cells: dict, row: int | str, num_rows: int) -> dict | None:
        """
        Decode a row to `clean`, `noisy` if it is a pair (uint8, `[H, W, 3]`), `grey`, which says whether the channels
        of `clean` are equal, and `file`, a name for messages.

        Returns `None` if an image cannot be read.
        """
        images: dict[str, Any] = {"file": _file_name(cells["clean"], row)}
        for name in self.columns:
            try:
                images[name] = decode(cells[name])
            except UNREADABLE as error:
                self._count_unreadable(_file_name(cells[name], row), row, num_rows, error)
                return None
        sizes = [images[name].shape[1::-1] for name in self.columns]
        if sizes[0] != sizes[-1]:
            raise ValueError(f"A pair must have one size, but {images['file']} has {sizes[0]} and {sizes[1]}.")
        return images | {"grey": is_grey(images["clean"])}

    def _count_unreadable(self, file, row, num_rows, error):
        if row not in self.unreadable:
            logger.warning(f"{file} cannot be read and is left out: {error}")
        self.unreadable[row] = file
        count = len(self.unreadable)
        if count > max(1, 0.01 * num_rows) or count == num_rows:
            names = ", ".join(list(self.unreadable.values())[:10])
            raise ValueError(
                f"{count} of {num_rows} images cannot be read, which is more than 1%: {names} ({error})."
            ) from error


class StreamedImages(PairedImages):
    """
    The rows of a streamed dataset in a fixed, shuffled order, epoch after epoch: sample n of a process is its row n.

    In every epoch a process reads its own share of the files, another each time; if there are fewer files than
    processes, it reads all of them and keeps its share of the rows. To resume at row n, it skips those before.
    """

    def __init__(self, dataset: datasets.IterableDataset, seed: int, process_index: int = 0, num_processes: int = 1):
        super().__init__(dataset)
        self.seed, self.process_index, self.num_processes = seed, process_index, num_processes
        self.position = 0  # of the next row, counted over all epochs
        self.rows: Iterator[dict] | None = None
        self.last: dict | None = None  # replaces an unreadable row

    def epoch(self, epoch: int) -> Iterator[dict]:
        """Yield the rows of this process once."""
        rng = np.random.default_rng([self.seed, epoch])
        num_files = self.dataset.num_shards
        files = rng.permutation(num_files)
        share = slice(self.process_index, None, self.num_processes)
        if num_files < self.num_processes:
            return itertools.islice(self.shuffle(files, rng), share.start, None, share.step)
        return self.shuffle(files[share], rng)

    def shuffle(self, files: np.ndarray, rng: np.random.Generator) -> Iterator[dict]:
        """
        Yield every row of some files once, from eight files at a time, through a buffer.

        `IterableDataset.shuffle` does the same, but its order in a worker process is a different one.
        """
        closed = [self.dataset.shard(self.dataset.num_shards, int(i)) for i in files]
        opened, buffer = [], []
        while closed or opened:
            while closed and len(opened) < 8:
                opened.append(iter(closed.pop()))
            chosen = rng.integers(len(opened))
            row = next(opened[chosen], None)
            if row is None:
                opened.pop(chosen)
                continue
            buffer.append(row)
            if len(buffer) > 256:
                yield buffer.pop(rng.integers(len(buffer)))
        yield from (buffer[i] for i in rng.permutation(len(buffer)))

    def all_epochs(self) -> Iterator[dict]:
        for epoch in itertools.count():
            rows = self.epoch(epoch)
            first = next(rows, None)
            if first is not None:
                yield first
            elif epoch == 0:
                raise ValueError(
                    f"The streamed dataset is empty, or has too few rows for {self.num_processes} processes."
                )
            yield from rows

    def draw(self, rng: np.random.Generator, sample_number: int) -> dict:
        """Return row `sample_number`, counted over all epochs."""
        if self.rows is None or sample_number < self.position:
            self.rows = self.all_epochs()
            self.position, self.last = 0, None
        while self.position <= sample_number or self.last is None:
            cells = next(self.rows)
            self.position += 1
            # When resuming, decode the row before as well, in case this one is unreadable.
            if self.position >= sample_number:
                row = (cells["clean"] or {}).get("path") or self.position
                self.last = self.read(cells, row, max(self.position, 100)) or self.last
        return self.last


@dataclass
class Source:
    """A dataset to train on, and how often to draw from it relative to the others."""

    dataset: datasets.Dataset | datasets.IterableDataset
    weight: float
    # (clean, generator=) -> (clean, noisy), float [B, 3, H, W] in [0, 1], or [B, 1, H, W] of grey images; needed
    # without a column `noisy`
    simulator: Callable | None = None


class TrainingBatches(torch.utils.data.Dataset):
    """
    A map-style dataset whose item k is batch k of the training, a function of `seed`, k and the process alone.

    A resumed training therefore sees the data it would have seen. Two processes with batches of b (a multiple of 8
    where noise is simulated) together see what one process sees with batches of 2b; of a stream, each reads its own
    share.

    Items are dicts of `noisy` and `clean` (uint8, `[B, 3, crop, crop]`), `u` (float32, `[B]`, uniform in [0, 1), for
    the timesteps) and `files`, the names of the images.

    Args:
        sources: Datasets to draw from, each row of a dataset as often as the next.
        batch_size: Images per process and batch at the first crop size of the schedule.
        crop_schedule: Crop sizes in pixels and the share of the training that each is used up to, such as
            `[(96, 0.5), (128, 1.0)]`. Larger crops make smaller batches of about as many pixels.
        shuffle_crop_sizes: Whether to take the crop sizes in random order, each in its share of the batches.
        num_batches: Length of the training.
        device: The device that trains, if it is to simulate the noise: pass each item to [`~.simulate`]. A GPU takes
            the whole batch at once, so that the noise also depends on the batch size. By default, and on devices other
            than CPU and CUDA, items come complete, made on the CPU.

    Raises:
        ValueError: If an image is smaller than the largest crop, or clean images have no simulator.

    Example:

    ```py
    >>> import datasets
    >>> from PIL import Image
    >>> from gdd_diffusers.data.batches import Source, TrainingBatches

    >>> images = [Image.effect_noise((64, 48), 50).convert("RGB") for _ in range(3)]
    >>> dataset = datasets.Dataset.from_dict({"noisy": images, "clean": images})
    >>> batches = TrainingBatches([Source(dataset, weight=1)], batch_size=4, crop_schedule=[(32, 1.0)], num_batches=10)
    >>> batches[7]["noisy"].shape, bool((batches[7]["noisy"] == batches[7]["clean"]).all())
    (torch.Size([4, 3, 32, 32]), True)

    ```
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
        device: torch.device | str | None = None,
        shuffle_crop_sizes: bool = False,
    ):
        # The simulator needs operations that some versions of torch lack on Apple's GPUs.
        requested = torch.device(device or "cpu")
        self.simulates_later = device is not None and requested.type in ("cpu", "cuda")
        self.device = requested if self.simulates_later else torch.device("cpu")
        self.sources = sources
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self.probabilities = weights / weights.sum()
        self.seed, self.process_index = seed, process_index

        self.crop_sizes = np.full(num_batches, crop_schedule[-1][0])
        for crop, until in reversed(crop_schedule):
            self.crop_sizes[: round(until * num_batches)] = crop
        if shuffle_crop_sizes:
            np.random.default_rng(seed).shuffle(self.crop_sizes)
        shrinkage = (crop_schedule[0][0] / self.crop_sizes) ** 2
        self.batch_sizes = np.maximum(1, np.rint(batch_size * shrinkage).astype(int))
        # Number of the first sample of each batch, counted over the batches of one process.
        self.first_samples = np.cumsum(self.batch_sizes) - self.batch_sizes
        self.group_size = SIMULATION_GROUP if self.device.type == "cpu" else self.batch_sizes.max()

        self.images: list[PairedImages] = []
        for source in sources:
            if source.simulator is None and "noisy" not in source.dataset.features:
                raise ValueError("A source of clean images alone needs a simulator.")
            if isinstance(source.dataset, datasets.IterableDataset):
                self.images.append(StreamedImages(source.dataset, seed, process_index, num_processes))
            else:
                self.images.append(PairedImages(source.dataset))
                check_sizes(self.images[-1], max(crop for crop, _ in crop_schedule))

    def __len__(self) -> int:
        return len(self.crop_sizes)

    def __getitem__(self, k: int) -> dict:
        crop, batch_size = int(self.crop_sizes[k]), int(self.batch_sizes[k])
        first = self.process_index * batch_size
        samples = [self.draw_sample(k, i, crop) for i in range(first, first + batch_size)]
        batch: dict[str, Any] = {
            name: torch.stack([sample[name] for sample in samples]) for name in ("noisy", "clean")
        }
        batch["u"] = torch.tensor([sample["u"] for sample in samples], dtype=torch.float32)
        batch |= {name: [sample[name] for sample in samples] for name in ("files", "noise")}
        return batch if self.simulates_later else self.simulate(batch)

    def draw_sample(self, k: int, i: int, crop: int) -> dict:
        """Return sample i of batch k, counted over all processes: a random crop, randomly flipped and turned."""
        rng = np.random.default_rng([self.seed, k, i])
        source = int(rng.choice(len(self.images), p=self.probabilities))
        sample_number = self.first_samples[k] + i - self.process_index * self.batch_sizes[k]
        images = self.images[source].draw(rng, sample_number)
        height, width = images["clean"].shape[:2]
        _check_size(images["file"], (width, height), crop)
        top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
        turns, flip = rng.integers(4), rng.integers(2)
        sample = {
            "files": images["file"],
            "u": rng.random(dtype=np.float32),
            "noise": (source, images["grey"], int(rng.integers(2**63))),
        }
        for name in ("noisy", "clean"):
            pixels = images.get(name, images["clean"])[top : top + crop, left : left + crop]
            pixels = np.rot90(pixels, int(turns))[:, :: -1 if flip else 1]
            sample[name] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return sample

    def simulate(self, batch: dict) -> dict:
        """Complete an item: move it to the device, and simulate the noise that it still needs."""
        clean, noisy = (batch[name].to(self.device, copy=True) for name in ("clean", "noisy"))
        groups = {}  # by position, simulator and number of channels: one call each
        for row, (source, grey, seed) in enumerate(batch.get("noise", ())):
            if simulator := self.sources[source].simulator:
                channels = 1 if grey else 3
                groups.setdefault((row // self.group_size, simulator, channels), []).append((row, seed))
        for (_, simulator, channels), group in groups.items():
            rows = [row for row, _ in group]
            generator = torch.Generator(self.device).manual_seed(group[0][1])
            with torch.inference_mode():  # faster than no_grad for the simulator's many small operations
                pair = simulator(clean[rows, :channels] / 255, generator=generator)
                clean[rows], noisy[rows] = ((images * 255).round().to(torch.uint8) for images in pair)
        return {"clean": clean, "noisy": noisy, "u": batch["u"].to(self.device), "files": batch["files"]}


def check_sizes(images: PairedImages, smallest: int):
    """Raise a ValueError if an image file is smaller. Images within the dataset are checked when they are read."""
    for cell in images.dataset["clean"]:
        if cell and cell["bytes"] is not None:
            return
        if size := image_size(cell):
            _check_size(cell["path"], size, smallest)


def _file_name(cell: dict | None, row: int | str) -> str:
    return (cell or {}).get("path") or f"row {row}"


def _check_size(file: str, size: tuple[int, int], smallest: int):
    if min(size) < smallest:
        raise ValueError(
            f"{file} is {size[0]}x{size[1]}, but training needs sides of at least {smallest} px: leave it out or "
            "choose a smaller crop."
        )
