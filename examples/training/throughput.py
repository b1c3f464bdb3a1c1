"""How much of a bare training loop's speed train.py reaches: both in turns, in one process, on one machine.

    python examples/training/throughput.py --clean_dir photos/ --mixed_precision bf16

Takes the options of train.py. A round is `--max_train_steps` steps of each, 60 unless given.
"""

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


def bare_loop(args) -> float:
    """Mpx/s of forward, backward and optimizer step on one batch of random numbers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    pipeline = train.build_pipeline(args)
    optimizer = torch.optim.AdamW(pipeline.unet.parameters())
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
    return args.max_train_steps * args.train_batch_size * crop**2 / 1e6 / (time.monotonic() - started)


if __name__ == "__main__":
    words = ["--max_train_steps", "60", "--lr_warmup_steps", "10", "--num_validation_images", "1", *sys.argv[1:]]
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            args = train.parse_args([*words, "--output_dir", folder])
            bare = bare_loop(args)
            AcceleratorState._reset_state(reset_partial_state=True)
            trained, waiting = train.main(args)
        share = f"{trained / bare:.1%}, {waiting:.1%} of the time waiting for data"
        print(f"bare loop {bare:.3f} Mpx/s, train.py {trained:.3f} Mpx/s: {share}")
