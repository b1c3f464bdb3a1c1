import numpy as np
import pytest

from gdd_diffusers.data.matlab_files import open_dnd


def test_dnd_crops(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "images_srgb").mkdir()
    image = np.random.rand(20, 30, 3).astype(np.float32)
    boxes = np.array([[1, 1, 8, 10], [5, 11, 20, 30]])
    with h5py.File(tmp_path / "info.mat", "w") as file:  # MATLAB's order of dimensions is the other way round
        file["boxes_of_1"] = boxes.T.astype(np.float64)
        references = file.create_dataset("info/boundingboxes", (1, 1), dtype=h5py.ref_dtype)
        references[0, 0] = file["boxes_of_1"].ref
    with h5py.File(tmp_path / "images_srgb" / "0001.mat", "w") as file:
        file["InoisySRGB"] = image.T
    names, load = open_dnd(tmp_path)
    assert names == ["0001_01", "0001_02"]
    np.testing.assert_array_equal(load(0), image[:8, :10])
    np.testing.assert_array_equal(load(1), image[4:20, 10:30])
