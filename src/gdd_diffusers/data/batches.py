"""Training batches that depend on nothing but a seed and the step's number."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import psutil
import torch

from .layouts import UNREADABLE, decode, open_cell, upright_size


logger = logging.getLogger(__name__)

# Images that share one call of the simulator on a CPU. Fixed, so that the same noise falls on the same image
# however a batch is divided among processes.
SIMULATION_GROUP = 8


class Pictures:
    """
    The decoded rows of a data set, kept in memory once read while a quarter of the machine's memory stays free.

    A file that cannot be read is named in a warning, skipped and counted.

    Args:
        dataset (`datasets.Dataset`): With an image column `clean`, and `noisy` for real pairs.

    Raises:
        ValueError: When more than 1% of the rows, and more than one, cannot be read; when a pair's sizes differ.
    """

    def __init__(self, dataset: datasets.Dataset):
        self.columns = [name for name in ("noisy", "clean") if name in dataset.features]
        for name in self.columns:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self.dataset = dataset
        self.kept = {}
        self.unreadable = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict | None:
        """`clean` (uint8 [H, W, 3]), `noisy` if there is one, and `file`, their name; `None` for an unreadable row."""
        if row in self.kept:
            return self.kept[row]
        picture = self.read(self.dataset[row], row, len(self))
        if psutil.virtual_memory().percent < 75:
            self.kept[row] = picture
        return picture

    def draw(self, rng: np.random.Generator, sample_number: int) -> dict:
        """A readable row chosen by `rng`."""
        while True:
            picture = self[int(rng.integers(len(self)))]
            if picture is not None:
                return picture

    def read(self, cells: dict, row: int | str, num_rows: int) -> dict | None:
        """A row's pictures, decoded; unreadable rows are counted by `row`, among `num_rows`."""
        picture = {"file": cells["clean"]["path"] or f"row {row}"}
        for name in self.columns:
            try:
                picture[name] = decode(cells[name])
            except UNREADABLE as error:
                file = cells[name]["path"] or f"row {row}"
                if row not in self.unreadable:
                    logger.warning(f"{file} cannot be read and is left out: {error}")
                self.unreadable[row] = file
                count = len(self.unreadable)
                if count > max(1, 0.01 * num_rows) or count == num_rows:
                    names = ", ".join(list(self.unreadable.values())[:10])
                    raise ValueError(
                        f"{count} of {num_rows} pictures cannot be read, which is more than 1%: {names}."
                    ) from error
                return None
        sizes = [picture[name].shape[1::-1] for name in self.columns]
        if sizes[0] != sizes[-1]:
            raise ValueError(f"A pair must have one size, but {picture['file']} has {sizes[0]} and {sizes[1]}.")
        return picture


class StreamedPictures(Pictures):
    """
    The rows of a streamed data set in a fixed, shuffled order, pass after pass: sample n of the training is row n.

    Every process reads the whole stream and decodes its own rows only, and going on at row n reads past those before.
    """

    def __init__(self, dataset: datasets.IterableDataset, seed: int):
        super().__init__(dataset)
        self.seed = seed
        self.position = 0  # of the next row, counted over all passes
        self.rows = None
        self.last = None  # the picture before, which takes the place of an unreadable one

    def shuffled_pass(self, number: int):
        """
        Every row once, from eight files at a time, through a buffer.

        As `IterableDataset.shuffle` does, whose order is another one in a worker process.
        """
        rng = np.random.default_rng([self.seed, number])
        num_files = self.dataset.num_shards
        closed = [self.dataset.shard(num_files, int(i)) for i in rng.permutation(num_files)]
        being_read, buffer = [], []
        while closed or being_read:
            while closed and len(being_read) < 8:
                being_read.append(iter(closed.pop()))
            chosen = rng.integers(len(being_read))
            row = next(being_read[chosen], None)
            if row is None:
                being_read.pop(chosen)
                continue
            buffer.append(row)
            if len(buffer) > 256:
                yield buffer.pop(rng.integers(len(buffer)))
        if number == 0 and not buffer:
            raise ValueError("The streamed data set is empty.")
        yield from (buffer[i] for i in rng.permutation(len(buffer)))

    def draw(self, rng: np.random.Generator, sample_number: int) -> dict:
        """Row `sample_number`, counted over all passes."""
        if self.rows is None or sample_number < self.position:
            self.rows = (row for number in itertools.count() for row in self.shuffled_pass(number))
            self.position, self.last = 0, None
        while self.position <= sample_number or self.last is None:
            cells = next(self.rows)
            self.position += 1
            # The row before is decoded too, should this one be unreadable where the training goes on.
            if self.position >= sample_number:
                key = cells["clean"]["path"] or self.position
                self.last = self.read(cells, key, max(self.position, 100)) or self.last
        return self.last


@dataclass
class Source:
    """
    One data set to learn from.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): With `clean`, and `noisy` unless it is simulated.
        weight (`float`): How often to draw from it, relative to the others.
        simulator (`Callable`, *optional*): `(clean, generator=) -> (clean, noisy)`, float [B, 3, H, W] in [0, 1].
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    weight: float
    simulator: Callable | None = None


class TrainingBatches(torch.utils.data.Dataset):
    """
    Item k is batch k of the training, a function of `seed`, k and the process alone.

    So a training goes on at any step with the data it would have had, and two processes with batches of b (a multiple
    of 8 where noise is simulated) see together what one process sees with a batch of 2b.

    Args:
        sources (`list[Source]`): Where pictures are drawn from, each row of a source as often as the next.
        batch_size (`int`): Pictures per process and batch at the first crop size of the schedule.
        crop_schedule (`list[tuple[int, float]]`): Crop sizes in pixels and the share of the training that each is used
            up to, such as `[(96, 0.5), (128, 1.0)]`. Larger crops make smaller batches of about as many pixels.
        num_batches (`int`): Length of the training.
        seed (`int`, defaults to 0): Chooses everything.
        process_index (`int`, defaults to 0), num_processes (`int`, defaults to 1): This process among how many.
        device (`torch.device`, *optional*): A CPU, or a GPU of CUDA, on which [`~.simulate`] is to be called with each
            item. A GPU simulates noise many times faster, and takes the whole batch at once, so that the noise also
            depends on the batch size. If not given, or another, noise is a part of making an item, on the CPU.

    Items are dicts of `noisy` and `clean` (uint8, [B, 3, crop, crop]), `u` (float32, [B], uniform in [0, 1), for the
    times) and `files`, the names of the pictures.

    Raises:
        ValueError: If a picture is smaller than the largest crop.

    Example:

    ```py
    >>> import datasets
    >>> from PIL import Image
    >>> from gdd_diffusers.data.batches import (Source, TrainingBatches)

    >>> pictures = [Image.effect_noise((64, 48), 50).convert("RGB") for _ in range(3)]
    >>> dataset = datasets.Dataset.from_dict({"noisy": pictures, "clean": pictures})
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
    ):
        self.simulates_later = device is not None and torch.device(device).type in ("cpu", "cuda")
        self.device = torch.device(device if self.simulates_later else "cpu")
        self.simulators = [source.simulator for source in sources]  # None for real pairs
        for source in sources:
            if source.simulator is None and "noisy" not in source.dataset.features:
                raise ValueError("A source of clean pictures alone needs a simulator.")
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self.probabilities = weights / weights.sum()
        self.pictures = [
            StreamedPictures(source.dataset, seed)
            if isinstance(source.dataset, datasets.IterableDataset)
            else Pictures(source.dataset)
            for source in sources
        ]
        self.seed, self.process_index = seed, process_index

        self.crop_sizes = np.empty(num_batches, dtype=int)
        for crop, until in reversed(crop_schedule):
            self.crop_sizes[: round(until * num_batches)] = crop
        shrinkage = (crop_schedule[0][0] / self.crop_sizes) ** 2
        self.batch_sizes = np.maximum(1, np.rint(batch_size * shrinkage).astype(int))
        # Number of the first sample of each batch, counted over all processes.
        self.first_samples = num_processes * (np.cumsum(self.batch_sizes) - self.batch_sizes)

        for pictures in self.pictures:
            check_sizes(pictures, max(crop for crop, _ in crop_schedule))

    def __len__(self) -> int:
        return len(self.crop_sizes)

    def __getitem__(self, k: int) -> dict:
        crop, batch_size = int(self.crop_sizes[k]), int(self.batch_sizes[k])
        first = self.process_index * batch_size
        samples = [self.draw_sample(k, i, crop) for i in range(first, first + batch_size)]
        clean = torch.stack([sample["clean"] for sample in samples])
        real = any("noisy" in sample for sample in samples)
        batch = {
            "clean": clean,
            # One tensor where noise is to come: what a worker sends, it sends once
            "noisy": torch.stack([sample.get("noisy", sample["clean"]) for sample in samples]) if real else clean,
            "u": torch.tensor([sample["u"] for sample in samples], dtype=torch.float32),
            "files": [sample["file"] for sample in samples],
            "to_simulate": [],
        }
        group_size = SIMULATION_GROUP if self.device.type == "cpu" else batch_size
        for start in range(0, batch_size, group_size):
            rows = range(start, min(start + group_size, batch_size))
            for simulator in filter(None, dict.fromkeys(self.simulators)):
                group = [i for i in rows if samples[i]["simulator"] is simulator]
                if group:
                    source, noise_seed = self.simulators.index(simulator), samples[group[0]]["noise_seed"]
                    batch["to_simulate"].append({"source": source, "seed": noise_seed, "rows": group})
        return batch if self.simulates_later else self.simulate(batch)

    def draw_sample(self, k: int, i: int, crop: int) -> dict:
        """Sample i of batch k, counted over all processes: a crop of a picture, flipped and turned at random."""
        rng = np.random.default_rng([self.seed, k, i])
        source = rng.choice(len(self.pictures), p=self.probabilities)
        simulator = self.simulators[source]
        picture = self.pictures[source].draw(rng, self.first_samples[k] + i)
        height, width = picture["clean"].shape[:2]
        if min(height, width) < crop:
            raise ValueError(_too_small(picture["file"], (width, height), crop))
        top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
        turns, flip = rng.integers(4), rng.integers(2)
        sample = {
            "file": picture["file"],
            "u": rng.random(dtype=np.float32),
            "simulator": simulator,
            "noise_seed": int(rng.integers(2**63)),
        }
        for name in ("noisy", "clean"):
            if name in picture:
                image = np.rot90(picture[name][top : top + crop, left : left + crop], turns)
                image = image[:, ::-1] if flip else image
                sample[name] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return sample

    def simulate(self, batch: dict) -> dict:
        """An item with noise on those of its pictures that still need it, on the device that simulates."""
        batch = dict(batch)
        clean, noisy = (batch[name].to(self.device, copy=True) for name in ("clean", "noisy"))
        for group in batch.pop("to_simulate", []):
            self.add_noise(clean, noisy, group)
        return batch | {"clean": clean, "noisy": noisy, "u": batch["u"].to(self.device)}

    @torch.inference_mode()  # of the thousand small operations, each takes less than without gradients alone
    def add_noise(self, clean: torch.Tensor, noisy: torch.Tensor, group: dict):
        """Put a pair in place of each photograph in `clean` that belongs to a group of an item's `to_simulate`."""
        generator = torch.Generator(clean.device).manual_seed(group["seed"])
        pairs = self.simulators[group["source"]](clean[group["rows"]] / 255, generator=generator)
        for pictures, simulated in zip((clean, noisy), pairs, strict=True):
            pictures[group["rows"]] = (simulated * 255).round().to(torch.uint8)


def check_sizes(pictures: Pictures, smallest: int):
    """Raise a ValueError if a file of the data set is smaller, as far as can be known without reading pictures."""
    if isinstance(pictures, StreamedPictures):
        return
    for cell in pictures.dataset["clean"]:
        if cell["bytes"] is not None:
            return  # stored in the data set itself, where sizes are seen when read
        try:
            with open_cell(cell) as image:
                size = upright_size(image)
        except UNREADABLE:
            continue
        if min(size) < smallest:
            raise ValueError(_too_small(cell["path"], size, smallest))


def _too_small(file: str, size: tuple[int, int], smallest: int) -> str:
    return (
        f"{file} is {size[0]}x{size[1]}, but training needs sides of at least {smallest} px: leave it out or choose a "
        "smaller crop."
    )
