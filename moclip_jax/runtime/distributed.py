"""Several processes as one run: joining, agreeing, waiting for one another, stopping and leaving.

A run of one process needs none of it, and every function here then does the plain thing. A run of
several is the same command on every host (docs/launching.md): process 0 hosts JAX's coordination
service, through whose table of keys and values they tell one another what is compared, done or
failed. No wait is without an end: a process that dies or stands still is noticed by the service's
heartbeats, and the others end with `STATUS_PEER_LOST`.

JAX is imported late: the command line imports this module.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from moclip_jax.runtime.versions import code_digests, package_versions

STATUS_PEER_LOST, STATUS_TERMINATED = 3, 143

# Seconds. Together they stay below a minute, the most that anybody waits for a run that cannot be.
_JOIN_TIMEOUT = 40
_HEARTBEAT_TIMEOUT = 30
_LEAVE_TIMEOUT = 10
_POLL_INTERVAL = 1.0

_PREFIX = "moclip_jax"
_MOST_DIFFERENCES = 8


class StoppedError(SystemExit):
    """SIGTERM arrived; what had to be saved is saved. Uncaught, it ends with status 143."""

    def __init__(self) -> None:
        super().__init__(STATUS_TERMINATED)


class PeerLostError(RuntimeError):
    """Another process of the run ended or cannot be reached, so this one cannot go on."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process joins the others, as the flags of the same names say.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: of the run.
      process_id: of this one, from 0.
      distributed: how a cluster is asked for all that: 'auto', or JAX's name for it, such as
        'slurm'; empty for a run of one process, or one that the other flags describe.
    """

    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    distributed: str = ""

    def __post_init__(self):
        given = [bool(self.coordinator), self.num_processes > 0, self.process_id >= 0]
        if self.distributed:
            if any(given):
                raise ValueError(
                    "--distributed asks the cluster; leave out --coordinator, --num_processes and "
                    "--process_id"
                )
        elif any(given) and not all(given):
            raise ValueError(
                "--coordinator, --num_processes and --process_id go together; or --distributed=auto"
            )
        if all(given) and self.process_id >= self.num_processes:
            raise ValueError(
                f"--process_id={self.process_id} is not below --num_processes="
                f"{self.num_processes}; ids count from 0"
            )
        port = self.coordinator.rpartition(":")[2]
        if self.coordinator and not (port.isdecimal() and ":" in self.coordinator):
            raise ValueError(f"--coordinator={self.coordinator} must be HOST:PORT")

    @property
    def is_one_process(self) -> bool:
        """Whether there is nobody to join."""
        return not self.coordinator and not self.distributed


class _Run:
    """What this process knows of the run of several that it is part of."""

    def __init__(self) -> None:
        self.client: Any = None
        self.process_id, self.num_processes = 0, 1
        self.rounds = itertools.count()
        self.leaving = threading.Event()
        # The sentence and status for the case that JAX's own threads abort the process.
        self.if_aborted = (b"", STATUS_PEER_LOST)
        self.abort_handler: Any = None


_run = _Run()


def is_main_process() -> bool:
    """Tells whether this is the process that writes and speaks: 0, or the only one."""
    return _run.process_id == 0


def join(launch: Launch) -> None:
    """Joins the other processes; returns when all are there.

    Raises:
      ConnectionError: the coordinator cannot be reached.
      ValueError: no such cluster is found around this process.

    Where JAX itself ends the process (the others do not come, an id is taken twice), the last line
    on standard error says so and the status is 1.
    """
    if launch.is_one_process:
        return
    import jax

    # It would take SIGTERM for itself; what we do with it stands in `on_sigterm`.
    jax.config.update("jax_enable_preemption_service", False)
    where = launch.coordinator or f"that --distributed={launch.distributed} found"
    number = f"process {launch.process_id}" if launch.process_id >= 0 else "this process"
    of = f" of {launch.num_processes}" if launch.num_processes else ""
    _say_if_aborted(
        f"{number}{of} could not join the run through the coordinator {where} within "
        f"{_JOIN_TIMEOUT} s: start as many processes as --num_processes says, each with a "
        "--process_id of its own, and let hosts reach that port",
        status=1,
    )
    began = time.monotonic()
    if launch.coordinator and launch.process_id:
        _wait_for_coordinator(launch.coordinator)
    seconds = max(round(_JOIN_TIMEOUT - (time.monotonic() - began)), 5)
    timeouts: dict[str, Any] = {
        "initialization_timeout": seconds,
        "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT,
        "shutdown_timeout_seconds": _LEAVE_TIMEOUT,
    }
    if launch.coordinator:
        jax.distributed.initialize(
            launch.coordinator,
            launch.num_processes,
            launch.process_id,
            cluster_detection_method="deactivate",
            **timeouts,
        )
    else:
        method = None if launch.distributed == "auto" else launch.distributed
        try:
            jax.distributed.initialize(cluster_detection_method=method, **timeouts)
        except ValueError as error:
            raise ValueError(
                f"--distributed={launch.distributed}: this process is not part of a cluster that "
                f"JAX knows ({error}); use --coordinator, --num_processes and --process_id"
            ) from error
    from jax._src.distributed import global_state

    _run.client = global_state.client
    _run.process_id, _run.num_processes = global_state.process_id, global_state.num_processes
    from moclip_jax.runtime import progress

    progress.set_silent(not is_main_process())
    _say_if_aborted(
        f"process {_run.process_id} lost the others: one of them, or its host, died or stands "
        "still; look at what it said last, then start the same command again on every host",
        status=STATUS_PEER_LOST,
    )
    threading.Thread(target=_watch, daemon=True).start()


def compare(**about: Any) -> None:
    """Makes sure that all processes run the same code with the same configuration.

    Args:
      **about: what else must be the same, as nested JSON values, such as `config`.

    Raises:
      ValueError: on every process, if anything differs; the message names it and the process.
    """
    if _run.client is None:
        return
    from flax.traverse_util import flatten_dict

    mine = {
        "num_processes": _run.num_processes,
        "package": package_versions(),
        "code": code_digests(),
        **json.loads(json.dumps(about)),
    }
    own = flatten_dict(mine, sep=".")
    _set(f"about/{_run.process_id}", {"host": socket.gethostname(), "about": own})
    problems = []
    for other in range(_run.num_processes):
        if other == _run.process_id:
            continue
        theirs = _get(f"about/{other}", _JOIN_TIMEOUT)
        if theirs is None:
            problems.append(f"process {other} does not say what it runs")
            break
        told = theirs["about"]
        names = sorted(k for k in own.keys() | told.keys() if own.get(k) != told.get(k))
        problems += [
            f"{name}: {own.get(name, '(none)')!r} here, {told.get(name, '(none)')!r} on process "
            f"{other} ({theirs['host']})"
            for name in names
        ]
        if "num_processes" in names:
            # Those that only one of them counts on need not exist.
            break
    if problems:
        # Everybody must have read what everybody runs before the first one leaves.
        time.sleep(2 * _POLL_INTERVAL)
        shown = "".join(f"\n  {problem}" for problem in problems[:_MOST_DIFFERENCES])
        more = len(problems) - _MOST_DIFFERENCES
        raise ValueError(
            "the processes of this run do not run the same:"
            + shown
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nUse one version of the code, one command and one config on every host."
        )


def run_on_main_first(work: Callable[[], Any]) -> Any:
    """Calls `work` on process 0, and on the others when it has ended there.

    Work that makes something unless it is there is then done once. The others wait however long it
    takes, as long as process 0 is alive; if it fails they end too.
    """
    if _run.client is None:
        return work()
    key = f"done/{next(_run.rounds)}"
    if is_main_process():
        result = work()
        _set(key, True)
        return result
    while _get(key, 5.0) is None:
        pass
    return work()


def run_on_main(work: Callable[[], Any]) -> Any:
    """Calls `work` on process 0 alone, and returns there and on the others what it returned.

    Args:
      work: returns something that survives JSON.
    """
    if _run.client is None:
        return work()
    key = f"done/{next(_run.rounds)}"
    if is_main_process():
        result = work()
        _set(key, {"result": result})
        return result
    while (told := _get(key, 5.0)) is None:
        pass
    return told["result"]


def broadcast_from_main(tree: Any, like: Any) -> Any:
    """Returns process 0's tree of arrays, as numpy arrays, on every process.

    Args:
      tree: the tree; only that of process 0 matters.
      like: tree of its structure, shapes and dtypes.
    """
    if _run.client is None:
        return tree
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if not is_main_process():
        tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def check_shared(folder: Path) -> None:
    """Makes sure that all processes see the same folder.

    Raises:
      ValueError: a process does not see what process 0 wrote there.
    """
    if _run.client is None:
        return
    path = folder / ".seen_by_all"
    token = run_on_main(lambda: _write_token(path))
    deadline = time.monotonic() + _JOIN_TIMEOUT / 2
    # Network file systems may take a moment to show a new file.
    while not (path.exists() and path.read_text() == token):
        if time.monotonic() > deadline:
            raise ValueError(
                f"{folder} on process {_run.process_id} ({socket.gethostname()}) is not the folder "
                "that process 0 sees; --workdir must be shared by all hosts"
            )
        time.sleep(_POLL_INTERVAL)
    _set(f"saw/{_run.process_id}", True)
    if is_main_process():
        for other in range(1, _run.num_processes):
            # One that does not see it ends, and us with it.
            while _get(f"saw/{other}", 5.0) is None:
                pass
        path.unlink()


def _write_token(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    token = os.urandom(8).hex()
    path.write_text(token)
    return token


# ---- SIGTERM


class _Sigterm:
    asked = False
    deferred = False


def on_sigterm() -> None:
    """From now on SIGTERM raises `StoppedError`: at once or, inside `steps`, after a step."""

    def handle(signum: int, frame: Any) -> None:
        _Sigterm.asked = True
        if not _Sigterm.deferred:
            raise StoppedError

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)


@contextlib.contextmanager
def steps() -> Iterator[None]:
    """Inside it SIGTERM is only noted: the training loop asks for it between two steps."""
    stop_if_requested()
    _Sigterm.deferred = True
    try:
        yield
    finally:
        _Sigterm.deferred = False


def stop_if_requested() -> None:
    """Raises `StoppedError` if SIGTERM arrived while it was only noted."""
    if _Sigterm.asked:
        raise StoppedError


def stop_requested() -> bool:
    """Tells whether this very process got SIGTERM."""
    return _Sigterm.asked


# ---- leaving


def leave(status: int, sentence: str = "") -> None:
    """Ends this process's part of the run.

    After success it waits for the others; after a failure it tells them, so that they end as well,
    and ends the process with `status`. Does nothing in a run of one process.
    """
    if _run.client is None:
        return
    _run.leaving.set()
    if status == 0:
        import jax

        # Process 0 may still be writing while the others are done, so this is no short wait; a
        # process that dies meanwhile is noticed all the same.
        _run.client.wait_at_barrier(f"{_PREFIX}/end", 24 * 3600 * 1000)
        jax.distributed.shutdown()
        _run.client = None
        return
    with contextlib.suppress(Exception):
        _set(f"ended/{_run.process_id}", {"status": status, "sentence": sentence})
        _wait_until_others_know()
    _exit(status)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Says whether an error only shows that another process is gone; None if it is our own.

    Returns:
      The status to end with and a sentence.
    """
    if _run.client is None or not isinstance(error, RuntimeError):
        return None
    if isinstance(error, PeerLostError):
        return STATUS_PEER_LOST, str(error)
    import jax

    text = str(error)
    signs = (
        "Gloo",
        "gloo",
        "NCCL",
        "closed by peer",
        "reset by peer",
        "UNAVAILABLE",
        "oordination",
    )
    if not isinstance(error, jax.errors.JaxRuntimeError) or not any(s in text for s in signs):
        return None
    deadline = time.monotonic() + _LEAVE_TIMEOUT
    while time.monotonic() < deadline:
        ended = _ended()
        if ended:
            return _because(ended)
        time.sleep(_POLL_INTERVAL)
    return (
        STATUS_PEER_LOST,
        f"process {_run.process_id} lost another one while they exchanged data "
        f"({text.splitlines()[0]}); start the same command again on every host",
    )


def _because(ended: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    other, how = ended
    # A run that was told to stop has stopped, whoever was told.
    status = how["status"] if how["status"] in (130, STATUS_TERMINATED) else STATUS_PEER_LOST
    return status, f"process {_run.process_id} ends because process {other} did: {how['sentence']}"


def _watch() -> None:
    """Ends this process when another one has said that it failed and we are still waiting."""
    while not _run.leaving.wait(_POLL_INTERVAL):
        ended = _ended()
        if not ended:
            continue
        # Our main thread may be about to end by itself, for the same reason.
        if _run.leaving.wait(5 * _POLL_INTERVAL):
            return
        status, sentence = _because(ended)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            _set(f"ended/{_run.process_id}", {"status": status, "sentence": sentence})
            _wait_until_others_know()
        _exit(status)


def _ended() -> tuple[int, dict[str, Any]] | None:
    try:
        entries = _run.client.key_value_dir_get(f"{_PREFIX}/ended/")
    except Exception:
        # The service is gone, or about to end us itself.
        return None
    others = {int(key.rpartition("/")[2]): json.loads(value) for key, value in entries}
    others.pop(_run.process_id, None)
    return min(others.items()) if others else None


def _wait_until_others_know() -> None:
    """The service lives in process 0, so that one leaves last, but does not wait for long."""
    if not is_main_process():
        return
    deadline = time.monotonic() + _LEAVE_TIMEOUT
    while time.monotonic() < deadline:
        if len(_run.client.key_value_dir_get(f"{_PREFIX}/ended/")) == _run.num_processes:
            return
        time.sleep(_POLL_INTERVAL / 4)


def _exit(status: int) -> NoReturn:
    # Without JAX's own farewell, which waits for processes that may not come.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say_if_aborted(sentence: str, status: int) -> None:
    """Says what to print, and the status to end with, where JAX's own threads abort the process.

    Its client of the coordination service calls `abort` when another process is lost and leaves no
    choice to Python, so SIGABRT is caught below Python.
    """
    _run.if_aborted = (f"error: {sentence}\n".encode(), status)
    if _run.abort_handler is not None:
        return

    def handle(signum: int) -> None:
        text, status = _run.if_aborted
        os.write(2, text)
        os._exit(status)

    _run.abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_run.abort_handler, ctypes.c_void_p))


def _wait_for_coordinator(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _JOIN_TIMEOUT - 5
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"the coordinator {address} cannot be reached ({error}); start process 0 on "
                    "that host, and let the others reach that port"
                ) from error
        time.sleep(_POLL_INTERVAL)


def _set(key: str, value: Any) -> None:
    _run.client.key_value_set(f"{_PREFIX}/{key}", json.dumps(value), allow_overwrite=True)


def _get(key: str, seconds: float) -> Any:
    """Returns the value of a key, waiting for it; None if it does not come."""
    import jax

    try:
        return json.loads(
            _run.client.blocking_key_value_get(f"{_PREFIX}/{key}", round(1000 * seconds))
        )
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
            return None
        raise
