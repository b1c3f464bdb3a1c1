"""Keep freed memory for the next tensors, as torch does on a GPU."""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager


# Parameters of mallopt(3), and the values in use where nobody sets them
_DEFAULTS = {-1: 128 * 1024, -2: 128 * 1024, -3: 32 * 1024**2}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
_KEEPING = {-1: 2**31 - 1, -2: 200_000_000, -3: 2**31 - 1}
_lock, _num_users = threading.Lock(), 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """
    Keep freed memory in the process while the context is open, and return it to the system in the end.

    glibc returns large blocks at once. To get them back, page by page, can take longer than the convolutions between
    (see [mallopt(3)](https://man7.org/linux/man-pages/man3/mallopt.3.html)). Contexts may be nested, and open in
    several threads. With other C libraries this does nothing.

    Example:
        ```py
        >>> import torch
        >>> from gdd_diffusers.memory import keep_freed_memory

        >>> with keep_freed_memory():
        ...     for _ in range(3):
        ...         x = torch.ones(10_000_000)

        ```
    """
    global _num_users
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    with _lock:
        _num_users += 1
        for parameter, value in _KEEPING.items():
            libc.mallopt(parameter, value)
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1
            if _num_users == 0:
                for parameter, value in _DEFAULTS.items():
                    libc.mallopt(parameter, value)
                libc.malloc_trim(0)
