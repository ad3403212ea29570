"""Files are replaced whole or not at all, and a folder is locked for one process at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moclip_jax.configs import testing
from moclip_jax.runtime.files import atomic_write, exclusive_lock, wait_for_lock
from moclip_jax.training import pipeline

REPOSITORY = Path(__file__).parents[2]
HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from moclip_jax.runtime.files import exclusive_lock\n"
    "with exclusive_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(600)\n"
)


def test_a_second_run_in_a_workdir_names_the_first_and_a_killed_one_leaves_it(tmp_path):
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


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path):
    path = tmp_path / "scores.npz"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".npz" and temporary.name.startswith(".")
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_process_waits_for_the_lock_and_says_so(tmp_path, capsys):
    path = tmp_path / "data.lock"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from moclip_jax.runtime.files import wait_for_lock\n"
        "with wait_for_lock(Path(sys.argv[1]), 'first'):\n"
        "    print('held', flush=True); time.sleep(1)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with wait_for_lock(path, "second"):
            assert holder.wait(timeout=60) == 0
    assert "second: another process holds the lock; waiting" in capsys.readouterr().out
