"""Stop on SIGTERM, at once or between two training steps, and on Ctrl-C wherever it comes."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
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


def interrupt_again(unraisable: Any) -> None:
    """Raise a KeyboardInterrupt that was lost again, as `sys.unraisablehook`.

    Python only prints what is raised inside a callback, and JAX has one in the garbage collector.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    arrived = threading.Event()
    handler = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def interrupt(number: int, frame: FrameType | None) -> None:
        # An exception inside the hook would be lost again.
        if not _is_in_hook(frame):
            arrived.set()
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=_interrupt_main_thread, args=(arrived,), daemon=True).start()


def _interrupt_main_thread(arrived: threading.Event) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    # More than once: a wait that begins just when the signal comes is not woken by it.
    while not arrived.wait(0.01):
        # A real signal interrupts a wait, which `interrupt_main` does not.
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            _thread.interrupt_main()


def _is_in_hook(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not interrupt_again.__code__:
        frame = frame.f_back
    return frame is not None
