"""The manners of every command: help, near options, exit statuses, Ctrl-C."""

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moclip_jax.runtime import cli, signals
from moclip_jax.runtime.progress import Progress

REPOSITORY = Path(__file__).parents[2]
RECIPE_COMMANDS = (
    "moclip_jax.main",
    "moclip_jax.training.ablate",
    "moclip_jax.training.base_to_novel",
    "moclip_jax.training.few_shot",
    "moclip_jax.training.transfer",
    "moclip_jax.training.splits",
    "moclip_jax.pretrained.import_published",
)
OTHER_COMMANDS = (
    "moclip_jax.predict",
    "moclip_jax.visualize",
    "moclip_jax.reporting.report",
    "moclip_jax.app",
    "moclip_jax.serve",
    "moclip_jax.export",
    "benchmarks.draw_videos",
    "benchmarks.early_stop",
    "benchmarks.exports",
    "benchmarks.growth",
    "benchmarks.memory",
    "benchmarks.pipeline",
    "benchmarks.plan",
    "benchmarks.preparation",
    "benchmarks.starvation",
    "benchmarks.video",
    "benchmarks.full_size",
    "benchmarks.own_words",
    "benchmarks.run",
    "benchmarks.serve",
    "benchmarks.gpu_check",
)


def command(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
    )


def main_of(module: str) -> Callable[[list[str]], int]:
    """The function that a command's module, or package, runs."""
    found = importlib.import_module(module)
    return (found if hasattr(found, "main") else importlib.import_module(f"{module}.__main__")).main


def check_help(module: str, text: str) -> None:
    lines = text.splitlines()
    assert lines[0].startswith(f"usage: python -m {module} ")
    assert 10 <= len(lines) <= 40
    assert max(map(len, lines)) <= 96
    assert f"  python -m {module} " in text.partition("examples:")[2]
    assert "exit status: 0 success; 1 an error" in text


@pytest.mark.parametrize("module", RECIPE_COMMANDS)
def test_help_of_the_recipes_commands_fits_a_screen(module):
    done = command(module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    check_help(module, done.stdout)
    assert "--config.SECTION.FIELD" in done.stdout


@pytest.mark.parametrize("module", OTHER_COMMANDS)
def test_help_of_the_other_commands_fits_a_screen(module, capsys):
    with pytest.raises(SystemExit) as error:
        main_of(module)(["--help"])
    assert error.value.code == 0
    check_help(module, capsys.readouterr().out)


@pytest.mark.parametrize("module", OTHER_COMMANDS)
def test_an_option_that_does_not_exist_ends_with_status_2(module, capsys):
    with pytest.raises(SystemExit) as error:
        main_of(module)(["--hlp"])
    assert error.value.code == 2
    assert "error: unknown option --hlp; did you mean --help?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confg=x"], "unknown option --confg; did you mean --config?"),
        (["--confi.motion.dtype=x"], "did you mean --config.motion.dtype?"),
        (["--workdir=x"], "--config is missing; for example --config=configs/demo.py"),
        (["--config=configs/demo.py"], "--workdir is missing"),
        (
            ["--config=configs/dem.py"],
            "no such file; there are configs/demo.py, configs/demo_few.py, configs/demo_order.py",
        ),
        (["--config=README.md", "--workdir=x"], "cannot be run as a file of settings: SyntaxError"),
        (["--config=configs/demo.py", "--workdir=x", "more"], "unknown argument 'more'"),
        (["--config=configs/demo.py", "--config.motion.num_epochs=a"], "invalid literal for int"),
        (["--config=configs/demo.py", "--config.motin.x=1"], "there is no setting motin"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_sentence_and_status_2(
    arguments, message, tmp_path, monkeypatch
):
    done = command("moclip_jax.main", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("a wrong value; use another"), 1, "error: a wrong value; use another\n"),
        (
            OSError(28, "No space left on device", "/x"),
            1,
            "error: /x: no space left on device; make room, then start the same command again "
            "to resume\n",
        ),
        (signals.StoppedError(), 143, "stopped\n"),
        (RuntimeError("a worker died"), 1, "error: a worker died\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_a_user_can_cause_is_reported_in_a_sentence(error, status, said, capsys):
    def work() -> None:
        raise error

    assert cli.run(work) == status
    assert capsys.readouterr().err == said


def test_a_bug_is_not_reported_as_a_users_mistake_and_traceback_shows_where():
    def bug() -> None:
        raise AssertionError

    with pytest.raises(AssertionError):
        cli.run(bug)

    def mistake() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        cli.run(mistake, traceback=True)


@pytest.mark.parametrize(("hook_s", "missed"), [(0.0, 0), (0.5, 0), (0.0, 3)])
def test_ctrl_c_in_a_callback_that_swallows_it_still_stops(hook_s, missed, capsys, monkeypatch):
    """As in JAX's callback of the garbage collector, where Python only prints the exception.

    The hook that is told of it takes long on a busy machine, and a signal that comes just before a
    wait does not wake it.
    """
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handler, kill, sent = signal.getsignal(signal.SIGINT), signal.pthread_kill, []

    class SlowThread(threading.Thread):
        def start(self) -> None:
            super().start()
            time.sleep(hook_s)

    def miss(thread: int, number: int) -> None:
        sent.append(number)
        if len(sent) > missed:
            kill(thread, number)

    monkeypatch.setattr(threading, "Thread", SlowThread)
    monkeypatch.setattr(signal, "pthread_kill", miss)

    def interrupt_once(phase: str, info: dict) -> None:
        gc.callbacks.remove(interrupt_once)
        raise KeyboardInterrupt

    def work() -> None:
        gc.callbacks.append(interrupt_once)
        gc.collect()
        assert not threading.Event().wait(60)

    assert cli.run(work) == 130
    assert capsys.readouterr().err == "stopped\n"
    # Nothing comes afterwards, and the next Ctrl-C is an ordinary one.
    count = len(sent)
    time.sleep(0.1)
    assert len(sent) == count and signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_leaves_one_sentence_of_parent_and_workers(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "moclip_jax.main", "--config=configs/testing.py",
         f"--workdir={tmp_path}", "--config.dataset.num_workers=2", "--config.stages=prepare"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "prepare: start\n"
    time.sleep(0.5)
    # As a terminal does: to the workers, too.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "stopped; the same command resumes from here\n")


def test_a_reader_that_has_had_enough_ends_a_command_without_a_word():
    code = (
        "from moclip_jax.runtime import cli\n"
        "def work():\n"
        "    for number in range(100_000):\n"
        "        print(number)\n"
        "raise SystemExit(cli.run(work))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


class Screen:
    """Keeps what is printed, and says whether it is a terminal."""

    def __init__(self, terminal: bool):
        self.text, self._terminal = "", terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_written_again_on_a_terminal_only(terminal, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    screen = Screen(terminal)
    progress = Progress(4, "predict", "videos", file=screen)  # type: ignore[arg-type]
    for _ in range(3):
        progress.advance()
    progress.clear()
    assert "predict: 3/4 videos, 0.1 videos/s, 0:20 left" in screen.text
    assert ("\x1b" in screen.text, "\n" in screen.text) == (terminal, not terminal)
