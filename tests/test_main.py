"""The command line of training: mistakes are explained, and a killed run is finished.

A run that is killed in training: tests/test_install.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def _command(workdir: Path, *arguments: str) -> list[str | Path]:
    config = REPOSITORY / "configs" / "testing.py"
    return [
        sys.executable, "-m", "moclip_jax.main", f"--config={config}", f"--workdir={workdir}",
        *arguments,
    ]  # fmt: skip


def test_an_unknown_field_is_an_error_that_names_it(tmp_path):
    run = subprocess.run(
        _command(tmp_path / "run", "--config.motion.learning_rat=0.1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert 'Did you mean "learning_rate" instead of "learning_rat"?' in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


def test_a_contradiction_is_a_sentence_without_a_traceback(tmp_path):
    run = subprocess.run(
        _command(tmp_path / "run", "--config.evaluation.crops=7"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert "config.evaluation.crops=7 must be 1 or 10" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


def run_until(command: list[str | Path], line: str, delay: float, cwd: Path) -> int:
    """Starts a run, kills it `delay` seconds after it prints `line`; returns its status."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
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


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(tmp_path, finished_run):
    for stage in ("prepare", "motion", "features", "fusion", "evaluate", "export"):
        assert run_until(_command(tmp_path), f"{stage}: start", 0.5, tmp_path) == -signal.SIGKILL
    run = subprocess.run(_command(tmp_path), capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    expected = json.loads((finished_run / "results.json").read_text())
    assert json.loads((tmp_path / "results.json").read_text()) == expected
