"""Datasets of (noisy, clean) image pairs, as benchmarks and users lay them out on disk or on the Hub.

A data set is a `datasets.Dataset` with the image columns `noisy` and `clean`, and `scene`, a string: two images of one
scene are never split between training and validation. Clean photographs alone have no column `noisy`, and get their
noise from a simulator such as `CameraNoise` while training.
"""

import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageOps

from ..files import pictures_in
from .matlab_files import open_dnd, open_sidd_blocks


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm")  # that Pillow decodes

# What Pillow raises for files that it cannot read, in pixels or header
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


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
    >>> from gdd_diffusers.data.layouts import (load_pairs)

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
