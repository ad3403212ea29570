"""Let several processes work as one run: share values, compare settings, run on the main process.

In a run of one process every function here does the plain thing. In a run of several the processes
exchange JSON values through the key-value store of JAX's coordination service, which process 0
hosts. No wait is endless: the service notices a lost process, and the others then end (`peers`).

JAX and Flax are imported late, because the command line imports this module.
"""

import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moclip_jax.runtime.versions import code_digests, package_versions

# Seconds that a process waits for another one to start.
JOIN_TIMEOUT = 40
# Seconds between two looks at something that may change.
POLL_INTERVAL = 1.0
# Seconds of one request to the store, so that Ctrl-C and SIGTERM are handled in between.
_REQUEST_TIMEOUT = 5.0
_MAX_DIFFERENCES = 8


class KeyValueStore:
    """JSON values that all processes of the run can set and get.

    Attributes:
      client: JAX's client of the coordination service; None in a run of one process.
      process_id: Number of this process, from 0.
      num_processes: Number of processes in the run.
    """

    def __init__(self) -> None:
        self.client: Any = None
        self.process_id, self.num_processes = 0, 1
        self._rounds = itertools.count()

    def new_key(self) -> str:
        """Return a key that all processes agree on, as they call this equally often."""
        return f"round/{next(self._rounds)}"

    def set(self, key: str, value: Any) -> None:
        """Set the value of a key for all processes."""
        self.client.key_value_set(f"moclip_jax/{key}", json.dumps(value), allow_overwrite=True)

    def get(self, key: str, timeout: float) -> Any:
        """Return the value of a key, or None if no process sets it within `timeout` seconds."""
        import jax

        try:
            value = self.client.blocking_key_value_get(f"moclip_jax/{key}", round(1000 * timeout))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
                return None
            raise
        return json.loads(value)

    def wait(self, key: str) -> Any:
        """Return the value of a key, however long it takes the other process to set it."""
        while (value := self.get(key, _REQUEST_TIMEOUT)) is None:
            pass
        return value

    def by_process(self, folder: str) -> dict[int, Any]:
        """Return the values of the keys `folder/PROCESS_ID` that are set."""
        entries = self.client.key_value_dir_get(f"moclip_jax/{folder}/")
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in entries}


store = KeyValueStore()


def is_main_process() -> bool:
    """Return whether this process is the one that writes and logs: number 0, or the only one."""
    return store.process_id == 0


def run_on_main_first(work: Callable[[], Any]) -> Any:
    """Call `work` on the main process, then on the others, and return its result on each.

    This is for work that makes files unless they exist. The others wait as long as it takes; if it
    fails on the main process, they end too.
    """
    if store.client is None:
        return work()
    key = store.new_key()
    if not is_main_process():
        store.wait(key)
        return work()
    result = work()
    store.set(key, True)
    return result


def run_on_main(work: Callable[[], Any]) -> Any:
    """Call `work` on the main process alone, and return its result on every process.

    Args:
      work: A function whose result JSON can hold.
    """
    if store.client is None:
        return work()
    key = store.new_key()
    if not is_main_process():
        return store.wait(key)["result"]
    result = work()
    store.set(key, {"result": result})
    return result


def broadcast_from_main(tree: Any, like: Any) -> Any:
    """Return the main process's tree of arrays, as NumPy arrays, on every process.

    Args:
      tree: The tree; that of the other processes is ignored.
    """
    if store.client is None:
        return tree
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if not is_main_process():
        tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def compare(**settings: Any) -> None:
    """Check that all processes run the same code and packages with the same JSON settings.

    Raises:
      ValueError: Something differs. Raised on every process; the message names each difference.
    """
    if store.client is None:
        return
    from flax.traverse_util import flatten_dict

    own = {
        "num_processes": store.num_processes,
        "package": package_versions(),
        "code": code_digests(),
        **json.loads(json.dumps(settings)),
    }
    own = flatten_dict(own, sep=".")
    store.set(f"settings/{store.process_id}", {"host": socket.gethostname(), "settings": own})
    problems = []
    for other in range(store.num_processes):
        if other == store.process_id:
            continue
        answer = store.get(f"settings/{other}", JOIN_TIMEOUT)
        if answer is None:
            problems.append(f"process {other} does not say what it runs")
            break
        theirs = answer["settings"]
        names = sorted(k for k in own.keys() | theirs.keys() if own.get(k) != theirs.get(k))
        problems += [
            f"{name}: {own.get(name, '(none)')!r} here, {theirs.get(name, '(none)')!r} on process "
            f"{other} ({answer['host']})"
            for name in names
        ]
        if "num_processes" in names:
            # The processes that only one side counts need not exist.
            break
    if problems:
        # Every process must have read the settings of all before the first one ends.
        time.sleep(2 * POLL_INTERVAL)
        shown = "".join(f"\n  {problem}" for problem in problems[:_MAX_DIFFERENCES])
        more = len(problems) - _MAX_DIFFERENCES
        raise ValueError(
            "the processes of this run differ:"
            + shown
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nUse one version of the code, one command and one config on every host."
        )


def check_shared(folder: Path) -> None:
    """Check that all processes see the same folder.

    Raises:
      ValueError: This process does not see what the main process wrote there.
    """
    if store.client is None:
        return
    path = folder / ".seen_by_all"
    token = run_on_main(lambda: _write_token(path))
    deadline = time.monotonic() + JOIN_TIMEOUT / 2
    # Network file systems may take a moment to show a new file.
    while not (path.exists() and path.read_text() == token):
        if time.monotonic() > deadline:
            raise ValueError(
                f"{folder} on process {store.process_id} ({socket.gethostname()}) is not the "
                "folder that process 0 sees; --workdir must be shared by all hosts"
            )
        time.sleep(POLL_INTERVAL)
    store.set(f"saw/{store.process_id}", True)
    if is_main_process():
        for other in range(1, store.num_processes):
            # A process that does not see the folder ends, and this one with it.
            store.wait(f"saw/{other}")
        path.unlink()


def _write_token(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    token = os.urandom(8).hex()
    path.write_text(token)
    return token
