"""Timings of reading video: ours beside the obvious way and beside mv-extractor.

    python -m benchmarks.video [--rounds=7] [--mv-extractor=PYTHON]

PYTHON is an interpreter that has the package `motion-vector-extractor` (it brings OpenCV, so it
gets an environment of its own: `python -m venv /tmp/mv && /tmp/mv/bin/pip install
motion-vector-extractor`, then `--mv-extractor=/tmp/mv/bin/python`). Without it those rows are left
out. Both sides of a row are timed in turns in one process (mv-extractor in one of its own, which
takes its own time), one thread each, and told is the processor's time: a busy machine stretches the
clock's many times over, and not evenly.
"""

import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.clips import generated_video, real_video, ucf101_like
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.motion_vectors import (
    VECTORS_ONLY,
    BlockMotionReader,
    accumulate_motion,
    read_motion_vectors,
)
from moclip_jax.runtime.cli import CommandParser, run

SEGMENTS = 25
# Reads a path a line, reads all vectors of that file without pixels, prints seconds.
_MV_EXTRACTOR = """
import os, sys, time
# One core, and so one thread, as ours. With more, FFmpeg's frame threads lose some of the vectors,
# and others in every run.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from mvextractor.videocap import VideoCap
for line in sys.stdin:
    start = time.process_time()
    capture = VideoCap()
    capture.open(line.strip())
    capture.set_decode_frames(False)
    count = 0
    while True:
        result = capture.read()
        if not result[0]:
            break
        count += 1
    capture.release()
    print(time.process_time() - start, count, flush=True)
"""


def whole_pass(path: str, wanted: list[int]) -> np.ndarray:
    """Decode every frame and accumulates the wanted ones."""
    reader = BlockMotionReader(path)
    for frame in decode_frames(path, VECTORS_ONLY):
        reader.add(frame)
    return reader.result().accumulate(wanted)


class MvExtractor:
    """mv-extractor in a process of its own."""

    def __init__(self, python: str):
        self._process = subprocess.Popen(
            [python, "-c", _MV_EXTRACTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, path: str) -> float:
        """Return how long it takes to read all vectors of a file."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline().split()[0])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that says how many seconds of a core `work` takes."""

    def seconds() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return seconds


def main(argv: list[str] | None = None) -> int:
    """Read the command line and prints the table."""
    parser = CommandParser(
        "benchmarks.video",
        "Time the reading of video beside mv-extractor and beside whole passes.",
        ("--rounds=3", "--mv-extractor=.venv-parity/bin/python"),
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="timed passes of each side (7)"
    )
    parser.add_argument("--mv-extractor", metavar="PYTHON", help="interpreter that has it")
    arguments = parser.parse(argv)
    return run(lambda: print_table(arguments.rounds, arguments.mv_extractor) and None)


def print_table(rounds: int, mv_extractor: str | None = None) -> list[dict[str, Any]]:
    """Print and returns frames a second of a core's time of both sides of each row.

    Args:
      rounds: timed passes of each side.
      mv_extractor: interpreter that has mv-extractor; None leaves its rows out.
    """
    extractor = MvExtractor(mv_extractor) if mv_extractor else None
    found: list[dict[str, Any]] = []
    print(f"{'file':<18}{'ours':<32}{'frames/s':>9}  {'against':<28}{'frames/s':>9}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for path in (generated_video(root), ucf101_like(root), pathlib.Path(real_video())):
            name = str(path)
            frames = sum(1 for _ in decode_frames(name))
            segments = [int(frames * (i + 0.5) / SEGMENTS) for i in range(SEGMENTS)]
            three = [int(frames * (i + 0.5) / 3) for i in range(3)]
            whole = timed(lambda name=name, three=three: whole_pass(name, three))
            plain = timed(lambda name=name: sum(1 for _ in decode_frames(name)))
            rows = [
                (
                    "three frames, accumulated",
                    timed(lambda name=name, three=three: accumulate_motion(name, three)),
                    "the whole file for them",
                    whole,
                ),
                (
                    "prepare, own vectors",
                    timed(lambda name=name: read_clip(name, VideoSpec(source="native"))),
                    "decode alone",
                    plain,
                ),
                (
                    "prepare, re-encoded",
                    timed(lambda name=name: read_clip(name, VideoSpec())),
                    "decode alone",
                    plain,
                ),
            ]
            if extractor is not None:
                mv_only = lambda name=name: extractor.seconds(name)  # noqa: E731
                rows[:0] = [
                    (
                        "vectors",
                        timed(lambda name=name: [frame for frame in read_motion_vectors(name)]),
                        "mv-extractor, vectors only",
                        mv_only,
                    ),
                    (
                        f"vectors, {SEGMENTS} fields accumulated",
                        timed(lambda name=name, s=segments: accumulate_motion(name, s)),
                        "mv-extractor, vectors only",
                        mv_only,
                    ),
                ]
            for ours, our_seconds, other, other_seconds in rows:
                times = [(our_seconds(), other_seconds()) for _ in range(rounds + 1)][1:]
                mine, theirs = np.median(times, axis=0)
                found.append(
                    {
                        "file": path.name,
                        "ours": ours,
                        "against": other,
                        "frames": frames,
                        "seconds": times,
                    }
                )
                print(
                    f"{path.name:<18}{ours:<32}{frames / mine:9.0f}  {other:<28}"
                    f"{frames / theirs:9.0f}{theirs / mine:7.2f}",
                    flush=True,
                )
    if extractor is not None:
        extractor.close()
    return found


if __name__ == "__main__":
    raise SystemExit(main())
