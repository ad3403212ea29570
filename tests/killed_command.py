"""Start a command and kill it in the middle of a run."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def kill_after(command: Sequence[str | Path], line: str, delay: float, cwd: Path) -> int:
    """Kill a command `delay` seconds after it prints `line`; returns its status."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        # Killed while it writes a compiled program, it would leave half of one to all tests.
        env=os.environ | {"PYTHONUNBUFFERED": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        start_new_session=True,
    )
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.startswith(line):
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    return process.wait(timeout=600)
