#!/usr/bin/env python
"""Cut pictures into tiles and store them as a dataset of parquet files, which train.py reads from disk or streams.

    python examples/prepare_data.py --layout sidd --folder SIDD_Medium_Srgb --output_dir sidd-tiles
    accelerate launch examples/train.py --dataset_name sidd-tiles --output_dir my-gdd

Run it again after it was stopped, and it goes on with the first file that is missing.
"""

import argparse
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData, create_repo, upload_folder
from tqdm.auto import tqdm

from gdd_diffusers.data.batches import Pictures
from gdd_diffusers.data.layouts import (
    LAYOUTS,
    UNREADABLE,
    load_hub_dataset,
    load_marked_pairs,
    load_pairs,
    open_cell,
    split_by_scene,
    to_png,
    upright_size,
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--noisy_dir", help="Noisy pictures of pairs in two folders.")
    add("--gt_dir", help="Their clean partners, of the same names.")
    add("--layout", choices=[name for name in LAYOUTS if name != "dnd"], help="How the pictures lie in --folder.")
    add("--marks", nargs=2, metavar=("NOISY", "CLEAN"), help="Pairs in --folder by name: --marks _noisy _clean.")
    add("--folder", help="For --layout and --marks.")
    add("--dataset_name", help="Hub dataset or folder of one, with image columns.")
    add("--noisy_column", default="noisy")
    add("--clean_column", default="clean")
    add("--output_dir", required=True)
    add("--tile_size", type=int, default=512)
    add("--tiles_per_file", type=int, default=500)
    add("--validation_share", type=float, default=0.05, help="Of the scenes, to hold out. 0: no such split.")
    add("--license", default="unknown", help="Of the pictures, for the card.")
    add("--push_to_hub", action="store_true")
    add("--hub_dataset_id", help="Default: the output folder's name.")
    add("--hub_private_repo", action="store_true")
    args = parser.parse_args(argv)
    if sum(map(bool, (args.noisy_dir or args.gt_dir, args.layout, args.marks, args.dataset_name))) != 1:
        parser.error("give one of --noisy_dir with --gt_dir, --layout, --marks and --dataset_name.")
    if bool(args.noisy_dir) != bool(args.gt_dir):
        parser.error("--noisy_dir and --gt_dir go together.")
    if (args.layout or args.marks) and not args.folder:
        parser.error("--layout and --marks need --folder.")
    if args.tile_size < 16 or args.tiles_per_file < 1 or not 0 <= args.validation_share < 1:
        parser.error("--tile_size must be at least 16, --tiles_per_file at least 1, --validation_share in [0, 1).")
    return args


def load(args) -> datasets.Dataset:
    if args.noisy_dir:
        return load_pairs(args.noisy_dir, args.gt_dir)
    if args.layout:
        return LAYOUTS[args.layout](args.folder)
    if args.marks:
        return load_marked_pairs(args.folder, *args.marks)
    return load_hub_dataset(args.dataset_name, "train", args.noisy_column, args.clean_column)


def tile_positions(side: int, tile: int) -> list[int]:
    """Where tiles begin that cover a side: evenly spread, overlapping a little, never beyond the border."""
    count = math.ceil(side / tile)
    return [round(i * (side - tile) / max(1, count - 1)) for i in range(count)] if side > tile else [0]


def cut(picture: dict | None, scene: str, tile: int) -> list[dict]:
    """The pictures of a row to rows of PNG tiles; an unreadable one gives none."""
    if picture is None:
        return []
    height, width = picture["clean"].shape[:2]
    rows = []
    for top in tile_positions(height, tile):
        for left in tile_positions(width, tile):
            path = f"{Path(picture['file']).stem}_{top}_{left}.png"
            names = [name for name in ("noisy", "clean") if name in picture]
            tiles = {name: picture[name][top : top + tile, left : left + tile] for name in names}
            rows.append({name: {"bytes": to_png(pixels), "path": path} for name, pixels in tiles.items()})
            rows[-1]["scene"] = scene
    return rows


def plan(pictures: Pictures, args) -> list[list[int]]:
    """The rows that go into each file, in a random order that is always the same, so that a stream is well mixed."""
    files, num_tiles = [[]], 0
    for row in np.random.default_rng(0).permutation(len(pictures)).tolist():
        if num_tiles >= args.tiles_per_file:
            files, num_tiles = [*files, []], 0
        files[-1].append(row)
        try:
            with open_cell(pictures.dataset[row]["clean"]) as image:
                num_tiles += math.prod(math.ceil(side / args.tile_size) for side in upright_size(image))
        except UNREADABLE:
            continue  # counted when it is read
    return files


def write_split(split: str, dataset: datasets.Dataset, args):
    """Write those files of a split that are not there yet, each beside its place and moved there when it is whole."""
    pictures = Pictures(dataset)
    files = plan(pictures, args)
    columns = [*pictures.columns, "scene"]
    features = {name: datasets.Value("string") if name == "scene" else datasets.Image() for name in columns}

    def tiles_of(row: int) -> list[dict]:
        cells = pictures.dataset[row]
        return cut(pictures.read(cells, row, len(pictures)), cells.get("scene", str(row)), args.tile_size)

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(pictures), desc=f"{split} pictures") as progress:
        for number, rows in enumerate(files):
            file = Path(args.output_dir) / "data" / f"{split}-{number:05d}-of-{len(files):05d}.parquet"
            if file.exists():
                progress.update(len(rows))
                continue
            tiles = []
            for tiles_of_row in pool.map(tiles_of, rows):
                tiles += tiles_of_row
                progress.update()
            tiles = [tiles[i] for i in np.random.default_rng(number).permutation(len(tiles))]
            table = {name: [tile[name] for tile in tiles] for name in columns}
            partial = file.with_suffix(".partial")
            datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(partial, batch_size=100)
            os.replace(partial, file)


CARD = """# {name}

{num_tiles} tiles of at most {tile_size}x{tile_size} px, cut from {num_pictures} pictures by `examples/prepare_data.py`
of gdd-diffusers, lossless, in {columns}. Tiles of one scene are in one split.

```bash
accelerate launch examples/train.py --dataset_name {name} --output_dir my-gdd
```
"""


def write_card(args, splits: dict[str, datasets.Dataset]):
    output_dir = Path(args.output_dir)
    files = sorted((output_dir / "data").glob("*.parquet"))
    columns = [name for name in ("noisy", "clean") if name in splits["train"].features]
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    yaml = DatasetCardData(
        license=args.license,
        task_categories=["image-to-image"],
        tags=["image-denoising"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    text = CARD.format(
        name=args.hub_dataset_id or output_dir.name,
        num_tiles=sum(datasets.Dataset.from_parquet(str(file), columns=["scene"]).num_rows for file in files),
        tile_size=args.tile_size,
        num_pictures=sum(map(len, splits.values())),
        columns=" and ".join(f"`{name}`" for name in columns),
    )
    DatasetCard(f"---\n{yaml.to_yaml()}\n---\n\n{text}").save(output_dir / "README.md")


def main(args):
    output_dir = Path(args.output_dir)
    if args.push_to_hub:  # first, since a missing login should not be found at the end
        name = args.hub_dataset_id or output_dir.name
        repo = create_repo(name, repo_type="dataset", private=args.hub_private_repo or None, exist_ok=True)
    dataset = load(args)
    splits = {"train": dataset}
    if args.validation_share:
        splits["train"], splits["validation"] = split_by_scene(dataset, args.validation_share)

    # Files that are there already can only stay if all would be cut in the same way.
    (output_dir / "data").mkdir(parents=True, exist_ok=True)
    source = ("noisy_dir", "gt_dir", "layout", "marks", "folder", "dataset_name", "noisy_column", "clean_column")
    names = (*source, "tile_size", "tiles_per_file", "validation_share")
    options = {name: getattr(args, name) for name in names} | {"num_pictures": len(dataset)}
    options_file = output_dir / ".prepare_data.json"
    before = json.loads(options_file.read_text()) if options_file.exists() else options
    changed = [f"{k} was {before.get(k)} and is {v}" for k, v in options.items() if before.get(k) != v]
    if changed:
        raise ValueError(f"{output_dir} was begun otherwise ({', '.join(changed)}): remove it or choose another.")
    options_file.write_text(json.dumps(options))

    for split, part in splits.items():
        write_split(split, part, args)
    write_card(args, splits)
    if args.push_to_hub:
        upload_folder(
            repo_id=repo.repo_id,
            repo_type="dataset",
            folder_path=output_dir,
            allow_patterns=["README.md", "data/*.parquet"],
        )


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"prepare_data.py: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare_data.py: stopped; run the same command again to go on.")
