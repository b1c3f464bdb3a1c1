"""What makes training on a CPU faster."""

import ctypes
import math
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from gdd_diffusers.data.batches import SIMULATION_GROUP, TrainingBatches

from .checkpoints import outlive_signals


# Parameters of mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory():
    """
    Keep what is freed for the next tensors, as torch does on a GPU. The C library of most Linux systems gives large
    blocks back at once, and to get them again, page by page, takes some 5% of each step. Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 200_000_000)  # what more the process asks for at a time


@contextmanager
def noise_processes(batches: TrainingBatches) -> Iterator[Callable[[dict], dict]]:
    """
    `TrainingBatches.simulate`, where several threads train on a CPU by processes that take a group of pictures each
    while the training waits. The tensors are too small for threads to share an operation, and threads with a group
    each would wait for each other between the operations, as Python runs in one at a time.

    Raises:
        ChildProcessError: If one of the processes was killed.
    """
    num_processes = min(torch.get_num_threads(), math.ceil(batches.batch_sizes.max() / SIMULATION_GROUP))
    if not batches.simulates_later or batches.device.type != "cpu" or num_processes == 1:
        yield batches.simulate
        return

    # All processes share the pictures' memory: to send them there and back takes several ms
    shared = torch.empty(2, 3 * (batches.batch_sizes * batches.crop_sizes**2).max(), dtype=torch.uint8).share_memory_()

    def simulate(batch):
        shape, groups = batch["clean"].shape, batch.get("to_simulate", [])
        pair = _clean_and_noisy(shared, shape)
        for pictures, name in zip(pair, ("clean", "noisy"), strict=True):
            pictures.copy_(batch[name])
        for _ in executor.map(_add_noise, groups, [shape] * len(groups)):
            pass
        clean, noisy = pair.clone()
        return {k: v for k, v in batch.items() if k != "to_simulate"} | {"clean": clean, "noisy": noisy}

    with ProcessPoolExecutor(num_processes, initializer=_begin_noise_process, initargs=(batches, shared)) as executor:
        try:
            yield simulate
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A process that simulates noise was killed, perhaps for want of memory: go on with "
                "--resume_from_checkpoint latest."
            ) from error


def _begin_noise_process(batches, shared):
    global _batches, _shared  # of this process, for all groups to come
    _batches, _shared = batches, shared

    def end_with_the_training():
        multiprocessing.parent_process().join()
        os._exit(0)

    torch.set_num_threads(1)
    keep_freed_memory()  # a process inherits that only where processes are forked
    outlive_signals()
    threading.Thread(target=end_with_the_training, daemon=True).start()


def _add_noise(group, shape):
    clean, noisy = _clean_and_noisy(_shared, shape)
    _batches.add_noise(clean, noisy, group)


def _clean_and_noisy(shared, shape):
    """[2, *shape], at the beginning of the shared memory, which is for the largest batch."""
    return shared[:, : shape.numel()].view(2, *shape)
