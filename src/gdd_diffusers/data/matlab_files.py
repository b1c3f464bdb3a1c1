"""
Read the MATLAB files in which SIDD and DND are distributed.

A `FileNotFoundError` names a missing file, and a `ValueError` one that cannot be read or lacks its array.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np


def open_sidd_blocks(folder: str | Path, *keys: str) -> tuple[list[str], Callable[[int], tuple[np.ndarray, ...]]]:
    """
    Read SIDD blocks into memory from MATLAB files named after their array (Abdelhamed et al., CVPR 2018).

    `keys` name the arrays whose blocks belong together, such as `"ValidationNoisyBlocksSrgb"`. Returns the names of
    the blocks, such as `"0039_31"`, and a function from a block's index to its image in each file, uint8 `[H, W, 3]`.
    """
    arrays = []
    for key in keys:
        array = _open_mat(Path(folder) / f"{key}.mat", key)
        if not isinstance(array, np.ndarray):
            with array.file:
                array = array[()].T  # HDF5 has the dimensions in reverse order
        shape = arrays[0].shape if arrays else array.shape
        if array.ndim != 5 or array.dtype != np.uint8 or array.shape != shape:
            expected = "[40, 32, 256, 256, 3]" if array.shape == shape else f"{list(shape)} as {keys[0]}"
            raise ValueError(f"{key} in {folder} must be uint8 {expected}, not {array.dtype} {list(array.shape)}.")
        arrays.append(array)
    indices = list(np.ndindex(shape[:2]))
    return (
        [f"{i:04d}_{j:02d}" for i, j in indices],
        lambda number: tuple(np.ascontiguousarray(array[indices[number]]) for array in arrays),
    )


def open_dnd(folder: str | Path) -> tuple[list[str], Callable[[int], np.ndarray]]:
    """
    Open the noisy crops of DND in sRGB: `info.mat` and `images_srgb/` (Plötz and Roth, CVPR 2017).

    Returns the names of the crops, such as `"0050_20"`, and a function that reads the crop of an index, float32
    `[H, W, 3]` in [0, 1].
    """
    folder = Path(folder)
    references = _open_mat(folder / "info.mat", "info/boundingboxes")
    # Top, left, bottom and right of each crop, counted from 1 and inclusive: [images, crops, 4]
    boxes = np.stack([references.file[reference][:].T for reference in references[:].flatten()]).astype(int)
    indices = list(np.ndindex(boxes.shape[:2]))

    def load(number):
        i, j = indices[number]
        top, left, bottom, right = boxes[i, j]
        array = _open_mat(folder / "images_srgb" / f"{i + 1:04d}.mat", "InoisySRGB")
        with array.file:
            crop = array[:, left - 1 : right, top - 1 : bottom].T  # MATLAB's [H, W, 3] is [3, W, H] in HDF5
        return crop.clip(0, 1).astype(np.float32)

    return [f"{i + 1:04d}_{j + 1:02d}" for i, j in indices], load


def _open_mat(path: Path, key: str):
    """Return an array of a MATLAB file, or an `h5py.Dataset` if it was written by MATLAB 7.3, as HDF5."""
    try:
        import h5py
        import scipy.io
    except ImportError as error:
        raise ImportError("MATLAB files need the extra: pip install 'gdd-diffusers[eval]'.") from error

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if h5py.is_hdf5(path):
            file = h5py.File(path)
            found, array = list(file), file.get(key)
        else:
            found = [name for name, *_ in scipy.io.whosmat(path)]
            array = scipy.io.loadmat(path, variable_names=[key]).get(key)
    except Exception as error:  # both libraries raise many kinds for a broken file
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if array is None:
        raise ValueError(f"{path} must hold the variable {key}, and has {', '.join(found) or 'none'}.")
    return array
