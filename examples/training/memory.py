"""Memory between the steps of a training on a CPU."""

import ctypes
import platform


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
