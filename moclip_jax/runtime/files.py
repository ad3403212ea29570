"""One run at a time in a folder."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made if absent.

    The lock (`flock` on `folder/.lock`) belongs to the process: when it ends, however it ends, the
    lock is free, so one that was left behind never blocks. The file itself stays. On Windows there
    is no such lock, and nobody is kept out.

    Args:
      folder: the folder.

    Raises:
      BlockingIOError: another run works there; the message names its process and host.
      OSError: the folder cannot be written, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if fcntl is None:
        yield
        return
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise BlockingIOError(
                f"another run works in {folder} ({owner}); wait until it ends, stop it, or use "
                "another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise OSError(
                error.errno,
                "the file system has no locks, so two runs could not be kept apart; use another "
                "one (of NFS, mount version 4)",
                str(path),
            ) from error
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()} since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        file.flush()
        yield
