#!/usr/bin/env python
"""How much of a bare training loop's speed train.py reaches, and what simulating the noise costs a CPU.

    python examples/training/throughput.py --clean_dir photos/ --mixed_precision bf16

Takes the options of train.py. Three rounds in one process, each with a bare loop of `--max_train_steps` steps, 120
unless given, and with train.py twice, for 40 steps and for that many more: the difference is its speed once it runs,
without the first decoding of the pictures, the last validation and the saving.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
import train
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from training.data import load_data

from gdd_diffusers.paired_data import TrainingBatches


START_STEPS = 40


def bare_loop(args) -> float:
    """Mpx/s of forward, backward and optimizer step on one batch of random numbers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    pipeline = train.build_pipeline(args)
    pipeline.unet.to(memory_format=torch.channels_last)
    optimizer = train.build_optimizer(args, pipeline.unet)
    unet, optimizer = accelerator.prepare(pipeline.unet, optimizer)
    factor, crop = pipeline.config.pixel_unshuffle, args.crop_size[0][0]
    noisy, clean = torch.rand(2, args.train_batch_size, 3, crop, crop, device=accelerator.device)
    t = 1000 * torch.rand(args.train_batch_size, device=accelerator.device)
    started = time.monotonic()
    for _ in range(args.max_train_steps):
        loss = (F.pixel_shuffle(unet(F.pixel_unshuffle(noisy, factor), t).sample, factor) - clean).abs().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return args.max_train_steps * megapixels(args) / (time.monotonic() - started)


def simulation(args, num_batches: int = 20) -> float:
    """Seconds that the noise of a batch takes one thread, which is what a data worker has."""
    seconds = 0.0

    def timed(simulator):
        def simulate(clean, generator):
            nonlocal seconds
            started = time.monotonic()
            pairs = simulator(clean, generator=generator)
            seconds += time.monotonic() - started
            return pairs

        return simulate

    sources, _ = load_data(args)
    simulate = timed(next(source.simulator for source in sources if source.simulator))  # one for all, as in training
    for source in sources:
        source.simulator = source.simulator and simulate
    batches = TrainingBatches(sources, args.train_batch_size, args.crop_size[:1], num_batches)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for k in range(num_batches):
        batches[k]
    torch.set_num_threads(num_threads)
    return seconds / num_batches


def training(args) -> tuple[float, float]:
    """Mpx/s of train.py once it runs, and the share of the time that it waited for data, start and all."""
    seconds = []
    for num_steps in (START_STEPS, START_STEPS + args.max_train_steps):
        AcceleratorState._reset_state(reset_partial_state=True)
        with tempfile.TemporaryDirectory() as folder:
            options = vars(args) | {"output_dir": folder, "max_train_steps": num_steps}
            speed, waiting = train.main(argparse.Namespace(**options))
        seconds.append(num_steps * megapixels(args) / speed)
    return args.max_train_steps * megapixels(args) / (seconds[1] - seconds[0]), waiting


def megapixels(args) -> float:
    """Of a batch at the first crop size, which is used throughout."""
    return args.train_batch_size * args.crop_size[0][0] ** 2 / 1e6


def main(words: list[str], rounds: int = 3):
    defaults = ["--max_train_steps", "120", "--lr_warmup_steps", "10"]
    defaults += ["--num_validation_images", "1", "--validation_inference_steps", "1"]
    args = train.parse_args([*defaults, *words, "--output_dir", "none"])
    args.crop_size = [(args.crop_size[0][0], 1.0)]
    load_data(args)  # what is missing should be missed before the work
    ratios = []
    for _ in range(rounds):
        bare = bare_loop(args)
        trained, waiting = training(args)
        ratios.append(trained / bare)
        # Of this process and of its largest worker, ever, in kilobytes: what leaks makes it grow from round to round.
        own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(
            f"bare loop {bare:.3f} Mpx/s, train.py {trained:.3f} Mpx/s: {ratios[-1]:.1%}, {waiting:.1%} of the time "
            f"waiting for data; peak memory {own / 1e6:.2f} GB, of a worker {worker / 1e6:.2f} GB",
            flush=True,
        )
    print(f"train.py reaches {statistics.median(ratios):.1%} of the bare loop, the median of {rounds}")
    if torch.cuda.is_available() or not args.clean_dir:
        return
    noise, step = simulation(args), megapixels(args) / bare
    print(
        f"The noise of a batch takes one thread {1000 * noise:.0f} ms, {noise / step:.1%} of a bare step's "
        f"{1000 * step:.0f} ms on {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"throughput.py: {error}")
