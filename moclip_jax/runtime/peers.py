"""End all processes of a run together: report an error to the others, and notice theirs."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from moclip_jax.runtime.distributed import POLL_INTERVAL, is_main_process, store
from moclip_jax.runtime.signals import STATUS_TERMINATED

STATUS_PEER_LOST = 3
_STATUS_INTERRUPTED = 130

# Seconds to wait for the other processes after an error.
_LEAVE_TIMEOUT = 10
# Milliseconds to wait for them after success: the main process may still be writing.
_LONGEST_RUN = 24 * 3600 * 1000

_CONNECTION_ERRORS = (
    "Gloo",
    "gloo",
    "NCCL",
    "closed by peer",
    "reset by peer",
    "UNAVAILABLE",
    "oordination",
)

_leaving = threading.Event()


def leave(status: int, message: str = "") -> None:
    """End this process's part of the run; do nothing in a run of one process.

    After success, wait for the other processes. After an error, report it, so that they end too,
    and end the process with `status`.
    """
    if store.client is None:
        return
    _leaving.set()
    if status:
        _end(status, message)
    import jax

    store.client.wait_at_barrier("moclip_jax/end", _LONGEST_RUN)
    jax.distributed.shutdown()
    store.client = None


def explain(error: BaseException) -> tuple[int, str] | None:
    """Return exit status and message if an error only shows that another process ended.

    Returns:
      None for an error of this process, and always in a run of one process.
    """
    if store.client is None:
        return None
    import jax

    text = str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError) or not any(
        sign in text for sign in _CONNECTION_ERRORS
    ):
        return None
    deadline = time.monotonic() + _LEAVE_TIMEOUT
    while time.monotonic() < deadline:
        if reason := _reason_to_end():
            return reason
        time.sleep(POLL_INTERVAL)
    return (
        STATUS_PEER_LOST,
        f"process {store.process_id} lost another one while they exchanged data "
        f"({text.splitlines()[0]}); start the same command again on every host",
    )


def watch() -> None:
    """End this process when another one reports an error; run in a thread of its own."""
    while not _leaving.wait(POLL_INTERVAL):
        reason = _reason_to_end()
        # The main thread may be about to end by itself, for the same reason.
        if reason and not _leaving.wait(5 * POLL_INTERVAL):
            status, message = reason
            message = f"error: {message}"
            print(message, file=sys.stderr, flush=True)
            _end(status, message)


def _reason_to_end() -> tuple[int, str] | None:
    """Return exit status and message if another process has reported an error."""
    try:
        ended = store.by_process("ended")
    except Exception:
        # The service is gone, or is about to end this process itself.
        return None
    ended.pop(store.process_id, None)
    if not ended:
        return None
    other = min(ended)
    status = ended[other]["status"]
    # A run that was signalled to stop has stopped, whichever process got the signal.
    if status not in (_STATUS_INTERRUPTED, STATUS_TERMINATED):
        status = STATUS_PEER_LOST
    return (
        status,
        f"process {store.process_id} ends because process {other} did: {ended[other]['message']}",
    )


def _end(status: int, message: str) -> NoReturn:
    with contextlib.suppress(Exception):
        store.set(f"ended/{store.process_id}", {"status": status, "message": message})
        _wait_for_others()
    # Python's own exit would let JAX wait for processes that may never answer.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait_for_others() -> None:
    """Let the main process, which hosts the service, end last; but wait only for a short time."""
    if not is_main_process():
        return
    deadline = time.monotonic() + _LEAVE_TIMEOUT
    while time.monotonic() < deadline:
        if len(store.by_process("ended")) == store.num_processes:
            return
        time.sleep(POLL_INTERVAL / 4)


class _Abort:
    message = b""
    status = STATUS_PEER_LOST
    handler: Any = None


def explain_abort(message: str, status: int) -> None:
    """Set the message and the exit status for the case that JAX's own threads abort the process.

    JAX's client of the coordination service calls `abort` when another process is lost, without
    asking Python, so SIGABRT is caught with the C library.
    """
    _Abort.message, _Abort.status = f"error: {message}\n".encode(), status
    if _Abort.handler is not None:
        return

    def handle(signum: int) -> None:
        os.write(2, _Abort.message)
        os._exit(_Abort.status)

    _Abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_Abort.handler, ctypes.c_void_p))
