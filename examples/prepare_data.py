#!/usr/bin/env python
"""Cut images into tiles and store them as a dataset of Parquet files, which train.py reads from disk or streams.

    python examples/prepare_data.py --layout sidd --folder SIDD_Medium_Srgb --output_dir sidd-tiles
    python examples/train.py --dataset_name sidd-tiles --output_dir my-gdd

If it is stopped, run the same command again: it resumes at the first missing file.
"""

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
from huggingface_hub import DatasetCardData, create_repo, upload_folder
from options import SPLIT_BY, HelpFormatter
from tqdm.auto import tqdm

from gdd_diffusers.data import layouts
from gdd_diffusers.data.batches import PairedImages
from gdd_diffusers.data.decoding import image_size, to_png


CARD = """---
{metadata}
---

# {name}

{num_tiles} tiles of at most {tile_size}x{tile_size} px, cut from {num_images} images by `examples/prepare_data.py`
of gdd-diffusers, lossless, in {columns}. Tiles of one scene are in one split.

```bash
python examples/train.py --dataset_name {name} --output_dir my-gdd
```
"""


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument_group("images, one of these").add_argument
    add("--noisy_dir", help="Noisy images of pairs in two folders.")
    add("--gt_dir", help="Their clean partners, of the same names.")
    add("--layout", choices=layouts.LAYOUTS, help="Layout of the images in --folder.")
    add("--marks", nargs=2, metavar=("NOISY", "CLEAN"), help="Pairs in --folder by name: --marks _noisy _clean.")
    add("--folder", help="For --layout and --marks.")
    add("--dataset_name", help="Hub dataset or folder of one, with image columns.")
    add("--noisy_column", default="noisy", help="Of the dataset.")
    add("--clean_column", default="clean", help="Of the dataset.")
    add = parser.add_argument_group("tiles").add_argument
    add("--output_dir", required=True, help="Where they go.")
    add("--tile_size", type=int, default=512, help="Pixels.")
    add("--tiles_per_file", type=int, default=500, help="All tiles of a file are in memory at once.")
    add("--validation_share", type=float, default=0.05, help="Of the scenes, held out. 0: no validation split.")
    add("--split_by", choices=["scene", "image"], default="scene", help=SPLIT_BY)
    add = parser.add_argument_group("publishing").add_argument
    add("--license", default="unknown", help="Of the images, for the card.")
    add("--push_to_hub", action="store_true", help="Upload the tiles.")
    add("--hub_dataset_id", help="Name on the Hub; that of the output folder if not given.")
    add("--hub_private_repo", action="store_true", help="Make a new repo private.")
    args = parser.parse_args(argv)
    if sum(map(bool, (args.noisy_dir or args.gt_dir, args.layout, args.marks, args.dataset_name))) != 1:
        parser.error("give one of --noisy_dir with --gt_dir, --layout, --marks and --dataset_name.")
    if bool(args.noisy_dir) != bool(args.gt_dir):
        parser.error("--noisy_dir and --gt_dir go together.")
    if args.output_dir.encode(errors="ignore").decode() != args.output_dir:
        parser.error(f"--output_dir {args.output_dir!r} is not UTF-8; choose another name.")
    if (args.layout or args.marks) and not args.folder:
        parser.error("--layout and --marks need --folder.")
    if args.tile_size < 16 or args.tiles_per_file < 1 or not 0 <= args.validation_share < 1:
        parser.error("--tile_size must be at least 16, --tiles_per_file at least 1, --validation_share in [0, 1).")
    return args


def load(args) -> datasets.Dataset:
    if args.noisy_dir:
        dataset = layouts.load_pairs(args.noisy_dir, args.gt_dir)
    elif args.layout:
        dataset = layouts.LAYOUTS[args.layout](args.folder)
    elif args.marks:
        dataset = layouts.load_marked_pairs(args.folder, *args.marks)
    else:
        dataset = layouts.load_hub_dataset(args.dataset_name, "train", args.noisy_column, args.clean_column)
    return layouts.each_image_a_scene(dataset) if args.split_by == "image" else dataset


def replace(file: Path, write: Callable[[Path], object]):
    """Write beside the file, then move into place, so that it is never incomplete."""
    unfinished = file.with_suffix(".partial")
    write(unfinished)
    unfinished.replace(file)


def check_options(args, num_images: int):
    """Raise a ValueError if the files in the output folder were made with other options."""
    irrelevant = ("output_dir", "license", "push_to_hub", "hub_dataset_id", "hub_private_repo")
    options = {name: value for name, value in vars(args).items() if name not in irrelevant}
    options["num_images"] = num_images
    file = Path(args.output_dir) / ".prepare_data.json"
    previous = json.loads(file.read_text()) if file.exists() else options
    changed = [f"{k} was {previous.get(k)} and is {v}" for k, v in options.items() if previous.get(k) != v]
    if changed:
        changes = ", ".join(changed)
        raise ValueError(f"{args.output_dir} holds files made with other options ({changes}): choose another folder.")
    replace(file, lambda path: path.write_text(json.dumps(options)))


def tile_positions(side: int, tile: int) -> list[int]:
    """Return where tiles start that cover a side: evenly spread, never beyond the border."""
    count = math.ceil(side / tile)
    return [round(i * (side - tile) / max(1, count - 1)) for i in range(count)] if side > tile else [0]


def cut(images: PairedImages, row: int, tile: int) -> list[dict]:
    """Cut the images of a row into rows of PNG tiles; none if an image cannot be read."""
    cells = images.dataset[row]
    pixels = images.read(cells, row, len(images))
    if pixels is None:
        return []
    tiles = []
    height, width = pixels["clean"].shape[:2]
    for top, left in itertools.product(tile_positions(height, tile), tile_positions(width, tile)):
        path = f"{Path(pixels['file']).stem}_{top}_{left}.png"
        crops = {name: pixels[name][top : top + tile, left : left + tile] for name in images.columns}
        tiles.append({name: {"bytes": to_png(crop), "path": path} for name, crop in crops.items()})
        tiles[-1]["scene"] = cells.get("scene", str(row))
    return tiles


def plan_files(images: PairedImages, args) -> list[list[int]]:
    """Distribute the rows over files, in a fixed random order, so that a stream is well mixed."""
    files, num_tiles = [[]], 0
    for row in np.random.default_rng(0).permutation(len(images)).tolist():
        if num_tiles >= args.tiles_per_file:
            files, num_tiles = [*files, []], 0
        files[-1].append(row)
        size = image_size(images.dataset[row]["clean"]) or (0, 0)
        num_tiles += math.prod(math.ceil(side / args.tile_size) for side in size)
    return files


def write_split(split: str, dataset: datasets.Dataset, args):
    """Write the files of a split that are missing."""
    images = PairedImages(dataset)
    files = plan_files(images, args)
    features = {name: datasets.Image() for name in images.columns} | {"scene": datasets.Value("string")}
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(images), desc=f"{split} images") as progress:
        for number, rows in enumerate(files):
            file = Path(args.output_dir) / "data" / f"{split}-{number:05d}-of-{len(files):05d}.parquet"
            if file.exists():
                progress.update(len(rows))
                continue
            tiles = []
            for tiles_of_row in pool.map(lambda row: cut(images, row, args.tile_size), rows):
                tiles += tiles_of_row
                progress.update()
            tiles = [tiles[i] for i in np.random.default_rng(number).permutation(len(tiles))]
            columns = {name: [tile[name] for tile in tiles] for name in features}
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            replace(file, partial(table.to_parquet, batch_size=100))


def write_card(args, splits: dict[str, datasets.Dataset]):
    folder = Path(args.output_dir)
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    metadata = DatasetCardData(
        license=args.license,
        task_categories=["image-to-image"],
        tags=["image-denoising"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=args.hub_dataset_id or folder.name,
        num_tiles=sum(pyarrow.parquet.read_metadata(file).num_rows for file in folder.glob("data/*.parquet")),
        tile_size=args.tile_size,
        num_images=sum(map(len, splits.values())),
        columns=" and ".join(f"`{name}`" for name in ("noisy", "clean") if name in splits["train"].features),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main(args):
    folder = Path(args.output_dir)
    if args.push_to_hub:  # find a missing login now, not at the end
        repo = args.hub_dataset_id or folder.name
        repo = create_repo(repo, repo_type="dataset", private=args.hub_private_repo or None, exist_ok=True).repo_id
    dataset = load(args)
    splits = {"train": dataset}
    if args.validation_share:
        splits["train"], splits["validation"] = layouts.split_by_scene(dataset, args.validation_share)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    check_options(args, len(dataset))
    for split, part in splits.items():
        write_split(split, part, args)
    write_card(args, splits)
    if args.push_to_hub:
        files = ["README.md", "data/*.parquet"]
        upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder, allow_patterns=files)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"prepare_data.py: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare_data.py: stopped; run the same command again to resume.")
