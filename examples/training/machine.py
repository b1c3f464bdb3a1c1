"""What train.py needs to know of the machine and its launch, and how it handles signals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env


def check_launch(accelerator):
    """Check that the processes that were started train together, which accelerate decides by their device."""
    num_started = int(os.environ.get("WORLD_SIZE", 1))  # as torchrun and accelerate launch say
    if num_started != accelerator.num_processes:
        raise ValueError(
            f"{num_started} processes were started, but each would train on its own, into the same folder. Without "
            "GPUs, start one by python examples/train.py, or several by ACCELERATE_USE_CPU=true torchrun "
            "--nproc_per_node 2."
        )


def has_fast_bf16() -> bool:
    """Return whether the device has instructions for bf16; of a CPU, `avx512_bf16`, `amx_bf16` or those of Arm."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return any(value and "bf16" in name for name, value in torch.cpu.get_capabilities().items())


def choose_precision(asked: str | None) -> str:
    """
    Return the precision to train in: what was asked for, else what accelerate was told to use, else bf16 where it is
    fast. `accelerate launch` says "no" if it was told nothing.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return asked or (told if told != "no" else "bf16" if has_fast_bf16() else "no")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C in a list, instead of stopping at once."""
    received = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore_foreign_signals(worker: int):
    """
    Let only the training itself end a data worker. Terminals and cluster schedulers signal every process, but the
    training still needs its workers up to the checkpoint that it then saves.
    """

    def exit_with_training():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=exit_with_training, daemon=True).start()
