"""The training data of train.py, and the pairs that it validates on."""

import logging
from pathlib import Path

import datasets
import torch

from gdd_diffusers.data.batches import PairedImages, Source
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.data.layouts import each_image_a_scene, load_clean, load_hub_dataset, load_pairs, split_by_scene
from gdd_diffusers.image_processor import pixels_to_tensor


logger = logging.getLogger("train")

CROP = 256  # of validation images, at most
SMALLEST = 11  # side that SSIM is defined for


def load_data(args) -> tuple[list[Source], dict[str, list[tuple[torch.Tensor, torch.Tensor]]], list[str]]:
    """
    Load the sources, and by name the sets of held-out (noisy, clean) pairs, float [1, 3, h, w] in [0, 1]. Return, too,
    the names of the files that are held out of the folders.
    """
    simulator = CameraNoise(args.noise_preset)
    columns = {"noisy_column": args.noisy_column, "clean_column": args.clean_column, "streaming": args.streaming}
    train = [load_clean(folder) for folder in args.clean_dir]
    train += [load_pairs(noisy, gt) for noisy, gt in zip(args.noisy_dir, args.gt_dir, strict=True)]
    train += [load_hub_dataset(name, **columns) for name in args.dataset_name]

    held_out_names = []
    with_validation = [n for n in args.dataset_name if "validation" in datasets.get_dataset_split_names(n)]
    if args.validation_dir:
        folders = [Path(folder).resolve() for folder in args.validation_dir]
        held_out = [(folder.name, load_pairs(folder / "noisy", folder / "clean")) for folder in folders]
    elif with_validation:
        held_out = [(Path(name).name, load_hub_dataset(name, "validation", **columns)) for name in with_validation]
    elif args.streaming:
        raise ValueError("A streamed dataset without a validation split needs --validation_dir.")
    else:
        if args.split_by == "image":
            train = [each_image_a_scene(dataset) for dataset in train]
        train, parts = zip(*(split_by_scene(dataset, args.validation_share) for dataset in train), strict=True)
        held_out = [("held_out", part) for part in parts]
        for folder, part in zip([*args.clean_dir, *args.gt_dir], parts, strict=False):  # datasets follow
            cells = part.cast_column("clean", datasets.Image(decode=False))["clean"]
            held_out_names += [Path(c["path"]).relative_to(folder).with_suffix("").as_posix() for c in cells]

    # By default each image is as likely as the next; streams, of unknown length, count the same each.
    weights = args.weights or [1 if args.streaming else len(dataset) for dataset in train]
    sources = [
        Source(dataset, weight, None if "noisy" in dataset.features else simulator)
        for dataset, weight in zip(train, weights, strict=True)
    ]
    count = -(-args.num_validation_images // len(held_out))
    sets = {}
    for name, dataset in held_out:
        sets.setdefault(name, []).extend(held_out_pairs(dataset, simulator, count))
    if not any(sets.values()):
        raise ValueError(f"No validation image has sides of at least {SMALLEST} px.")
    return sources, sets, held_out_names


def held_out_pairs(dataset, simulator: CameraNoise, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Take the centers of images spread evenly over a dataset, or of the first of a stream, and simulate the noise if
    they have none.
    """
    if isinstance(dataset, datasets.IterableDataset):
        for name in {"noisy", "clean"} & dataset.features.keys():
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        dataset = datasets.Dataset.from_list(list(dataset.take(count)), features=dataset.features)
    count = min(count, len(dataset))
    images = PairedImages(dataset.select([i * len(dataset) // count for i in range(count)]))
    pairs = []
    for image in filter(None, (images[i] for i in range(count))):
        height, width = image["clean"].shape[:2]
        if min(height, width) < SMALLEST:
            logger.warning(f"{image['file']} is {width}x{height}, too small for SSIM, and is left out of validation.")
            continue
        clean, noisy = (center_crop(pixels_to_tensor(image.get(k, image["clean"]))[None]) for k in ("clean", "noisy"))
        if "noisy" not in image:
            colours = clean[:, :1] if image["grey"] else clean
            pair = simulator(colours, generator=torch.Generator().manual_seed(len(pairs)))
            clean, noisy = (x.expand(-1, 3, -1, -1) for x in pair)
        pairs.append((noisy, clean))
    return pairs


def center_crop(image: torch.Tensor) -> torch.Tensor:
    top, left = (max(0, side - CROP) // 2 for side in image.shape[-2:])
    return image[..., top : top + CROP, left : left + CROP].contiguous()


def describe(sources: list[Source], args) -> str:
    """Describe the training data for the model card."""
    parts = []
    for source in sources:
        count = "a stream of" if isinstance(source.dataset, datasets.IterableDataset) else len(source.dataset)
        noise = f"noise simulated by CameraNoise({args.noise_preset!r})" if source.simulator else "real pairs"
        parts.append(f"{count} images, {noise}")
    return "; ".join(parts)
