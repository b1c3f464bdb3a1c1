"""What train.py learns from, and the pairs that it validates on."""

from pathlib import Path

import datasets
import torch

from gdd_diffusers.data.batches import PairedImages, Source
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.data.layouts import load_clean, load_hub_dataset, load_pairs, split_by_scene


# (noisy, clean), float [1, 3, h, w] in [0, 1]
Pair = tuple[torch.Tensor, torch.Tensor]


def load_data(args) -> tuple[list[Source], dict[str, list[Pair]]]:
    """The sources, and sets of pairs by name that are no part of them."""
    simulator = CameraNoise(args.noise_preset)
    train = [load_clean(folder) for folder in args.clean_dir]
    train += [load_pairs(noisy, gt) for noisy, gt in zip(args.noisy_dir, args.gt_dir, strict=True)]
    columns = {"noisy_column": args.noisy_column, "clean_column": args.clean_column}
    train += [load_hub_dataset(name, **columns, streaming=args.streaming) for name in args.dataset_name]

    with_validation = [n for n in args.dataset_name if "validation" in datasets.get_dataset_split_names(n)]
    if args.validation_dir:
        folders = [Path(folder).resolve() for folder in args.validation_dir]
        held_out = [(folder.name, load_pairs(folder / "noisy", folder / "clean")) for folder in folders]
    elif with_validation:
        columns["streaming"] = args.streaming
        held_out = [(Path(name).name, load_hub_dataset(name, "validation", **columns)) for name in with_validation]
    elif args.streaming:
        raise ValueError("A streamed dataset without a validation split needs --validation_dir.")
    else:
        train, parts = zip(*(split_by_scene(dataset) for dataset in train), strict=True)
        held_out = [("held_out", part) for part in parts]

    # By default each picture is as likely as the next; a stream, of unknown length, counts as one source among equals.
    sizes = [1 if args.streaming else len(dataset) for dataset in train]
    sources = [
        Source(dataset, weight, None if "noisy" in dataset.features else simulator)
        for dataset, weight in zip(train, args.weights or sizes, strict=True)
    ]
    count = -(-args.num_validation_images // len(held_out))
    sets = {}
    for name, dataset in held_out:
        sets.setdefault(name, []).extend(held_out_pairs(dataset, simulator, count))
    return sources, sets


def held_out_pairs(
    dataset: datasets.Dataset | datasets.IterableDataset, simulator: CameraNoise, count: int
) -> list[Pair]:
    """
    The middles of pictures spread evenly over a data set, or of the first of a stream, with noise simulated where
    there is none.
    """
    if isinstance(dataset, datasets.IterableDataset):
        for name in {"noisy", "clean"} & dataset.features.keys():
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        dataset = datasets.Dataset.from_list(list(dataset.take(count)), features=dataset.features)
    count = min(count, len(dataset))
    pictures = PairedImages(dataset.select([i * len(dataset) // count for i in range(count)]))
    pairs = []
    for picture in filter(None, (pictures[i] for i in range(count))):
        clean, noisy = centre_crop(picture["clean"]), centre_crop(picture.get("noisy", picture["clean"]))
        if "noisy" not in picture:
            clean, noisy = simulator(clean, generator=torch.Generator().manual_seed(len(pairs)))
        pairs.append((noisy, clean))
    return pairs


def centre_crop(pixels, size: int = 256) -> torch.Tensor:
    """uint8 [H, W, 3] to float [1, 3, h, w] in [0, 1], sides at most `size`."""
    top, left = (max(0, side - size) // 2 for side in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1)[None] / 255


def describe(sources: list[Source], args) -> str:
    """In words, for the model card."""
    words = []
    for source in sources:
        count = "a stream of" if isinstance(source.dataset, datasets.IterableDataset) else len(source.dataset)
        noise = f"noise simulated by CameraNoise({args.noise_preset!r})" if source.simulator else "real pairs"
        words.append(f"{count} pictures, {noise}")
    return "; ".join(words)
