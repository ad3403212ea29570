"""Stop on SIGTERM, at once or between two training steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

STATUS_TERMINATED = 143


class StoppedError(SystemExit):
    """SIGTERM arrived, and everything that must be saved is saved; the exit status is 143."""

    def __init__(self) -> None:
        super().__init__(STATUS_TERMINATED)


class _Sigterm:
    received = False
    deferred = False


def handle_sigterm() -> None:
    """Raise `StoppedError` on SIGTERM from now on, or only note it inside `deferred_sigterm`."""

    def handle(signum: int, frame: Any) -> None:
        _Sigterm.received = True
        if not _Sigterm.deferred:
            raise StoppedError

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)


@contextlib.contextmanager
def deferred_sigterm() -> Iterator[None]:
    """Only note SIGTERM inside the block, which must poll `stop_requested` between its steps."""
    stop_if_requested()
    _Sigterm.deferred = True
    try:
        yield
    finally:
        _Sigterm.deferred = False


def stop_if_requested() -> None:
    """Raise `StoppedError` if SIGTERM arrived while it was deferred."""
    if _Sigterm.received:
        raise StoppedError


def stop_requested() -> bool:
    """Return whether this process received SIGTERM."""
    return _Sigterm.received
