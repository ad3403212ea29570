"""Torch files are read as torch reads them, and nothing in them is run."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from moclip_jax.pretrained.torch_file import read_torch_file
from tests.pretrained.torch_zip import tensor, write_torch_zip

GOLDEN = Path(__file__).parents[1] / "golden"


class Runs:
    """What a hostile file would hold."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", data)
    return path


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_row.pth"])
def test_both_layouts_give_what_torch_wrote(name):
    """Written by tests/golden/make_torch_files.py."""
    arrays = read_torch_file(GOLDEN / name)
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6) / np.float32(3)
    expected = {
        "plain": numbers,
        "turned": numbers.T,
        "part": numbers[1:3, ::2],
        "half": numbers[0].astype(np.float16),
        "double": numbers[1].astype(np.float64),
        "count": np.array(7),
        "empty": np.empty((0, 3), np.float32),
    }
    assert list(arrays) == list(expected)
    for key, array in expected.items():
        assert arrays[key].dtype == array.dtype, key
        np.testing.assert_array_equal(arrays[key], array, err_msg=key)


@pytest.mark.parametrize("layout", ["zip", "row"])
def test_a_file_that_would_run_something_is_rejected_and_does_not(tmp_path, layout):
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    hostile = pickle.dumps({"weight": Runs(made)}, 2)
    if layout == "zip":
        zipped(path, hostile)
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + hostile)
    with pytest.raises(
        ValueError, match=r"no state dict of plain tensors .it names posix\.mkdir, which is not"
    ):
        read_torch_file(path)
    assert not made.exists()
    pickle.loads(hostile)  # It would have.
    assert made.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"never a pickle", pickle.dumps({"weight": 1}, 2), pickle.dumps([1], 2)],
)
def test_other_files_are_rejected(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth: no state dict of plain tensors"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="no state dict of plain tensors"):
        read_torch_file(zipped(path, content))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (25,), (1,)), (1, (24,), (1,)), (0, (10**9,), (0,)), (-1, (2,), (1,)), (4, (2,), (-1,))],
)
def test_a_tensor_past_its_storage_is_rejected(tmp_path, offset, shape, strides):
    path = tmp_path / "weights.pth"
    instructions = tensor("0", 24, offset, shape, strides)
    write_torch_zip(path, {"weight": instructions}, [bytes(24 * 4)])
    with pytest.raises(ValueError, match="weight reaches past its storage"):
        read_torch_file(path)
