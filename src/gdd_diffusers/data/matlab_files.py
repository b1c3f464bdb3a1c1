"""The MATLAB files in which SIDD and DND distribute their benchmarks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np


def open_sidd_blocks(folder: str | Path, *keys: str) -> tuple[list[str], Callable[[int], tuple[np.ndarray, ...]]]:
    """
    The blocks that SIDD distributes as MATLAB files, each named as the one array in it (Abdelhamed et al., CVPR 2018).

    Files of MATLAB 7.3 are read block by block; older ones hold their bytes in another order, and stay in memory.

    Args:
        folder (`str` or `Path`): Where the files lie.
        keys (`str`): `"ValidationNoisyBlocksSrgb"` and so on, whose blocks belong together.

    Returns:
        `tuple[list[str], Callable]`: The blocks' names, such as `"0039_31"`, and a function from a block's number to
            its picture in each of the files, uint8 [H, W, 3].

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file has no such array, or cannot be read, or the arrays differ in shape.
    """
    opened = [_open_mat(Path(folder) / f"{key}.mat", key) for key in keys]
    # HDF5 sees MATLAB's dimensions in reverse order
    shapes = [array.shape if isinstance(array, np.ndarray) else array.shape[::-1] for array in opened]
    for key, array, shape in zip(keys, opened, shapes, strict=True):
        if len(shape) != 5 or array.dtype != np.uint8 or shape != shapes[0]:
            expected = "[40, 32, 256, 256, 3]" if shape == shapes[0] else f"{list(shapes[0])} as {keys[0]}"
            raise ValueError(f"{key} in {folder} must be uint8 {expected}, not {array.dtype} {list(shape)}.")
    count = shapes[0][1]

    def load(number):
        i, j = divmod(number, count)
        return tuple(
            np.ascontiguousarray(array[i, j] if isinstance(array, np.ndarray) else array[..., j, i].T)
            for array in opened
        )

    return [f"{i:04d}_{j:02d}" for i, j in np.ndindex(shapes[0][:2])], load


def open_dnd(folder: str | Path) -> tuple[list[str], Callable[[int], np.ndarray]]:
    """
    The noisy crops of DND in sRGB, read one by one from `info.mat` and `images_srgb/` (Plötz and Roth, CVPR 2017).

    Returns:
        `tuple[list[str], Callable]`: The crops' names, such as `"0050_20"`, and a function from a crop's number to its
            pixels, float32 [H, W, 3] in [0, 1].

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, or lacks its array.
    """
    folder = Path(folder)
    references = _open_mat(folder / "info.mat", "info/boundingboxes")
    # corners top, left, bottom, right of each crop, counted from 1 and inclusive: [images, crops, 4]
    boxes = np.stack([references.file[reference][:].T for reference in references[:].flatten()]).astype(int)
    crops = boxes.shape[1]

    def load(number):
        i, j = divmod(number, crops)
        top, left, bottom, right = boxes[i, j]
        array = _open_mat(folder / "images_srgb" / f"{i + 1:04d}.mat", "InoisySRGB")
        with array.file:
            crop = array[:, left - 1 : right, top - 1 : bottom].T  # MATLAB's [H, W, 3] is [3, W, H] here
        return crop.clip(0, 1).astype(np.float32)

    return [f"{i + 1:04d}_{j + 1:02d}" for i, j in np.ndindex(boxes.shape[:2])], load


def _open_mat(path: Path, key: str):
    """An array of a MATLAB file: in memory, or of a file of MATLAB 7.3, which is HDF5, still in it."""
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
    except Exception as error:  # the libraries have many for what is broken
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if array is None:
        raise ValueError(f"{path} must hold the variable {key}, and has {', '.join(found) or 'none'}.")
    return array
