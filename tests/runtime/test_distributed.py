"""Several processes as one run: joining, comparing, stopping."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moclip_jax.runtime import distributed, peers, signals, versions
from moclip_jax.runtime.launch import Launch, join
from moclip_jax.runtime.signals import StoppedError
from tests.xla_flags import xla_flags

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(code: str, *arguments: str) -> subprocess.Popen:
    """Starts Python code as a process of its own, as a command's main module would run it."""
    imports = "from moclip_jax.runtime import cli, distributed, launch, peers"
    return subprocess.Popen(
        [sys.executable, "-c", f"{imports}\n{code}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": xla_flags(devices=2)},
    )  # fmt: skip


def ended(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"coordinator": "a:1"}, "--coordinator, --num_processes and --process_id go together"),
        ({"num_processes": 2, "process_id": 0}, "go together; or --distributed=auto"),
        ({"distributed": "auto", "process_id": 0}, "--distributed reads them from the cluster"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 is not below --num_processes=2; ids count from 0",
        ),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "=a must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together_are_reported(launch, message):
    with pytest.raises(ValueError) as error:
        Launch(**launch)
    assert message in str(error.value)


def test_flags_of_launching_are_checked_on_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "moclip_jax.main", "--config=configs/demo.py", "--workdir=x",
         "--num_processes=2"],
        capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--coordinator, --num_processes and --process_id go together" in done.stderr


def test_an_absent_coordinator_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", 6)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"the coordinator localhost:\d+ cannot be reached"):
        join(Launch(f"localhost:{free_port()}", 2, 1))
    assert time.monotonic() - began < 30


def test_outside_a_cluster_auto_is_an_error_that_says_what_to_use_instead():
    status, err = ended(
        start("raise SystemExit(cli.run(lambda: launch.join(launch.Launch(distributed='auto'))))")
    )
    assert status == 1
    assert "--distributed=auto: this process is not part of a cluster that JAX knows" in err
    assert "Traceback" not in err


COMPARE = """
import sys
port, number, rate, of = sys.argv[1:]
def work():
    launch.join(launch.Launch(f"localhost:{port}", int(of), int(number)))
    distributed.compare(config={"motion": {"learning_rate": float(rate)}})
    assert distributed.run_on_main(lambda: [1, "two"]) == [1, "two"]
raise SystemExit(cli.run(work, ended=peers.leave))
"""


def test_processes_that_agree_run_and_those_with_another_config_are_reported_on_every_host():
    port = str(free_port())
    pair = [start(COMPARE, port, str(number), "0.1", "2") for number in range(2)]
    assert [ended(process)[0] for process in pair] == [0, 0]

    port = str(free_port())
    pair = [start(COMPARE, port, str(number), f"0.{number + 1}", "2") for number in range(2)]
    for number, process in enumerate(pair):
        status, err = ended(process)
        assert status == 1, err
        assert "the processes of this run differ:" in err
        assert (
            f"config.motion.learning_rate: 0.{number + 1} here, 0.{2 - number} on process "
            f"{1 - number} (" in err
        )
        assert "code." not in err


@pytest.mark.slow
def test_another_number_of_processes_on_one_host_is_reported_on_every_host():
    port = str(free_port())
    pair = [start(COMPARE, port, str(number), "0.1", str(number + 2)) for number in range(2)]
    for number, process in enumerate(pair):
        status, err = ended(process)
        assert status == 1, err
        assert f"num_processes: {number + 2} here, {3 - number} on process {1 - number}" in err


@pytest.mark.slow
def test_a_process_that_does_not_come_ends_the_others_within_a_minute():
    began = time.monotonic()
    status, err = ended(start(COMPARE, str(free_port()), "0", "0.1", "2"))
    assert status == 1
    assert "process 0 of 2 could not join the run through the coordinator" in err.splitlines()[-1]
    assert time.monotonic() - began < 70


SHARED = """
import sys
from pathlib import Path
port, number, folder = sys.argv[1:]
def work():
    launch.join(launch.Launch(f"localhost:{port}", 2, int(number)))
    distributed.check_shared(Path(folder))
raise SystemExit(cli.run(work, ended=peers.leave))
"""


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_reported_and_a_shared_one_is_left_clean(tmp_path):
    for folders, expected in (("same", "same"), [0, 0]), (("one", "other"), [3, 1]):
        port = str(free_port())
        pair = [start(SHARED, port, str(i), str(tmp_path / folders[i])) for i in range(2)]
        results = [ended(process) for process in pair]
        assert [status for status, _ in results] == expected, results
    assert "is not the folder that process 0 sees; --workdir must be shared" in results[1][1]
    assert "process 0 ends because process 1 did: error: " in results[0][1]
    assert not list((tmp_path / "same").iterdir())


LOST = """
import sys, time
port, number, how = sys.argv[1:]
def work():
    launch.join(launch.Launch(f"localhost:{port}", 2, int(number)))
    import os, signal, jax, numpy as np
    from jax.experimental import multihost_utils
    for step in range(600):
        multihost_utils.process_allgather(np.ones(3))
        if step == 3 and how.startswith(number):
            if how.endswith("error"):
                raise OSError(28, "No space left on device", "/full/disk")
            os.kill(os.getpid(), getattr(signal, how[1:]))
        time.sleep(0.1)
raise SystemExit(cli.run(work, ended=peers.leave))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP", "error"])
def test_when_a_process_is_lost_the_other_ends_within_a_minute_with_a_sentence(lost, how):
    port = str(free_port())
    pair = [start(LOST, port, str(number), f"{lost}{how}") for number in range(2)]
    other = 1 - lost
    began = time.monotonic()
    try:
        status, err = ended(pair[other], timeout=100)
    finally:
        pair[lost].kill()
    assert time.monotonic() - began < 75
    assert status == peers.STATUS_PEER_LOST, err
    last = err.splitlines()[-1]
    if how == "error":
        assert f"process {other} ends because process {lost} did: error: /full/disk" in last
    else:
        assert f"process {other} lost" in last
        assert (
            "lost contact with the others: one of them" in last or "lost another one while" in last
        )
    ended(pair[lost])


def test_sigterm_raises_at_once_but_inside_steps_only_when_polled():
    before = signal.getsignal(signal.SIGTERM)
    try:
        signals.handle_sigterm()
        with pytest.raises(StoppedError):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        signals._Sigterm.received = False
        with signals.deferred_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert signals.stop_requested()
        with pytest.raises(StoppedError) as error:
            signals.stop_if_requested()
        assert error.value.code == signals.STATUS_TERMINATED == 143
    finally:
        signals._Sigterm.received = False
        signal.signal(signal.SIGTERM, before)


def test_the_digest_of_the_code_names_every_file_of_the_packages():
    digests = versions.code_digests()
    assert {
        "moclip_jax/training/trainer.py",
        "input_pipeline/datasets/prepared.py",
        "configs/demo.py",
    } <= set(digests)
    assert len(set(digests.values())) == len(digests)
