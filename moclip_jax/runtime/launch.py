"""Join the processes of a run, as the flags --coordinator, --num_processes ... describe it."""

import dataclasses
import socket
import threading
import time
from typing import Any

from moclip_jax.runtime import distributed, peers, progress

# Seconds. With the time to join, they stay below a minute: the longest wait for a run that fails.
_HEARTBEAT_TIMEOUT = 30
_SHUTDOWN_TIMEOUT = 10


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process joins the others.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: Number of processes in the run.
      process_id: Number of this process, from 0.
      distributed: Cluster that knows the three values above: 'auto', or JAX's name for it, such as
        'slurm'; empty for a run of one process, or one that the other fields describe.
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
                    "--distributed reads them from the cluster; leave out --coordinator, "
                    "--num_processes and --process_id"
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
        """Whether the run has this process only."""
        return not self.coordinator and not self.distributed


def join(launch: Launch) -> None:
    """Join the other processes, and return when all of them have joined.

    Where JAX itself ends the process (other processes are missing, an id is used twice), the last
    line on standard error explains it and the exit status is 1.

    Raises:
      ConnectionError: The coordinator cannot be reached.
      ValueError: This process is not part of a cluster of that kind.
    """
    if launch.is_one_process:
        return
    import jax

    # JAX would handle SIGTERM itself; `signals.handle_sigterm` does.
    jax.config.update("jax_enable_preemption_service", False)
    address = launch.coordinator or f"that --distributed={launch.distributed} found"
    number = f"process {launch.process_id}" if launch.process_id >= 0 else "this process"
    of = f" of {launch.num_processes}" if launch.num_processes else ""
    peers.explain_abort(
        f"{number}{of} could not join the run through the coordinator {address} within "
        f"{distributed.JOIN_TIMEOUT} s: start as many processes as --num_processes says, each with "
        "a --process_id of its own, and let hosts reach that port",
        status=1,
    )
    began = time.monotonic()
    if launch.coordinator and launch.process_id:
        _wait_for_coordinator(launch.coordinator)
    remaining = max(round(distributed.JOIN_TIMEOUT - (time.monotonic() - began)), 5)
    timeouts: dict[str, Any] = {
        "initialization_timeout": remaining,
        "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT,
        "shutdown_timeout_seconds": _SHUTDOWN_TIMEOUT,
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

    store = distributed.store
    store.client = global_state.client
    store.process_id, store.num_processes = global_state.process_id, global_state.num_processes
    progress.set_silent(not distributed.is_main_process())
    peers.explain_abort(
        f"process {store.process_id} lost contact with the others: one of them, or its host, "
        "crashed or hangs; read its last message, then start the same command again on every host",
        status=peers.STATUS_PEER_LOST,
    )
    threading.Thread(target=peers.watch, daemon=True).start()


def _wait_for_coordinator(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + distributed.JOIN_TIMEOUT - 5
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
        time.sleep(distributed.POLL_INTERVAL)
