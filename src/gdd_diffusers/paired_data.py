"""Datasets of (noisy, clean) pictures, and training batches that depend on nothing but a seed and the step's number.

A data set is a `datasets.Dataset` with the image columns `noisy` and `clean`, and `scene`, a string: two pictures of
one scene are never split between training and validation. Clean photographs alone have no column `noisy`, and get
their noise from a simulator such as `CameraNoise` while training.
"""

import hashlib
import io
import itertools
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from PIL import Image, ImageOps

from .image_files import pictures_in
from .matlab_files import open_dnd, open_sidd_blocks


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm")  # that Pillow decodes

# What Pillow raises for files that it cannot read, in pixels or header
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# Pictures that share one call of the simulator on a CPU. Fixed, so that the same noise falls on the same picture
# however a batch is divided among processes.
SIMULATION_GROUP = 8


# Where pictures come from


def find_images(folder: str | Path) -> list[Path]:
    """
    All picture files below a folder, sorted by path, hidden ones left out.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no picture.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = pictures_in(folder, IMAGE_SUFFIXES, recursive=True)
    if not files:
        raise FileNotFoundError(f"No pictures were found in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    return files


def load_clean(folder: str | Path) -> datasets.Dataset:
    """
    Every picture below a folder as `clean`, each name a scene of its own, for a simulator to put noise on.

    Raises:
        FileNotFoundError: If there are none.
    """
    files = find_images(folder)
    return _from_files(files, scenes=[str(path.relative_to(folder).with_suffix("")) for path in files])


def load_pairs(noisy_dir: str | Path, clean_dir: str | Path) -> datasets.Dataset:
    """
    Pairs from two folders with the same file names; suffixes may differ. A subfolder, if there are any, is a scene.

    Args:
        noisy_dir (`str` or `Path`): Folder of the noisy pictures.
        clean_dir (`str` or `Path`): Folder of their clean partners.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no picture.
        ValueError: If a picture has no partner, two of the same name, or one of another size.

    Example:

    ```py
    >>> import tempfile
    >>> from PIL import Image
    >>> from gdd_diffusers.paired_data import load_pairs

    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("noisy", "clean"):
    ...     (folder / name).mkdir()
    ...     Image.new("RGB", (8, 6)).save(folder / name / "1.png")
    >>> dataset = load_pairs(folder / "noisy", folder / "clean")
    >>> dataset.column_names, dataset[0]["noisy"].size
    (['noisy', 'clean', 'scene'], (8, 6))

    ```
    """
    by_name = []
    for folder in (Path(noisy_dir), Path(clean_dir)):
        names = {}
        for path in find_images(folder):
            name = path.relative_to(folder).with_suffix("")
            if name in names:
                raise ValueError(f"{names[name]} and {path} have one name; a picture needs exactly one partner.")
            names[name] = path
        by_name.append(names)
    noisy, clean = by_name
    for name in sorted(noisy.keys() ^ clean.keys()):
        present, missing = (noisy, clean_dir) if name in noisy else (clean, noisy_dir)
        raise ValueError(f"{present[name]} has no partner named {name}.* in {missing}.")
    scenes = [str(name.parent if name.parent.name else name) for name in noisy]
    return _from_files([clean[name] for name in noisy], list(noisy.values()), scenes)


def load_marked_pairs(
    folder: str | Path, noisy_mark: str, clean_mark: str, scene_of: Callable[[Path], str] | None = None
) -> datasets.Dataset:
    """
    Pairs from one folder where the paths differ in one mark: `a/1_noisy.png` and `a/1_clean.png`.

    Args:
        folder (`str` or `Path`): Searched with its subfolders. Pictures without a mark are left alone.
        noisy_mark (`str`): What the name of every noisy picture contains, such as `"_noisy"`.
        clean_mark (`str`): What its partner has in that place, such as `"_clean"`, or nothing at all, `""`.
        scene_of (`Callable`, *optional*): From a noisy path to its scene; by default each pair is its own.

    Raises:
        FileNotFoundError: If there is no folder, no picture or none with the mark.
        ValueError: If a picture has no partner, or one of another size.
    """
    files = find_images(folder)
    noisy = [path for path in files if noisy_mark in path.name]
    if not noisy:
        raise FileNotFoundError(f"No picture in {folder} has {noisy_mark!r} in its name.")
    clean = [path.with_name(path.name.replace(noisy_mark, clean_mark)) for path in noisy]
    partners = set(clean)
    for path, partner in zip(noisy, clean, strict=True):
        if not partner.is_file():
            raise ValueError(f"{path} has no partner {partner.name} beside it.")
    for path in files:
        if clean_mark and clean_mark in path.name and path not in partners:
            raise ValueError(f"{path} has no partner {path.name.replace(clean_mark, noisy_mark)} beside it.")
    scene_of = scene_of or (lambda path: str(path.relative_to(folder)))
    return _from_files(clean, noisy, [scene_of(path) for path in noisy])


def load_sidd(folder: str | Path) -> datasets.Dataset:
    """
    SIDD-Medium in sRGB as downloaded: `Data/0001_001_S6_.../0001_NOISY_SRGB_010.PNG` beside its `GT` partner.

    The second number in the folder's name is the scene (Abdelhamed et al., CVPR 2018).

    Raises:
        ValueError: If a picture lies in a folder without such a name, or has no partner.
    """

    def scene_of(path):
        match = re.match(r"\d+_(\d+)_", path.parent.name)
        if not match:
            raise ValueError(f"{path} must lie in the folder it came in, such as 0001_001_S6_00100_00060_3200_L.")
        return match[1]

    return load_marked_pairs(folder, "NOISY_SRGB", "GT_SRGB", scene_of)


def load_sidd_validation(folder: str | Path) -> datasets.Dataset:
    """
    The SIDD validation blocks, each of the 40 pictures a scene; they are kept in memory, as PNG files.

    Raises:
        FileNotFoundError, ValueError: As [`open_sidd_blocks`].
    """
    return _from_arrays(*open_sidd_blocks(folder, "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"))


def load_polyu(folder: str | Path) -> datasets.Dataset:
    """
    Crops of PolyU (Xu et al., 2018) or CC (Nam et al., 2016): `..._bicycle_10_real.JPG` beside `..._mean.JPG`.

    The name up to the crop's number is the scene.
    """
    return load_marked_pairs(folder, "_real", "_mean", lambda path: re.sub(r"_+\d+_real.*", "", path.name))


def load_scenes(folder: str | Path) -> datasets.Dataset:
    """
    One subfolder per scene with several exposures, as in RENOIR and NIND: each noisy one is paired with the reference.

    The reference has `reference`, `gt` or `clean` in its name (RENOIR's `Full`, nearly clean as well, is left out), or
    else it is the one of lowest ISO, as in `NIND_tree_ISO200.png`.

    Raises:
        ValueError: If a scene has no reference, nothing else, or pictures of several sizes.
    """
    scenes = {}
    for path in find_images(folder):
        scenes.setdefault(path.parent, []).append(path)
    clean, noisy = [], []
    for scene, files in scenes.items():
        named = [path for path in files if re.search(r"reference|(?<![a-z])(gt|clean)(?![a-z])", path.stem, re.I)]
        iso = {path: int(m[1]) for path in files if (m := re.search(r"ISO_?(\d+)", path.stem, re.I))}
        if len(named) != 1 and not iso:
            raise ValueError(
                f"{scene} has no reference: one picture must have 'reference', 'gt' or 'clean' in its name, or every "
                "name its ISO."
            )
        reference = named[0] if len(named) == 1 else min(iso, key=iso.get)
        others = [path for path in files if path != reference and "full" not in path.stem.lower()]
        if not others:
            raise ValueError(f"{scene} has a reference, {reference.name}, but no noisy picture.")
        noisy += others
        clean += [reference] * len(others)
    return _from_files(clean, noisy, [str(path.parent.relative_to(folder)) for path in noisy])


def load_dnd(folder: str | Path) -> datasets.Dataset:
    """
    The noisy crops of DND in sRGB, rounded to 8 bits; they are kept in memory, as PNG files. There are no clean ones.

    Raises:
        OSError, ValueError: As [`open_dnd`].
    """
    names, load = open_dnd(folder)
    return _from_arrays(names, lambda i: ((load(i) * 255).round().astype(np.uint8),))


LAYOUTS = {
    "clean": load_clean,
    "sidd": load_sidd,
    "sidd-validation": load_sidd_validation,
    "polyu": load_polyu,
    "cc": load_polyu,
    "scenes": load_scenes,
    "dnd": load_dnd,
}


def load_hub_dataset(
    name: str,
    split: str = "train",
    noisy_column: str = "noisy",
    clean_column: str = "clean",
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    A dataset on the Hub or in a folder, such as `examples/prepare_data.py` writes; memory-mapped, or streamed.

    Args:
        name (`str`): Repo id or folder.
        split (`str`, defaults to `"train"`): Which split.
        noisy_column (`str`, defaults to `"noisy"`): Its image column of noisy pictures; may be missing.
        clean_column (`str`, defaults to `"clean"`): Its image column of clean pictures.
        streaming (`bool`, defaults to `False`): Read it in order as it comes, without storing it.

    Raises:
        ValueError: If a column is missing or holds no pictures.
    """
    dataset = datasets.load_dataset(name, split=split, streaming=streaming)
    columns = {clean_column: "clean"}
    if noisy_column in dataset.features or noisy_column != "noisy":
        columns[noisy_column] = "noisy"
    for column in columns:
        if not isinstance(dataset.features.get(column), datasets.Image):
            raise ValueError(f"{name} has no image column {column!r}; its columns are {', '.join(dataset.features)}.")
    kept = [*columns, "scene"] if "scene" in dataset.features else list(columns)
    dataset = dataset.select_columns(kept)
    for column in columns:  # or else renaming would decode every picture of a stream
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    dataset = dataset.rename_columns({old: new for old, new in columns.items() if old != new})
    for column in columns.values():
        dataset = dataset.cast_column(column, datasets.Image())
    return dataset.cast_column("scene", datasets.Value("string")) if "scene" in kept else dataset


def split_by_scene(dataset: datasets.Dataset, share: float = 0.05) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Divide a data set into (training, held out) so that no scene is in both; rows without `scene` are one each.

    Whether a scene is held out depends on its name alone, so that it stays when others are added, and is the same in
    other data sets that have the scene too, say at another size.

    Args:
        share (`float`, defaults to 0.05): Of the scenes to hold out, about; at least one, and never all.

    Raises:
        ValueError: If there is but one scene.
    """
    scenes = list(map(str, dataset["scene"] if "scene" in dataset.column_names else range(len(dataset))))
    places = {scene: int.from_bytes(hashlib.sha256(scene.encode()).digest()) / 2**256 for scene in scenes}
    ordered = sorted(places, key=places.get)
    if len(ordered) < 2:
        raise ValueError("All pictures are of one scene, so that none can be held out to validate on.")
    count = sum(place < share for place in places.values())
    held_out = set(ordered[: min(max(1, count), len(ordered) - 1)])
    split = [[i for i, scene in enumerate(scenes) if (scene in held_out) == held] for held in (False, True)]
    return dataset.select(split[0]), dataset.select(split[1])


def _from_files(clean: list[Path], noisy: list[Path] | None = None, scenes: Iterable[str] = ()) -> datasets.Dataset:
    columns = {"noisy": noisy, "clean": clean} if noisy else {"clean": clean}
    for a, b in zip(noisy or [], clean, strict=bool(noisy)):
        try:
            with Image.open(a) as noisy_image, Image.open(b) as clean_image:
                sizes = [upright_size(noisy_image), upright_size(clean_image)]
        except UNREADABLE:
            continue  # whoever reads the pictures will count it among the unreadable ones
        if sizes[0] != sizes[1]:
            (w, h), (other_w, other_h) = sizes
            raise ValueError(f"A pair must have one size, but {a} is {w}x{h} and {b} is {other_w}x{other_h}.")
    features = {name: datasets.Image() for name in columns} | {"scene": datasets.Value("string")}
    data = {name: [str(path) for path in paths] for name, paths in columns.items()} | {"scene": list(scenes)}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def _from_arrays(names: list[str], load: Callable[[int], tuple[np.ndarray, ...]]) -> datasets.Dataset:
    """What `open_sidd_blocks` or `open_dnd` gives to a data set of PNG files in memory."""
    rows = [[{"bytes": to_png(x), "path": f"{name}.png"} for x in load(i)] for i, name in enumerate(names)]
    columns = dict(zip(("noisy", "clean"), zip(*rows, strict=True), strict=False))
    features = {name: datasets.Image() for name in columns} | {"scene": datasets.Value("string")}
    data = {name: list(cells) for name, cells in columns.items()} | {"scene": [name.split("_")[0] for name in names]}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def open_cell(cell: dict) -> Image.Image:
    """A cell of an image column cast to `decode=False`, opened."""
    return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture as it is shown, from its header alone."""
    turned = image.getexif().get(0x0112, 1) > 4
    return image.size[::-1] if turned else image.size


def decode(cell: dict) -> np.ndarray:
    """A cell of an image column cast to `decode=False`, to uint8 [H, W, 3], upright."""
    with open_cell(cell) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey instead of scaling it
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to a PNG file. Noise cannot be compressed, so little is lost by compressing fast."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


# How they are read


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
    >>> from gdd_diffusers.paired_data import Source, TrainingBatches

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
