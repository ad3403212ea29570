"""Write files atomically, and lock a folder for one process at a time."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from moclip_jax.runtime.progress import say

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file by what the block writes, or leave it as it was if the block fails.

    Readers, also those after a power failure, see the old file or the whole new one.

    Args:
      path: The file, in a folder that exists.

    Yields:
      A hidden path in the same folder and with the same suffix, which the block must write.
    """
    # The process's number keeps two writers of one file apart; the last one wins.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; the folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def exclusive_lock(folder: Path, option: str = "--workdir") -> Iterator[None]:
    """Keep other runs out of a folder, which is made if absent.

    The lock (`flock` on `folder/.lock`) ends with the process, so a killed run leaves none behind;
    only the file stays. Windows has no such lock: there nothing is kept out.

    Args:
      option: What names the folder on the command line, for the message.

    Raises:
      BlockingIOError: Another run works in the folder; the message names its process and host.
      OSError: The folder cannot be written, or its file system has no locks.
    """
    with _lock_file(folder / LOCK_FILE) as file:
        try:
            _lock(file, wait=False)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise BlockingIOError(
                f"another run works in {folder} ({owner}); wait until it ends, stop it, or use "
                f"another {option}"
            ) from None
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()} since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        file.flush()
        yield


@contextlib.contextmanager
def wait_for_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock on a file, as `exclusive_lock` does, waiting while another process does.

    The file is made if absent, and stays. `what` is locked, for the message about the wait.

    Raises:
      OSError: The file cannot be written, or its file system has no locks.
    """
    with _lock_file(path) as file:
        try:
            _lock(file, wait=False)
        except BlockingIOError:
            say(f"{what}: another process holds the lock; waiting")
            _lock(file, wait=True)
        yield


def _lock_file(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a+")


def _lock(file: IO[str], *, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        raise OSError(
            error.errno,
            "the file system has no locks, so two runs could not be kept apart; use another one "
            "(of NFS, mount version 4)",
            file.name,
        ) from error
