#!/usr/bin/env python
"""Train gdd-small and gdd-fast together on one GPU, for a number of minutes.

    python examples/train_bundled.py --clean_dir photos/ --minutes 8 --output_dir bundled

Both see the same batches. gdd-small learns from the ground truth, and gdd-fast what gdd-small predicts meanwhile. The
script first measures what a batch takes on this machine, part by part, and then trains. The learning rate follows a
cosine to zero by the clock. `bundled/gdd-small` and `bundled/gdd-fast` hold the averaged weights.
"""

import argparse
import itertools
import json
import math
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from options import HelpFormatter
from train import crop_schedule, positive, predict_x0
from training.checkpoints import averaged_weights
from training.model import build_optimizer

from gdd_diffusers import RealDenoisePipeline, losses
from gdd_diffusers.data.batches import Source, TrainingBatches
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.data.layouts import load_clean


WARM_UP = 150  # steps
SIMULATED_STEPS = 4  # whose noise is simulated at once, which is faster; many small steps teach more than few large


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--clean_dir", action="append", required=True, help="Clean photographs to simulate noise on. Repeatable.")
    add("--weights", type=float, nargs="+", help="How often to draw from each clean_dir.")
    add("--output_dir", required=True, help="Folder for the weights and the log.")
    add("--minutes", type=float, required=True, help="To train, without the measuring before.")
    add("--batch_size", type=positive, default=384, help="Crops that are simulated at once, of the first size.")
    add(
        "--crop_size",
        type=crop_schedule,
        default="160",
        help="Pixels; 160:0.95,32 takes batches of smaller crops, of as many pixels, 5%% of the time.",
    )
    add("--learning_rate", type=float, default=1e-3, help="At its peak.")
    add("--num_workers", type=int, default=6, help="Processes that prepare batches.")
    add("--seed", type=int, default=0, help="Of the order of the data, and the noise.")
    add("--device", default="cuda")
    args = parser.parse_args(argv)
    if args.weights and len(args.weights) != len(args.clean_dir):
        parser.error("--weights needs one number for each --clean_dir.")
    args.optimizer = "muon"
    return args


class Trainee:
    """A network in training, its optimizer and its averaged weights."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.learning_rate = name, args.learning_rate
        self.pipeline = RealDenoisePipeline.from_pretrained(name)
        self.unet = self.pipeline.unet.to(args.device, memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(args, self.unet)
        self.ema = EMAModel(self.unet.parameters(), decay=0.999, foreach=True, use_ema_warmup=True, power=0.75)

    def predict(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return predict_x0(self.unet, self.pipeline, x_t, t)

    def step(self, loss: torch.Tensor, scale: float):
        """Take a step at a share of the peak learning rate."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 0.1)
        for group in self.optimizer.param_groups:
            group["lr"] = scale * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())

    def save(self, folder: Path):
        with averaged_weights(self.ema, self.unet):
            self.pipeline.save_pretrained(folder / self.name)


def build_batches(args: argparse.Namespace) -> TrainingBatches:
    folders = [load_clean(folder) for folder in args.clean_dir]
    simulator = CameraNoise("mixed")
    weights = args.weights or [len(folder) for folder in folders]
    sources = [Source(folder, weight, simulator) for folder, weight in zip(folders, weights, strict=True)]
    batches = TrainingBatches(
        sources,
        args.batch_size,
        args.crop_size,
        num_batches=1_000_000,
        seed=args.seed,
        device=args.device,
        shuffle_crop_sizes=True,
    )
    # Decoded before the workers are forked, the photographs are in memory once for all.
    with ThreadPoolExecutor() as pool:
        for images in batches.images:
            list(pool.map(images.__getitem__, range(len(images))))
    return batches


def simulate_ahead(batches: TrainingBatches, num_workers: int) -> Iterator[dict]:
    """
    Yield batches whose noise is simulated by a thread, on a stream of its own: the simulator waits for the GPU to know
    which images are of a kind, and the training then does not wait with it.
    """
    device = batches.device
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=num_workers, pin_memory=True)
    ready = queue.Queue(maxsize=2)

    def simulate():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for batch in loader:
                    batch = batches.simulate(batch)
                    ready.put((batch, torch.cuda.current_stream().record_event()))
        except Exception as error:
            ready.put((error, None))

    if device.type != "cuda":
        yield from map(batches.simulate, loader)
        return
    threading.Thread(target=simulate, daemon=True).start()
    while True:
        batch, simulated = ready.get()
        if isinstance(batch, Exception):
            raise batch
        simulated.wait()
        for tensor in (batch["clean"], batch["noisy"], batch["u"]):
            tensor.record_stream(torch.cuda.current_stream())
        yield batch


def split(batch: dict) -> Iterator[dict]:
    """Divide a batch among steps."""
    names = ("clean", "noisy", "u")
    for tensors in zip(*(batch[name].chunk(SIMULATED_STEPS) for name in names), strict=True):
        yield dict(zip(names, tensors, strict=True))


def loss_of(trainee: Trainee, batch: dict, target: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss against `target`, by default the ground truth, and the prediction."""
    scheduler = trainee.pipeline.scheduler
    clean, noisy = (batch[name].float() / 127.5 - 1 for name in ("clean", "noisy"))
    t = scheduler.config.num_train_timesteps * (1 - batch["u"] ** 2)
    x0_hat = trainee.predict(scheduler.add_noise(clean, noisy, t), t)
    target = clean if target is None else target
    return losses.charbonnier(x0_hat, target, losses.noise_weight(clean, noisy)), x0_hat.detach()


def measure(batches: TrainingBatches, trainees: list[Trainee]):
    """Print what the parts of a simulated batch take."""
    item = batches[int(batches.crop_sizes.argmax())]
    batch = batches.simulate(item)

    def step(trainee):
        for part in split(batch):
            trainee.step(loss_of(trainee, part)[0], 0.0)

    parts = {"simulator": lambda: batches.simulate(item)}
    for trainee in trainees:
        parts[trainee.name] = lambda trainee=trainee: step(trainee)
    megapixels = batch["clean"][:, 0].numel() / 1e6
    for name, part in parts.items():
        times = []
        for _ in range(9):
            torch.cuda.synchronize()
            started = time.perf_counter()
            part()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        median = sorted(times)[4]
        rate = megapixels / median
        print(f"{name}: {median * 1e3:.1f} ms a batch ({rate:.0f} Mpx/s), the first {times[0]:.1f} s", flush=True)
    print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB of GPU memory at most", flush=True)


def main(args: argparse.Namespace):
    torch.backends.cudnn.benchmark = True
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    batches = build_batches(args)
    small, fast = Trainee("gdd-small", args), Trainee("gdd-fast", args)
    if args.device == "cuda":
        measure(batches, [small, fast])

    num_pixels, line = 0, {}
    steps = itertools.chain.from_iterable(map(split, simulate_ahead(batches, args.num_workers)))
    started = last_saved = time.monotonic()
    with (output_dir / "log.jsonl").open("a") as log:
        for step, batch in enumerate(steps, 1):
            share = (time.monotonic() - started) / (60 * args.minutes)
            if share >= 1:
                break
            scale = min(1, step / WARM_UP) * (1 + math.cos(math.pi * share)) / 2
            small_loss, prediction = loss_of(small, batch)
            fast_loss, _ = loss_of(fast, batch, target=prediction)
            small.step(small_loss, scale)
            fast.step(fast_loss, scale)
            num_pixels += batch["clean"][:, 0].numel()
            if step % 50 == 0:  # reading a loss waits for the GPU
                line = {"step": step, "small": small_loss.item(), "fast": fast_loss.item(), "lr": scale}
                line["mpx_per_s"] = num_pixels / 1e6 / (time.monotonic() - started)
                print(json.dumps(line), file=log, flush=True)
                if not math.isfinite(line["small"] + line["fast"]):
                    raise SystemExit(f"train_bundled.py: the loss is not finite in step {step}; what was saved stays.")
                if time.monotonic() - last_saved > 60:
                    for trainee in (small, fast):
                        trainee.save(output_dir)
                    last_saved = time.monotonic()
    for trainee in (small, fast):
        trainee.save(output_dir)
    print(f"{step} steps, {json.dumps(line)}")


if __name__ == "__main__":
    main(parse_args())
