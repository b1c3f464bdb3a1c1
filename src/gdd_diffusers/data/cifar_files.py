"""
Read the Python files in which CIFAR-10 is distributed (Krizhevsky, 2009).

A `FileNotFoundError` names a missing file, and a `ValueError` one that cannot be read.
"""

import pickle
from pathlib import Path

import numpy as np


SIDE = 32


class _ArrayUnpickler(pickle.Unpickler):
    """Read values of builtin types and NumPy arrays. Any other class or function in a pickle could do anything."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.multiarray", "_reconstruct")}

    def find_class(self, module, name):
        module = module.replace("numpy.core", "numpy._core")  # as it was called until NumPy 2
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")
        return super().find_class(module, name)


def read_cifar_batches(folder: str | Path, batches: str) -> np.ndarray:
    """Read the images of all files that a pattern names, such as `data_batch_*`: uint8 `[N, 32, 32, 3]`."""
    files = sorted(Path(folder).glob(batches))
    if not files:
        raise FileNotFoundError(f"There is no file {batches} of CIFAR-10 in {folder}.")
    return np.concatenate([_read_batch(file) for file in files])


def _read_batch(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            rows = _ArrayUnpickler(file, encoding="bytes").load()[b"data"]
        # a row is a plane of each colour
        return np.asarray(rows, np.uint8).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise ValueError(f"{path} cannot be read as a Python file of CIFAR-10: {error}.") from error
