import pickle
import struct

import numpy as np
import pytest

from gdd_diffusers.data.cifar_files import read_cifar_batches
from gdd_diffusers.data.layouts import LAYOUTS, load_cifar10


pytestmark = pytest.mark.usefixtures("datasets_cache")


class Python2Pickler(pickle._Pickler):
    """Write byte strings as Python 2 did, which made CIFAR's files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def write_batch(file, images):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)  # a plane of each colour
    with file.open("wb") as opened:
        Python2Pickler(opened, protocol=2).dump({b"data": rows, b"labels": [0] * len(images)})
    file.write_bytes(file.read_bytes().replace(b"numpy._core", b"numpy.core"))


@pytest.fixture
def batches(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)
    for name, part in zip(("data_batch_1", "data_batch_2", "test_batch"), images, strict=True):
        write_batch(tmp_path / name, part)
    return tmp_path, images


def test_training_and_test_images(batches):
    folder, images = batches
    np.testing.assert_array_equal(read_cifar_batches(folder, "data_batch_*"), images[:2].reshape(8, 32, 32, 3))
    assert len(set(LAYOUTS["cifar10"](folder)["scene"])) == 8
    for row, image in zip(load_cifar10(folder, "test_batch"), images[2], strict=True):
        np.testing.assert_array_equal(np.asarray(row["clean"]), image)


def test_a_pickle_that_would_call_something_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path / "made").touch, ()

    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Harmful()}))
    with pytest.raises(ValueError, match="test_batch cannot be read as a Python file of CIFAR-10: it asks for"):
        read_cifar_batches(tmp_path, "test_batch")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({b"x": 1}), pickle.dumps({b"data": [1, 2]})])
def test_files_that_are_none_of_it_are_named(tmp_path, content):
    with pytest.raises(FileNotFoundError, match=r"There is no file data_batch_\* of CIFAR-10 in"):
        LAYOUTS["cifar10"](tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1 cannot be read as a Python file of CIFAR-10"):
        LAYOUTS["cifar10"](tmp_path)
