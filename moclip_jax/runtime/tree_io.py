"""Write and read trees of arrays, such as the parameters of a network, as Orbax checkpoints."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from moclip_jax.runtime.distributed import is_main_process


def save_tree(path: Path, tree: Any) -> None:
    """Write a tree of arrays, replacing what is at `path` once the new checkpoint is complete.

    Only the main process writes.

    Raises:
      OSError: The disk is full or cannot be written.
      ValueError: As `check_writable_path`.
    """
    check_writable_path(path)
    if not is_main_process():
        return
    path = path.absolute()
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    with disk_errors(path):
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        with _checkpointer() as checkpointer:
            checkpointer.save(new, args=ocp.args.StandardSave(jax.tree.map(np.asarray, tree)))
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old, ignore_errors=True)


def load_tree(path: Path, like: Any) -> Any:
    """Read a tree written by `save_tree`, on any number of devices and processes.

    Args:
      like: Tree of the same structure with the shapes and dtypes to expect.

    Returns:
      The tree, on the first device of each process.

    Raises:
      FileNotFoundError: There is no checkpoint at `path`.
      ValueError: It does not have the structure, shapes or dtypes of `like`, or there is a
        backslash in its path.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    _check_path(path, "\\")
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    with _checkpointer() as checkpointer:
        try:
            return checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(abstract))
        except ValueError as error:
            raise ValueError(
                f"{path} does not fit the networks that this version builds for its settings; it "
                f"was damaged, or written by another version: {str(error).splitlines()[0]}"
            ) from error


def check_writable_path(path: Path) -> None:
    """Check that Orbax can write a checkpoint below a folder and read it again.

    Orbax looks for what it wrote by a glob pattern that begins with the path, and TensorStore takes
    a backslash for a slash: the weights would be written, and never found again.

    Raises:
      ValueError: There is an opening bracket or a backslash in its absolute path.
    """
    _check_path(path, "[\\")


def _check_path(path: Path, characters: str) -> None:
    for character in characters:
        if character in str(path.absolute()):
            raise ValueError(
                f"{path.absolute()}: checkpoints cannot be kept in a folder with {character} in "
                "its path; rename the folder or choose another one"
            )


def single_process() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax waits for no other process: each reads and writes alone."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what Orbax and TensorStore raise about a full or read-only disk into OSError."""
    try:
        yield
    except Exception as error:
        text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        for number in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT, errno.EACCES):
            if os.strerror(number).lower() in text.lower():
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _checkpointer() -> ocp.Checkpointer:
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=single_process())
    return ocp.Checkpointer(handler, multiprocessing_options=single_process())
