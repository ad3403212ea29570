"""Run a function in a child process with a time limit, so that a native crash costs one call.

A damaged file may crash or hang FFmpeg itself, which no `except` can catch. Workers are reused: a
call costs two messages, and only a worker that died or was stopped is started anew.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from moclip_jax.input_pipeline.video.interrupts import block_sigint

try:
    import resource
except ImportError:  # Not on Windows; `WorkerPool` says so where it is needed.
    resource = None  # type: ignore[assignment]

_T = TypeVar("_T")

# A new worker imports the function's modules before the time of a call begins to count.
_START_SECONDS = 120.0
# The child ends itself so much later than the parent would have: it matters only if there is none.
_ORPHAN_SECONDS = 10.0
# Linux: the process's own size, in pages.
_MEMORY = "/proc/self/statm"
# What a worker says when it has imported the function.
_LOADED = b"loaded"


class WorkerError(RuntimeError):
    """A call that gave no result: its worker died, or was stopped at the time limit.

    Attributes:
      reason: A phrase to follow a name, such as 'crashed (signal 11: Segmentation fault)'.
      timed_out: Whether it was the time limit.
      started: Whether the function had begun; if not, it is not to blame.
    """

    def __init__(self, reason: str, timed_out: bool = False, started: bool = True):
        self.reason = reason
        self.timed_out = timed_out
        self.started = started
        super().__init__(reason)

    def __reduce__(self):
        return type(self), (self.reason, self.timed_out, self.started)


class WorkerPool:
    """Child processes for `run_isolated`, started when first needed and used again.

    A pool may be used from several threads; as many calls run at once as there are workers.
    Use it as a context manager, or call `close`.
    """

    def __init__(self, num_workers: int = 1, max_memory: int | None = None):
        """Make a pool; no process is started yet.

        Args:
          num_workers: Processes at most.
          max_memory: Bytes that a worker may allocate beyond what it holds when it has started; an
            allocation beyond that fails in the worker. None for no limit.

        Raises:
          ValueError: `num_workers` is below 1, or the system cannot limit memory.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, least is 1")
        if max_memory is not None and (resource is None or not os.path.exists(_MEMORY)):
            raise ValueError("max_memory cannot be enforced on this system")
        self._max_memory = max_memory
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._lent: set[_Worker] = set()
        self._killed = False
        self._lock = threading.Lock()
        self._num_workers = num_workers
        for _ in range(num_workers):
            self._idle.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Stop the workers; waits for calls that are still running."""
        for _ in range(self._num_workers):
            worker = self._idle.get()
            if worker is not None:
                worker.stop()
        for _ in range(self._num_workers):
            self._idle.put(None)
        self._killed = False

    def kill(self) -> None:
        """End the calls that are running; they and later ones raise `WorkerError` until `close`."""
        with self._lock:
            self._killed = True
            for worker in self._lent:
                worker.process.kill()

    @contextlib.contextmanager
    def _worker(self):
        """Lend a living worker; one that is not alive afterwards is not taken back."""
        worker = self._idle.get()
        try:
            if worker is not None and not worker.process.is_alive():
                worker.stop()
                worker = None
            if worker is None:
                worker = _Worker(self._max_memory)
            with self._lock:
                if self._killed:
                    raise WorkerError("was not called: the pool is being closed", started=False)
                self._lent.add(worker)
            yield worker
        except BaseException:
            # Whatever it was (also Ctrl-C in the parent), a result may still be on its way.
            if worker is not None and worker.busy:
                with self._lock:
                    self._lent.discard(worker)
                worker.stop()
                worker = None
            raise
        finally:
            if worker is not None:
                with self._lock:
                    self._lent.discard(worker)
            self._idle.put(worker)


def run_isolated(
    pool: WorkerPool, function: Callable[..., _T], args: Sequence[Any], timeout: float
) -> _T:
    """Call `function(*args)` in a worker of the pool.

    Args:
      pool: Where to run it; waits until a worker is free.
      function: Must pickle, with its arguments, its result and its exceptions.
      args: Arguments by position.
      timeout: Seconds, above 0, that the call may take. Starting a worker and importing the
        function's module do not count.

    Returns:
      What the function returned.

    Raises:
      WorkerError: The worker died (a native crash, or no memory) or was stopped at the time limit.
      Exception: Whatever the function raised.
      ValueError: `timeout` is not above 0.
    """
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}, must be above 0")
    message = pickle.dumps((function, tuple(args), timeout))
    with pool._worker() as worker:
        succeeded, value = worker.call(message, timeout)
    if not succeeded:
        raise value
    return value


class _Worker:
    """A child process that runs one call after another."""

    def __init__(self, max_memory: int | None):
        # Spawned, because a fork of a process that runs other threads can hang.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, max_memory), daemon=True)
        self.busy = False
        with block_sigint():
            self.process.start()
        # Ours must not stay open, or the worker's death would not show as the end of the pipe.
        theirs.close()

    def call(self, message: bytes, timeout: float) -> tuple[bool, Any]:
        """Return (True, result) or (False, exception)."""
        self.busy, started = True, False
        try:
            self._connection.send_bytes(message)
            answer = self._receive(_START_SECONDS, started)
            if answer == _LOADED:
                started = True
                answer = self._receive(timeout, started)
        except (EOFError, ConnectionError) as error:
            self.process.join(_ORPHAN_SECONDS)
            raise WorkerError(_death(self.process.exitcode), started=started) from error
        self.busy = False
        return pickle.loads(answer)

    def _receive(self, timeout: float, started: bool) -> bytes:
        if not self._connection.poll(timeout):
            what = "gave no result" if started else "did not start"
            reason = f"{what} within {timeout:g} seconds"
            raise WorkerError(reason, timed_out=True, started=started)
        return self._connection.recv_bytes()

    def stop(self) -> None:
        self._connection.close()
        if self.busy:
            self.process.kill()
        self.process.join(_ORPHAN_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, max_memory: int | None) -> None:
    """Body of a worker: one call after another, until the parent closes the pipe."""
    # Ctrl-C goes to the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limited = False
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            function, args, timeout = pickle.loads(message)
            if max_memory is not None and not limited:
                # Counted from here, because the imports' own memory is no video's fault.
                _limit_memory(max_memory)
                limited = True
            connection.send_bytes(_LOADED)
            if hasattr(signal, "alarm"):
                # Its default action ends the process, in native code too: no orphan hangs on.
                signal.alarm(math.ceil(timeout + _ORPHAN_SECONDS))
            outcome: tuple[bool, Any] = True, function(*args)
        except Exception as error:
            outcome = False, error
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        try:
            answer = pickle.dumps(outcome)
            if not outcome[0]:
                # Some exceptions pickle, but cannot be made again from what was pickled.
                pickle.loads(answer)
        except Exception:
            answer = pickle.dumps((False, RuntimeError(f"{outcome[1]!r} cannot be sent back")))
        try:
            connection.send_bytes(answer)
        except ConnectionError:
            return


def _limit_memory(max_memory: int) -> None:
    with open(_MEMORY) as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + max_memory, hard))


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        try:
            name = signal.strsignal(-exitcode)
        except ValueError:
            name = None
        return f"crashed (signal {-exitcode}: {name or 'unknown'})"
    return f"ended its process (exit status {exitcode})"
