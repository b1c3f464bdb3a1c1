#!/usr/bin/env python
"""Train denoisers of other papers, and this project's, for the same time on the same images.

    python examples/rivals/train.py --rival gdd --rival dncnn --minutes 20 --clean_dir photos/ --output_dir rivals

Each rival is trained for so many minutes after the other, and saved in a folder of its name, with a log. Loading the
images, the first steps and validation are not counted. See docs/rivals.md.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
import traceback
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))  # to import as the other examples do

import torch
from options import HelpFormatter
from training.checkpoints import rewind_log
from training.data import load_data
from training.machine import has_fast_bf16, ignore_foreign_signals

from gdd_diffusers.data.batches import PairedImages, TrainingBatches
from gdd_diffusers.memory import keep_freed_memory
from gdd_diffusers.metrics import psnr
from rivals import RIVALS, build, save


UNCOUNTED_STEPS = 5  # in which memory is allocated and convolutions are chosen
SIMULATED_STEPS = 4  # whose noise is simulated at once, in many small operations that a GPU waits for
RISE = 0.03  # share of the time in which the learning rate rises to its peak
LOG_STEPS = 10
VALIDATIONS = 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--rival", action="append", required=True, choices=RIVALS, metavar="NAME", help=f"Repeatable: {[*RIVALS]}")
    add("--minutes", type=float, default=20, help="For each rival, such as 0.05 to try it out.")
    add("--clean_dir", action="append", default=[], help="Clean photographs to simulate noise on. Repeatable.")
    add("--noisy_dir", action="append", default=[], help="Noisy images of real pairs. Repeatable.")
    add("--gt_dir", action="append", default=[], help="Their ground truth, of the same names. Repeatable.")
    add("--dataset_name", action="append", default=[], help="Dataset on the Hub or in a folder. Repeatable.")
    add("--noisy_column", default="noisy", help="Of the datasets; without it, noise is simulated.")
    add("--clean_column", default="clean", help="Of the datasets.")
    add("--noise_preset", default="mixed", help="The cameras that `CameraNoise` simulates.")
    add("--validation_share", type=float, default=0.05, help="Of the scenes, at least one.")
    add("--num_validation_images", type=int, default=8, help="Centers of held-out images.")
    add("--crop_size", type=int, default=96, help="Pixels.")
    add("--batch_size", type=int, help="For all rivals; by default each has its own, for two CPU cores.")
    add("--dataloader_num_workers", type=int, default=1, help="Processes that prepare batches.")
    add("--seed", type=int, default=0, help="Of the weights, the order of the data, and the noise.")
    add("--resume", action="store_true", help="Go on with what is not finished.")
    add("--output_dir", type=Path, required=True, help="Each rival gets a folder in it.")
    parser.set_defaults(validation_dir=[], streaming=False, weights=None, split_by="scene")
    args = parser.parse_args(argv)
    if not args.clean_dir + args.gt_dir + args.dataset_name:
        parser.error("give something to learn from: --clean_dir, --noisy_dir and --gt_dir, or --dataset_name.")
    if len(args.noisy_dir) != len(args.gt_dir):
        parser.error("each --noisy_dir needs its --gt_dir.")
    return args


def validate(model, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the mean PSNR over pairs of noisy and clean images."""
    model.eval()
    scores = [psnr(model.denoise(noisy), clean).clamp(max=60).item() for noisy, clean in pairs]
    model.train()
    return sum(scores) / len(scores)


def train(name: str, args: argparse.Namespace, device: torch.device, sources, images: list[PairedImages], pairs):
    """Train one rival, and save it in a folder of its name."""
    folder, limit = args.output_dir / name, 60 * args.minutes
    checkpoint_file, log_file = folder / "checkpoint.pt", folder / "log.jsonl"
    if (folder / "training.json").exists():
        return print(f"{name} is trained already.")

    # 1. Model, and the checkpoint to go on from
    torch.manual_seed(args.seed)
    model = build(name).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(), betas=(0.9, 0.99), weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    step, seconds, pixels = 0, 0.0, 0
    if checkpoint_file.exists():
        checkpoint = torch.load(checkpoint_file, map_location=device)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step, seconds, pixels = checkpoint["step"], checkpoint["seconds"], checkpoint["pixels"]
        torch.manual_seed(args.seed + step)
    folder.mkdir(parents=True, exist_ok=True)
    rewind_log(log_file, step)

    # 2. Data
    batch_size = args.batch_size or model.batch_size
    # Noise is simulated by the data workers if the CPU has cores to spare, and where the network trains if not.
    simulating_device = None if device.type == "cpu" and torch.get_num_threads() < os.cpu_count() else device
    batches = TrainingBatches(
        sources,
        SIMULATED_STEPS * batch_size,
        [(args.crop_size, 1.0)],
        num_batches=1_000_000,
        seed=args.seed,
        device=simulating_device,
    )
    batches.images = images  # which all rivals share, decoded
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(step // SIMULATED_STEPS, len(batches)),
        num_workers=args.dataloader_num_workers,
        worker_init_fn=ignore_foreign_signals,
        pin_memory=device.type == "cuda",
    )

    def training_pairs():
        """Yield clean and noisy images for each step, float [batch_size, 3, crop, crop] in [0, 1]."""
        for batch in loader:
            batch = batches.simulate(batch)
            parts = (batch[key].to(device).float().div(255).split(batch_size) for key in ("clean", "noisy"))
            yield from zip(*parts, strict=True)

    def log(**values):
        with log_file.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 2)} | values) + "\n")

    def clock() -> float:
        # On a CPU, processor time of each thread, so that other work on the machine does not count.
        return time.monotonic() if device.type == "cuda" else time.process_time() / torch.get_num_threads()

    # 3. Train until the time is over
    losses, num_validations, uncounted = [], int(VALIDATIONS * seconds / limit), UNCOUNTED_STEPS
    last = clock()
    for clean, noisy in training_pairs():
        share = min(1, seconds / limit)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1, share / RISE) * (1 + math.cos(math.pi * share)) / 2
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16()):
            loss = model.loss(clean, noisy)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        step += 1
        pixels += clean[:, 0].numel()
        if step % LOG_STEPS == 0:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise ArithmeticError(f"The loss is {mean} in step {step}.")
            log(loss=mean, learning_rate=optimizer.param_groups[0]["lr"])
            losses = []
        if uncounted:
            uncounted -= 1
        else:
            seconds += clock() - last
        if seconds / limit * VALIDATIONS >= num_validations + 1:
            num_validations = int(VALIDATIONS * seconds / limit)
            score = validate(model, pairs)
            log(psnr=score)
            print(f"{name}: step {step}, {seconds:.0f} of {limit:.0f} seconds, PSNR {score:.2f} dB", flush=True)
            if seconds >= limit:
                break
            checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint |= {"step": step, "seconds": seconds, "pixels": pixels}
            torch.save(checkpoint, folder / "checkpoint.partial")
            os.replace(folder / "checkpoint.partial", checkpoint_file)
        last = clock()

    # 4. Save
    save(model, name, folder)
    summary = {"rival": name, "steps": step, "seconds": seconds, "pixels": pixels, "batch_size": batch_size}
    summary |= {"parameters": sum(p.numel() for p in model.parameters()), "psnr": score}
    summary["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
    checkpoint_file.unlink(missing_ok=True)


def main(args: argparse.Namespace) -> list[str]:
    """Train the rivals, and return the names of those that failed."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    begun = [name for name in args.rival if (args.output_dir / name).exists()]
    if begun and not args.resume:
        raise ValueError(f"{args.output_dir} holds {', '.join(begun)}: go on with --resume, or elsewhere.")

    sources, sets, _ = load_data(args)
    pairs = [pair for pairs in sets.values() for pair in pairs]
    images = [PairedImages(source.dataset) for source in sources]
    for dataset in images:
        for row in range(len(dataset)):
            dataset[row]  # decode it now, to be kept in memory for all rivals and workers
    noisy_psnr = sum(psnr(noisy, clean).clamp(max=60).item() for noisy, clean in pairs) / len(pairs)
    print(f"{sum(map(len, images))} images to train on; {len(pairs)} to validate on, PSNR {noisy_psnr:.2f} dB")

    failed = []
    with keep_freed_memory():
        for name in args.rival:
            try:
                train(name, args, device, sources, images, pairs)
            except Exception:  # the others can still be trained
                traceback.print_exc()
                print(f"{name} failed.", flush=True)
                failed.append(name)
    return failed


if __name__ == "__main__":
    try:
        if failed := main(parse_args()):
            sys.exit(f"train.py: {', '.join(failed)} failed; the reasons are above.")
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; --resume goes on from the last validation.")
