"""
Load datasets of (noisy, clean) image pairs from the layouts in which benchmarks and users keep them.

A dataset is a `datasets.Dataset` with the image columns `noisy` and `clean`, and a string column `scene`: two images
of one scene are never split between training and validation. A dataset of clean images has no column `noisy`; a
simulator such as `CameraNoise` adds the noise during training.

Every loader raises a `FileNotFoundError` if the folder does not exist or holds no image, and a `ValueError` if an
image has no partner, or its partner another size, or if its name is not UTF-8.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets

from ..files import pictures_in
from .cifar_files import read_cifar_batches
from .decoding import image_size, to_png
from .matlab_files import open_sidd_blocks


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm")  # formats that Pillow decodes
FMD_LEVELS = ("raw", "avg2", "avg4", "avg8", "avg16")


def find_images(folder: str | Path) -> list[Path]:
    """Return the image files below a folder, sorted by path, without hidden ones."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = pictures_in(folder, IMAGE_SUFFIXES, recursive=True)
    if not files:
        raise FileNotFoundError(f"No images were found in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    for path in map(str, files):
        if path.encode(errors="ignore").decode() != path:  # Arrow stores names as UTF-8
            raise ValueError(f"The name {path!r} is not UTF-8; rename the file or its folder.")
    return files


def load_clean(folder: str | Path) -> datasets.Dataset:
    """Load every image below a folder as `clean`, each file name a scene of its own."""
    files = find_images(folder)
    return _from_files([path.relative_to(folder).with_suffix("") for path in files], clean=files)


def scene_of_name(name: Path) -> str:
    """Return the scene of an image by its name: the folder it lies in, or what `door_10` and `door_11` share."""
    if name.parent.name:
        return str(name.parent)
    return re.sub(r"[ _-]*\(?\d+\)?$", "", name.name) or name.name


def load_pairs(noisy_dir: str | Path, clean_dir: str | Path) -> datasets.Dataset:
    """Load pairs from two folders with the same file names; suffixes may differ."""
    noisy, clean = _files_by_name(noisy_dir), _files_by_name(clean_dir)
    for name in sorted(noisy.keys() ^ clean.keys()):
        present, missing = (noisy, clean_dir) if name in noisy else (clean, noisy_dir)
        raise ValueError(f"{present[name]} has no partner named {name}.* in {missing}.")
    return _from_files(
        list(map(scene_of_name, noisy)), noisy=list(noisy.values()), clean=[clean[name] for name in noisy]
    )


def _files_by_name(folder: str | Path) -> dict[Path, Path]:
    files = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("")
        if name in files:
            raise ValueError(f"{files[name]} and {path} have one name; an image needs exactly one partner.")
        files[name] = path
    return files


def load_marked_pairs(
    folder: str | Path, noisy_mark: str, clean_mark: str, scene_of: Callable[[Path], str] | None = None
) -> datasets.Dataset:
    """
    Load pairs from one folder whose names differ in one mark, such as `a/1_noisy.png` and `a/1_clean.png`.

    Args:
        folder: Searched with its subfolders. Images without a mark are ignored.
        noisy_mark: Part of the name of every noisy image, such as `"_noisy"`.
        clean_mark: Its replacement in the partner's name, such as `"_clean"` or `""`.
        scene_of: Maps a noisy path to its scene; by default [`scene_of_name`] without the mark.
    """
    files = find_images(folder)
    noisy = [path for path in files if noisy_mark in path.name]
    if not noisy:
        raise FileNotFoundError(f"No image in {folder} has {noisy_mark!r} in its name.")
    clean = [path.with_name(path.name.replace(noisy_mark, clean_mark)) for path in noisy]
    for path, partner in zip(noisy, clean, strict=True):
        if not partner.is_file():
            raise ValueError(f"{path} has no partner {partner.name} beside it.")
    partners = set(clean)
    for path in files:
        if clean_mark and clean_mark in path.name and path not in partners:
            raise ValueError(f"{path} has no partner {path.name.replace(clean_mark, noisy_mark)} beside it.")
    names = [path.relative_to(folder).with_name(path.stem.replace(noisy_mark, "")) for path in noisy]
    scenes = list(map(scene_of, noisy)) if scene_of else list(map(scene_of_name, names))
    return _from_files(scenes, noisy=noisy, clean=clean)


def load_sidd(folder: str | Path) -> datasets.Dataset:
    """
    Load SIDD-Medium in sRGB: `Data/0001_001_S6_.../0001_NOISY_SRGB_010.PNG` beside its `GT` partner.

    The second number in the folder's name is the scene (Abdelhamed et al., CVPR 2018).
    """

    def scene_of(path):
        match = re.match(r"\d+_(\d+)_", path.parent.name)
        if not match:
            raise ValueError(f"{path} must lie in the folder it came in, such as 0001_001_S6_00100_00060_3200_L.")
        return match[1]

    return load_marked_pairs(folder, "NOISY_SRGB", "GT_SRGB", scene_of)


def load_sidd_validation(folder: str | Path) -> datasets.Dataset:
    """Load the SIDD validation blocks into memory, as PNG files; each of the 40 images is a scene."""
    names, load = open_sidd_blocks(folder, "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")
    rows = [[{"bytes": to_png(pixels), "path": f"{name}.png"} for pixels in load(i)] for i, name in enumerate(names)]
    noisy, clean = map(list, zip(*rows, strict=True))
    return _to_dataset([name.split("_")[0] for name in names], {"noisy": noisy, "clean": clean})


def load_cifar10(folder: str | Path, batches: str = "data_batch_*") -> datasets.Dataset:
    """Load the images of CIFAR-10's Python files into memory, as PNG files; each is a scene of its own."""
    images = read_cifar_batches(folder, batches)
    cells = [{"bytes": to_png(image), "path": f"{i:05d}.png"} for i, image in enumerate(images)]
    return _to_dataset(list(range(len(images))), {"clean": cells})


def load_polyu(folder: str | Path) -> datasets.Dataset:
    """
    Load crops of PolyU (Xu et al., 2018) or CC (Nam et al., 2016): `..._bicycle_10_real.JPG` beside `..._mean.JPG`.

    The name up to the crop's number is the scene.
    """
    return load_marked_pairs(folder, "_real", "_mean", lambda path: re.sub(r"_+\d+_real.*", "", path.name))


def load_scenes(folder: str | Path) -> datasets.Dataset:
    """
    Load one subfolder per scene with several exposures, as in RENOIR and NIND; each is paired with the reference.

    The reference has `reference`, `gt` or `clean` in its name, or else it is the image of lowest ISO, as in
    `NIND_tree_ISO200.png`. RENOIR's `Full`, which is nearly clean, is left out.
    """
    scenes = {}
    for path in find_images(folder):
        scenes.setdefault(path.parent, []).append(path)
    noisy, clean = [], []
    for scene, files in scenes.items():
        named = [path for path in files if re.search(r"reference|(?<![a-z])(gt|clean)(?![a-z])", path.stem, re.I)]
        iso = {path: int(m[1]) for path in files if (m := re.search(r"ISO_?(\d+)", path.stem, re.I))}
        if len(named) != 1 and not iso:
            raise ValueError(
                f"{scene} has no reference: one image must have 'reference', 'gt' or 'clean' in its name, or every "
                "name its ISO."
            )
        reference = named[0] if len(named) == 1 else min(iso, key=iso.__getitem__)
        others = [path for path in files if path != reference and "full" not in path.stem.lower()]
        if not others:
            raise ValueError(f"{scene} has a reference, {reference.name}, but no noisy image.")
        noisy += others
        clean += [reference] * len(others)
    return _from_files([path.parent.relative_to(folder) for path in noisy], noisy=noisy, clean=clean)


def load_oct(folder: str | Path) -> datasets.Dataset:
    """
    Load retinal OCT of Duke University: `1/1_Raw Image.tif` beside `1/1_Averaged Image.tif` (Fang et al., Biomedical
    Optics Express 2012), or `1/test.tif` beside `1/average.tif` (Fang et al., IEEE TMI 2013). Each eye is a scene.
    """
    noisy = [path for path in find_images(folder) if path.stem == "test"]
    if not noisy:
        return load_marked_pairs(folder, "_Raw Image", "_Averaged Image")
    scenes = [path.parent.relative_to(folder) for path in noisy]
    return _from_files(scenes, noisy=noisy, clean=[_existing(path.with_stem("average"), path) for path in noisy])


def load_fmd(folder: str | Path) -> datasets.Dataset:
    """
    Load fluorescence microscopy of FMD (Zhang et al., CVPR 2019): `Confocal_MICE/raw/1/*.png`, all of which belong to
    `Confocal_MICE/gt/1/avg50.png`, or `test_mix/raw/*.png` with the same names in `test_mix/gt/`.

    `folder` may be that of a less noisy level, such as `Confocal_MICE/avg4`. Each field of view is a scene.
    """
    folder = Path(folder)
    level = folder.name if folder.name in FMD_LEVELS else "raw"
    noisy = [path for path in find_images(folder) if level in path.relative_to(folder.parent).parts]
    if not noisy:
        raise FileNotFoundError(f"No image of FMD was found in {folder} (looked for {level}/).")
    clean = []
    for path in noisy:
        head, _, tail = path.as_posix().rpartition(f"/{level}/")
        partner = Path(head, "gt", tail)
        clean.append(partner if partner.is_file() else _existing(partner.with_name("avg50.png"), path))
    return _from_files([path.relative_to(folder.parent) for path in clean], noisy=noisy, clean=clean)


def _existing(partner: Path, path: Path) -> Path:
    if not partner.is_file():
        raise ValueError(f"{path} has no partner {partner}.")
    return partner


LAYOUTS = {
    "clean": load_clean,
    "sidd": load_sidd,
    "sidd-validation": load_sidd_validation,
    "polyu": load_polyu,
    "cc": load_polyu,
    "cifar10": load_cifar10,
    "scenes": load_scenes,
    "oct": load_oct,
    "fmd": load_fmd,
}


def load_hub_dataset(
    name: str, split: str = "train", noisy_column: str = "noisy", clean_column: str = "clean", streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Load a dataset from the Hub or a folder, such as `examples/prepare_data.py` writes.

    The column of noisy images may be missing if it is the default. The only image column may have any name, if
    `clean_column` is the default. `streaming` reads the rows without storing them.

    Raises:
        ValueError: If a column is missing or holds no images.
    """
    dataset = datasets.load_dataset(name, split=split, streaming=streaming)
    image_columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if clean_column == "clean" not in image_columns and len(image_columns) == 1 and image_columns != [noisy_column]:
        (clean_column,) = image_columns
    columns = {clean_column: "clean"}
    if noisy_column in dataset.features or noisy_column != "noisy":
        columns[noisy_column] = "noisy"
    for column in columns:
        if column not in image_columns:
            raise ValueError(f"{name} has no image column {column!r}; its columns are {', '.join(dataset.features)}.")
    dataset = dataset.select_columns([*columns, *({"scene"} & dataset.features.keys())])
    for column in columns:  # otherwise renaming would decode every image of a stream
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    dataset = dataset.rename_columns({old: new for old, new in columns.items() if old != new})
    for column, feature in _features(dataset.features).items():
        if dataset.features[column] != feature:  # a cast of strings would copy the dataset
            dataset = dataset.cast_column(column, feature)
    return dataset


def split_by_scene(dataset: datasets.Dataset, share: float = 0.05) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Split a dataset into (training, held out) so that no scene is in both; a row without `scene` is its own scene.

    Holds out about `share` of the scenes; at least one, never all. Only the name of a scene decides, so that it stays
    on its side when scenes are added, and in other datasets.

    Raises:
        ValueError: If there is only one scene.
    """
    scenes = list(map(str, dataset["scene"] if "scene" in dataset.column_names else range(len(dataset))))
    places = {scene: int.from_bytes(hashlib.sha256(scene.encode()).digest()) / 2**256 for scene in scenes}
    ordered = sorted(places, key=places.__getitem__)
    if len(ordered) < 2:
        raise ValueError(
            f"All images are of one scene ({''.join(ordered)}): their names differ by a number only, or they lie in "
            "one folder. Add another scene, or let single images be held out with --split_by image."
        )
    count = sum(place < share for place in places.values())
    held_out = set(ordered[: min(max(1, count), len(ordered) - 1)])
    split = [[i for i, scene in enumerate(scenes) if (scene in held_out) == held] for held in (False, True)]
    return dataset.select(split[0]), dataset.select(split[1])


def each_image_a_scene(dataset: datasets.Dataset) -> datasets.Dataset:
    """Make every image a scene of its own, named after its file."""
    cells = dataset.cast_column("clean", datasets.Image(decode=False))["clean"]
    scenes = [Path(cell["path"]).stem if cell and cell["path"] else str(i) for i, cell in enumerate(cells)]
    others = dataset.select_columns([name for name in dataset.column_names if name != "scene"])
    return others.add_column("scene", scenes)


def _from_files(scenes: list, clean: list[Path], noisy: list[Path] | None = None) -> datasets.Dataset:
    columns = {"noisy": noisy, "clean": clean} if noisy else {"clean": clean}
    cells = [[{"bytes": None, "path": str(path)} for path in paths] for paths in columns.values()]
    for noisy_cell, clean_cell in zip(*cells, strict=True) if noisy else ():
        noisy_size, clean_size = image_size(noisy_cell), image_size(clean_cell)
        if noisy_size and clean_size and noisy_size != clean_size:
            raise ValueError(
                f"A pair must have one size, but {noisy_cell['path']} is {noisy_size[0]}x{noisy_size[1]} and "
                f"{clean_cell['path']} is {clean_size[0]}x{clean_size[1]}."
            )
    return _to_dataset(scenes, dict(zip(columns, cells, strict=True)))


def _to_dataset(scenes: list, columns: dict[str, list]) -> datasets.Dataset:
    data = columns | {"scene": list(map(str, scenes))}
    return datasets.Dataset.from_dict(data, features=_features(data))


def _features(columns: Iterable[str]) -> datasets.Features:
    image, text = datasets.Image(), datasets.Value("string")
    return datasets.Features({name: text if name == "scene" else image for name in columns})
