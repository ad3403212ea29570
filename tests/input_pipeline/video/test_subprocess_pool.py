"""A call in a child process: its result, its error, its crash and its timeout."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from moclip_jax.input_pipeline.video import limits
from moclip_jax.input_pipeline.video.clip import VideoError, VideoSpec, read_clip
from moclip_jax.input_pipeline.video.subprocess_pool import (
    SubprocessReader,
    WorkerError,
    WorkerPool,
    iterate_isolated,
    run_isolated,
)
from tests.input_pipeline.video_fixtures import drifting_frames, write_video


def double(value):
    return 2 * value


def own_process():
    return os.getpid()


def crash(number=signal.SIGSEGV):
    os.kill(os.getpid(), number)


def leave():
    os._exit(7)


def hang():
    time.sleep(600)


def allocate(size):
    return int(np.ones(size, np.uint8)[-1])


def work(seconds):
    """Take so long, and report progress."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        limits.report_progress()
        time.sleep(0.01)
    return "done"


def count(path, number, end):
    yield from range(number)
    if end == "error":
        raise VideoError(path, "ends here")
    if end == "crash":
        crash()
    if end == "hang":
        hang()


class Awkward(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def raise_awkward():
    raise Awkward(1, 2)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1) as pool:
        yield pool


def test_a_result_comes_back_and_the_worker_is_used_again(pool):
    assert run_isolated(pool, double, [21], 30) == 42
    process = run_isolated(pool, own_process, [], 30)
    assert process != os.getpid()
    assert run_isolated(pool, own_process, [], 30) == process


def test_an_error_of_the_function_comes_back_and_the_worker_lives(pool, tmp_path):
    process = run_isolated(pool, own_process, [], 30)
    with pytest.raises(VideoError, match=r"absent\.avi: no such file"):
        run_isolated(pool, read_clip, [tmp_path / "absent.avi", VideoSpec()], 30)
    with pytest.raises(RuntimeError, match="Awkward"):  # cannot be made again from its pickle
        run_isolated(pool, raise_awkward, [], 30)
    assert run_isolated(pool, own_process, [], 30) == process


def test_a_clip_read_in_a_worker_equals_one_read_here(pool, tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(9))
    spec = VideoSpec(width=64, height=48)
    there, here = run_isolated(pool, read_clip, [path, spec], 30), read_clip(path, spec)
    np.testing.assert_array_equal(there.displacements, here.displacements)
    assert there.frames == here.frames


def test_a_crash_costs_one_call(pool):
    with pytest.raises(WorkerError, match=r"crashed \(signal 11: Segmentation fault\)") as error:
        run_isolated(pool, crash, [], 30)
    assert not error.value.timed_out
    with pytest.raises(WorkerError, match="exit status 7"):
        run_isolated(pool, leave, [], 30)
    assert run_isolated(pool, double, [1], 30) == 2


def test_a_worker_that_was_killed_between_two_calls_is_replaced(pool):
    os.kill(run_isolated(pool, own_process, [], 30), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while pool._idle.queue[0].process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run_isolated(pool, double, [1], 30) == 2


def test_a_hang_ends_at_the_timeout(pool):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"no progress for 0\.3 seconds") as error:
        run_isolated(pool, hang, [], 0.3)
    assert error.value.timed_out
    assert time.monotonic() - start < 60
    assert run_isolated(pool, double, [1], 30) == 2


def test_the_timeout_is_one_of_progress_not_of_the_whole_call(pool):
    assert run_isolated(pool, work, [2.0], 0.5) == "done"


def test_values_of_a_generator_come_one_by_one_however_slowly_they_are_taken(pool):
    process = run_isolated(pool, own_process, [], 30)
    values = iterate_isolated(pool, count, ["a.mp4", 3, ""], 0.5)
    taken = [next(values)]
    time.sleep(1.0)  # The worker waits meanwhile, and that is no lack of progress.
    taken.extend(values)
    assert taken == [0, 1, 2]
    assert run_isolated(pool, own_process, [], 30) == process
    # A worker whose values nobody wants any more is not used again.
    values = iterate_isolated(pool, count, ["a.mp4", 3, ""], 30)
    next(values)
    values.close()
    assert run_isolated(pool, own_process, [], 30) != process


@pytest.mark.parametrize(
    ("end", "message"),
    [("error", "ends here"), ("crash", r"reading it crashed \(signal 11"),
     ("hang", "reading it made no progress for 0.5 seconds")],
)  # fmt: skip
def test_a_reader_gives_the_values_before_the_error(end, message):
    taken = []
    with SubprocessReader(1, 0.5) as read, pytest.raises(VideoError, match=rf"a\.mp4: {message}"):
        taken.extend(read(count, "a.mp4", 2, end))
    assert taken == [0, 1]


def test_a_timeout_must_be_above_0(pool):
    with pytest.raises(ValueError, match="timeout"):
        run_isolated(pool, double, [1], 0)


def test_an_allocation_beyond_the_limit_fails_in_the_worker():
    with WorkerPool(1, max_memory=256 * 2**20) as pool:
        assert run_isolated(pool, allocate, [2**20], 30) == 1
        with pytest.raises(MemoryError):
            run_isolated(pool, allocate, [2**29], 30)
        assert run_isolated(pool, allocate, [2**20], 30) == 1


def test_threads_share_the_workers():
    with WorkerPool(2) as pool:
        results = {}
        threads = [
            threading.Thread(
                target=lambda i=i: results.update({i: run_isolated(pool, double, [i], 60)})
            )
            for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {i: 2 * i for i in range(6)}


def test_closing_ends_the_processes():
    pool = WorkerPool(1)
    process = run_isolated(pool, own_process, [], 30)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert run_isolated(pool, double, [2], 30) == 4  # and it can be used again
    pool.close()


def test_the_first_process_that_a_program_starts_blocks_sigint_too(tmp_path):
    """With it comes multiprocessing's resource tracker, whose start unblocks SIGINT."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from moclip_jax.input_pipeline.video.subprocess_pool import block_sigint\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    process = context.Process(target=time.sleep, args=(60,))\n"
        "    with block_sigint():\n"
        "        process.start()\n"
        "    with open(f'/proc/{process.pid}/status') as status:\n"
        "        print(next(line.split()[1] for line in status if line.startswith('SigBlk')))\n"
        "    process.kill()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    assert int(done.stdout, 16) >> (signal.SIGINT - 1) & 1
