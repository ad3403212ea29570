"""Writes torch files without torch."""

import zipfile
from pathlib import Path

import numpy as np


def tensor(key: str, count: int, offset: int, shape: tuple, strides: tuple) -> str:
    """The instructions that make a float32 tensor of the storage `data/KEY`."""

    def numbers(values: tuple) -> str:
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    return (
        "ctorch._utils\n_rebuild_tensor_v2\n"
        f"((S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{count}\ntQ"
        f"I{offset}\n{numbers(shape)}{numbers(strides)}I00\nNtR"
    )


def write_torch_zip(path: Path, instructions: dict[str, str], storages: list[bytes]) -> None:
    """Write what `torch.save` makes of a dict with these values."""
    items = "".join(f"S'{name}'\n{value}s" for name, value in instructions.items())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", f"(d{items}.")
        for key, content in enumerate(storages):
            archive.writestr(f"weights/data/{key}", content)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write float32 arrays as a state dict."""
    instructions = {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // 4 for step in np.array(array, order="C").strides)
        instructions[name] = tensor(str(key), array.size, 0, array.shape, strides)
    write_torch_zip(path, instructions, [array.tobytes() for array in arrays.values()])
