#!/usr/bin/env python
"""How much of a bare training loop's speed train.py reaches, and what simulating the noise costs it.

    python examples/training/throughput.py --clean_dir photos/ --mixed_precision bf16

Takes the options of train.py. Ten steps of train.py, ten of a bare loop, and so on by turns in one process, until
train.py is done after `--max_train_steps`, 240 unless given: other work on the machine then slows both alike. Data
workers are stopped (POSIX only) while the bare loop has its turn. The first 40 steps, with the first decoding of the
pictures, do not count.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock


sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
import train
from accelerate import Accelerator
from training.cpu import noise_processes
from training.data import load_data
from training.model import build_pipeline
from training.optimizer import build_optimizer

from gdd_diffusers.data.batches import TrainingBatches


START_STEPS = 40
TURN = 10


class BareLoop:
    """Forward, backward and optimizer step on one batch of random numbers."""

    def __init__(self, args):
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        pipeline = build_pipeline(args)
        pipeline.unet.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(args, pipeline.unet)
        self.unet, self.optimizer = self.accelerator.prepare(pipeline.unet, optimizer)
        self.factor, crop = pipeline.config.pixel_unshuffle, args.crop_size[0][0]
        shape = args.train_batch_size, 3, crop, crop
        self.noisy, self.clean = torch.rand(2, *shape, device=self.accelerator.device)
        self.t = 1000 * torch.rand(len(self.noisy), device=self.accelerator.device)

    def step(self):
        output = F.pixel_shuffle(self.unet(F.pixel_unshuffle(self.noisy, self.factor), self.t).sample, self.factor)
        loss = (output - self.clean).abs().mean()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


class Turns(train.tqdm):
    """The progress of train.py, which every `TURN` steps lets the bare loop go on for as many."""

    bare_loop: BareLoop
    seconds: dict[str, list[float]]

    def update(self):
        super().update()
        if self.n == START_STEPS - TURN:
            self.started = time.monotonic()
        if self.n % TURN or self.n < START_STEPS:
            return
        self.seconds["train.py"].append(time.monotonic() - self.started)
        self.signal_workers(signal.SIGSTOP)
        try:
            started = time.monotonic()
            for _ in range(TURN):
                self.bare_loop.step()
            self.started = time.monotonic()
        finally:
            self.signal_workers(signal.SIGCONT)
        self.seconds["bare loop"].append(self.started - started)

    def signal_workers(self, number):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)


@contextmanager
def timed_noise_processes(batches: TrainingBatches, seconds: list[float]):
    """`noise_processes`, which add to `seconds` what the noise of a batch has taken."""

    def timed_simulate(batch):
        started = time.monotonic()
        simulated = simulate(batch)
        if batch.get("to_simulate"):  # not done already, by a worker
            seconds.append(time.monotonic() - started)
        return simulated

    with noise_processes(batches) as simulate:
        yield timed_simulate


def megapixels(args) -> float:
    """Of a batch at the first crop size, which is used throughout."""
    return args.train_batch_size * args.crop_size[0][0] ** 2 / 1e6


def main(words: list[str]):
    defaults = ["--max_train_steps", "240", "--lr_warmup_steps", "10"]
    defaults += ["--num_validation_images", "1", "--validation_inference_steps", "1"]
    args = train.parse_args([*defaults, *words, "--output_dir", "none"])
    if args.max_train_steps < START_STEPS + TURN:
        raise ValueError(f"--max_train_steps must be at least {START_STEPS + TURN}.")
    args.crop_size = [(args.crop_size[0][0], 1.0)]
    load_data(args)  # what is missing should be missed before the work
    Turns.bare_loop, Turns.seconds, noise = BareLoop(args), {"train.py": [], "bare loop": []}, []
    turns = mock.patch.object(train, "tqdm", Turns)
    timing = mock.patch.object(train, "noise_processes", partial(timed_noise_processes, seconds=noise))
    with tempfile.TemporaryDirectory() as folder, turns, timing:
        speed, waiting = train.main(argparse.Namespace(**vars(args) | {"output_dir": folder}))
    training, bare = Turns.seconds["train.py"], Turns.seconds["bare loop"]
    # The bare loop's turns are in what train.py took for its own time
    total = args.max_train_steps * megapixels(args) / speed
    waiting *= total / (total - sum(bare))
    ratios = [b / t for b, t in zip(bare, training, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    reached = sum(bare) / sum(training)
    step, step_bare = (1000 * statistics.median(x) / TURN for x in (training, bare))
    print(
        f"train.py: {step:.0f} ms a step, bare loop: {step_bare:.0f} ms, medians of {len(bare)} turns of {TURN}\n"
        f"train.py reaches {reached:.1%} of the bare loop; half of the turns {low:.0%} to {high:.0%}\n"
        f"It waited for data {waiting:.1%} of its time, start and all"
    )
    # Ever, in kilobytes
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"Peak memory, with that of the bare loop: {own / 1e6:.2f} GB, of a worker {worker / 1e6:.2f} GB")
    if noise and not torch.cuda.is_available():  # where kernels are only begun
        noise = 1000 * statistics.median(noise[START_STEPS:])
        print(f"The noise of a batch takes {noise:.0f} ms, {noise / step:.1%} of a step")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"throughput.py: {error}")
