"""Read a torch file of weights without torch and without running what a pickle says.

A pickle is a program. `torch.save` needs four of its instructions' targets: `OrderedDict`, storage
types, a function that makes a tensor of a storage, and the storages themselves; whatever else a
file names is rejected before it is looked up. Both layouts are read: the zip archive of torch 1.6
and later, and the older row of pickles with the storages behind them.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
}
# Begin the older layout, each a pickle of its own.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Storage(NamedTuple):
    """Numbers in a file: their key there, dtype and number."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a state dict by name.

    Args:
      path: what `torch.save(model.state_dict(), path)` wrote.

    Raises:
      ValueError: the pickle names anything but tensors and their storages, of a dtype that weights
        have; or it is no state dict; or a tensor reaches past its storage.
      OSError: the file cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive)
        with Path(path).open("rb") as file:
            return _read_row(file)
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, ArithmeticError, AttributeError, EOFError,
        LookupError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path}: no state dict of plain tensors ({error}); write it by "
            "torch.save(model.state_dict(), PATH)"
        ) from error


def _read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        order = archive.read(f"{folder}byteorder")
        if order != b"little":
            raise pickle.UnpicklingError(f"byte order {order!r}")
    with archive.open(pickled) as file:
        tensors = _Unpickler(file).load()
    return _arrays(tensors, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _read_row(file: IO[bytes]) -> dict[str, np.ndarray]:
    for expected in (_MAGIC, _PROTOCOL):
        if _Unpickler(file).load() != expected:
            raise pickle.UnpicklingError("not a torch file")
    if not _Unpickler(file).load()["little_endian"]:
        raise pickle.UnpicklingError("byte order b'big'")
    tensors = _Unpickler(file).load()
    sizes = {t.storage.key: t.storage for t in _checked(tensors).values()}
    contents = {}
    for key in _Unpickler(file).load():
        storage = sizes[key]
        file.read(8)  # How many numbers, which is known.
        contents[key] = file.read(storage.size * storage.dtype.itemsize)
    return _arrays(tensors, lambda storage: contents[storage.key])


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors as descriptions of what to read, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            )
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a tensor of weights")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to {kind!r}")
        return _Storage(key, dtype, count)


def _checked(tensors: Any) -> Mapping[str, _Tensor]:
    if not isinstance(tensors, dict) or not tensors:
        raise pickle.UnpicklingError(f"it holds {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise pickle.UnpicklingError(f"{name!r} is {type(tensor).__name__}, not a tensor")
    return cast(Mapping[str, _Tensor], tensors)


def _arrays(tensors: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (storage, offset, shape, strides) in _checked(tensors).items():
        numbers = np.frombuffer(read(storage), storage.dtype, storage.size)
        # as_strided checks nothing itself.
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or max(last + 1, math.prod(shape)) > storage.size:
            raise pickle.UnpicklingError(f"{name} reaches past its storage")
        arrays[name] = np.lib.stride_tricks.as_strided(
            numbers[offset:], shape, [step * storage.dtype.itemsize for step in strides]
        ).copy()
    return arrays
