"""Run functions in child processes, watch their progress, limit their memory: a crash costs a call.

A damaged file may crash or hang FFmpeg itself, which no `except` can catch. Workers are reused: a
call costs a few messages, and only a worker that died or was killed is started again.
"""

import contextlib
import inspect
import math
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from moclip_jax.input_pipeline.video import limits
from moclip_jax.input_pipeline.video.limits import VideoError

try:
    import resource
except ImportError:  # Not on Windows; `WorkerPool` says so where it is needed.
    resource = None  # type: ignore[assignment]

_T = TypeVar("_T")

# Bytes that reading a video may allocate; a few 4K frames and minutes of motion need far less.
MAX_READER_MEMORY = 4 * 2**30
# Seconds without a packet, a frame or a result after which a reader is killed.
STALL_S = 60.0
# A new worker imports the function's modules before the time of a call begins to count.
_START_TIMEOUT_S = 120.0
# A worker ends itself this much later than the parent would: it matters only if the parent died.
_ORPHAN_GRACE_S = 10.0
# Linux: the process's own size, in pages.
_PROCESS_SIZE = "/proc/self/statm"
_set_alarm = getattr(signal, "alarm", lambda seconds: None)  # Not on Windows.
# What a worker sends when it has imported the function, between two frames, and in the end.
_LOADED, _PROGRESS, _ENDED = b"loaded", b"progress", b"ended"


class WorkerError(RuntimeError):
    """A call without a result: its worker died, or was killed at the timeout.

    Attributes:
      reason: A phrase to follow a name, such as 'crashed (signal 11: Segmentation fault)'.
      timed_out: Whether the call timed out.
      started: Whether the function had started; if not, it is not to blame.
    """

    def __init__(self, reason: str, timed_out: bool = False, started: bool = True):
        self.reason = reason
        self.timed_out = timed_out
        self.started = started
        super().__init__(reason)

    def __reduce__(self):
        return type(self), (self.reason, self.timed_out, self.started)


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Start processes in this context that never receive Ctrl-C (they inherit the signal mask).

    A terminal sends Ctrl-C to the whole process group, but only the parent should answer. A handler
    in the worker would come too late: a worker needs a moment to start, and each would print a
    traceback. Does nothing where there are no signal masks (Windows).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # multiprocessing starts its resource tracker with the first process, and unblocks SIGINT then.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class WorkerPool:
    """Child processes for `run_isolated`, started when first needed and reused.

    A pool may be used from several threads; as many calls run at once as there are workers.
    Use it as a context manager, or call `close`.
    """

    def __init__(self, num_workers: int = 1, max_memory: int | None = None):
        """Make a pool; no process is started yet.

        Args:
          max_memory: Bytes that a worker may allocate beyond what it holds when it has started; an
            allocation beyond that raises MemoryError in the worker. None for no limit.

        Raises:
          ValueError: `num_workers` is below 1, or the system cannot limit memory.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, must be at least 1")
        if max_memory is not None and (resource is None or not os.path.exists(_PROCESS_SIZE)):
            raise ValueError("max_memory cannot be enforced on this system")
        self._max_memory = max_memory
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._in_use: set[_Worker] = set()
        self._killed = False
        self._lock = threading.Lock()
        self._num_workers = num_workers
        for _ in range(num_workers):
            self._idle.put(None)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, after the calls that are still running; the pool can be used again."""
        for _ in range(self._num_workers):
            worker = self._idle.get()
            if worker is not None:
                worker.stop()
        for _ in range(self._num_workers):
            self._idle.put(None)
        self._killed = False

    def kill(self) -> None:
        """Kill the running calls; they and later ones raise `WorkerError` until `close`."""
        with self._lock:
            self._killed = True
            for worker in self._in_use:
                worker.process.kill()

    @contextlib.contextmanager
    def _worker(self) -> Iterator["_Worker"]:
        """Reserve a live worker; one that failed during its call is stopped, not put back."""
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
                self._in_use.add(worker)
            yield worker
        except BaseException:
            # Also after Ctrl-C in the parent: the call's result may still be on its way.
            if worker is not None and worker.busy:
                with self._lock:
                    self._in_use.discard(worker)
                worker.stop()
                worker = None
            raise
        finally:
            if worker is not None:
                with self._lock:
                    self._in_use.discard(worker)
            self._idle.put(worker)


def run_isolated(
    pool: WorkerPool, function: Callable[..., _T], args: Sequence[Any], timeout: float
) -> _T:
    """Call `function(*args)` in a worker of the pool.

    Args:
      function: Must pickle, with its arguments, its result and its exceptions.
      args: Positional arguments.
      timeout: Seconds, above 0, that the call may take without progress: without a packet, a frame
        or a result. Starting a worker and importing the function's module do not count.

    Raises:
      WorkerError: The worker died (a native crash, or no memory) or was killed at the timeout.
      Exception: Whatever the function raised.
      ValueError: `timeout` is not above 0.
    """
    (result,) = iterate_isolated(pool, function, args, timeout)
    return result


def iterate_isolated(
    pool: WorkerPool, function: Callable[..., Any], args: Sequence[Any], timeout: float
) -> Iterator[Any]:
    """Yield what a generator function yields in a worker, which is one value ahead.

    Arguments and errors are those of `run_isolated`; another function gives its one result.
    """
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}, must be above 0")
    message = pickle.dumps((function, tuple(args), timeout))
    with pool._worker() as worker:
        yield from worker.call(message, timeout)


class SubprocessReader:
    """Calls functions of video files in child processes.

    It may be used from several threads; as many calls run at once as there are processes. Use it as
    a context manager, or call `close`.
    """

    def __init__(self, num_workers: int, timeout_s: float):
        """Make a reader; no process is started yet.

        Args:
          num_workers: Maximum number of processes.
          timeout_s: Seconds that a call may take without progress.
        """
        self.timeout_s = timeout_s
        self._pool = WorkerPool(num_workers, max_memory=MAX_READER_MEMORY)

    def __enter__(self) -> "SubprocessReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:  # Nobody waits any more for what is still running.
            self._pool.kill()
        self.close()

    def close(self) -> None:
        """Stop the processes, after the calls that are still running."""
        self._pool.close()

    def __call__(self, function: Callable[..., _T], path: str, *arguments: Any) -> _T:
        """Return `function(path, *arguments)`; of a generator function an iterator.

        Args:
          function: Must pickle, with its arguments and its result.
          path: A video file.
          *arguments: Further arguments.

        Raises:
          VideoError: As the function; or its process crashed, timed out, or ran out of memory.
        """
        values = self._values(function, path, *arguments)
        if inspect.isgeneratorfunction(function):
            return values  # type: ignore[return-value]
        (result,) = values
        return result

    def _values(self, function: Callable[..., Any], path: str, *arguments: Any) -> Iterator[Any]:
        try:
            yield from iterate_isolated(self._pool, function, (path, *arguments), self.timeout_s)
        except WorkerError as error:
            raise VideoError(path, f"reading it {error.reason}") from error
        except MemoryError as error:
            raise VideoError(path, "reading it takes too much memory") from error


class _Worker:
    """A child process that runs one call after another."""

    def __init__(self, max_memory: int | None):
        # Spawned, because a fork of a process that runs other threads can deadlock.
        context = multiprocessing.get_context("spawn")
        self._connection, child_connection = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(child_connection, max_memory), daemon=True
        )
        self.busy = False
        with block_sigint():
            self.process.start()
        # An open copy in the parent would hide the worker's death: the pipe would never end.
        child_connection.close()

    def call(self, message: bytes, timeout: float) -> Iterator[Any]:
        """Yield the values of a call; raise its exception."""
        self.busy, started = True, False
        while True:
            try:
                if message:
                    self._connection.send_bytes(message)
                    message = b""
                answer = self._receive(timeout if started else _START_TIMEOUT_S, started)
            except (EOFError, ConnectionError) as error:
                self.process.join(_ORPHAN_GRACE_S)
                cause = _cause_of_death(self.process.exitcode)
                raise WorkerError(cause, started=started) from error
            if answer in (_LOADED, _PROGRESS):
                started = True
                continue
            if answer == _ENDED:
                self.busy = False
                return
            succeeded, value = pickle.loads(answer)
            if not succeeded:
                self.busy = False
                raise value
            yield value

    def _receive(self, timeout: float, started: bool) -> bytes:
        if not self._connection.poll(timeout):
            reason = f"made no progress for {timeout:g} seconds"
            if not started:
                reason = f"did not start within {timeout:g} seconds"
            raise WorkerError(reason, timed_out=True, started=started)
        return self._connection.recv_bytes()

    def stop(self) -> None:
        self._connection.close()
        if self.busy:
            self.process.kill()
        self.process.join(_ORPHAN_GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, max_memory: int | None) -> None:
    """Run one call after another, until the parent closes the pipe."""
    # Ctrl-C goes to the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limited = False
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        answers = _Answers(connection)
        try:
            function, args, answers.timeout = pickle.loads(message)
            if max_memory is not None and not limited:
                # Counted from here, because the memory of imports is not the video's.
                _limit_memory(max_memory)
                limited = True
            answers.send(_LOADED)
            limits.report_progress = answers.report_progress
            result = function(*args)
            for value in result if inspect.isgenerator(result) else (result,):
                answers.send(pickle.dumps((True, value)))
            last = _ENDED
        except Exception as error:
            last = _dump_error(error)
        result = value = None  # Nothing is kept between two calls.
        answers.send(last)
        _set_alarm(0)


class _Answers:
    def __init__(self, connection: Connection):
        self._connection, self.timeout = connection, 0.0
        self._reported = time.monotonic()

    def send(self, message: bytes) -> None:
        """Send a message; the time that the parent takes to receive it does not count."""
        _set_alarm(0)
        try:
            self._connection.send_bytes(message)
        except ConnectionError:
            sys.exit()  # The parent is gone.
        self._reported = time.monotonic()
        # SIGALRM's default action ends the process, in native code too: no orphan stays.
        _set_alarm(math.ceil(self.timeout + _ORPHAN_GRACE_S))

    def report_progress(self) -> None:
        """Tell the parent that a call goes on, a few times within its timeout."""
        if time.monotonic() - self._reported > min(1.0, self.timeout / 4):
            self.send(_PROGRESS)


def _dump_error(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((False, error))
        # Some exceptions pickle, but cannot be unpickled.
        pickle.loads(answer)
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{error!r} cannot be sent back")))
    return answer


def _limit_memory(max_memory: int) -> None:
    with open(_PROCESS_SIZE) as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + max_memory, hard))


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        try:
            name = signal.strsignal(-exitcode)
        except ValueError:
            name = None
        return f"crashed (signal {-exitcode}: {name or 'unknown'})"
    return f"ended its process (exit status {exitcode})"
