"""Two runs in one folder are kept apart, and a lock that was left behind is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from moclip_jax.configs import testing

from moclip_jax.runtime.files import exclusive_lock
from moclip_jax.training import pipeline

REPOSITORY = Path(__file__).parents[2]
HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from moclip_jax.runtime.files import exclusive_lock\n"
    "with exclusive_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(600)\n"
)


def test_a_second_run_in_a_workdir_is_told_who_works_there_and_a_killed_one_leaves_it(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError) as error:
            pipeline.run(testing.get_config(), tmp_path)
        assert f"another run works in {tmp_path} (process {holder.pid} on " in str(error.value)
        assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with exclusive_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
