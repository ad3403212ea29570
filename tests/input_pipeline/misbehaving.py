"""Videos that crash, hang or fail while they are prepared; worker processes import it quickly."""

import os
import pathlib
import signal
import time

from moclip_jax.input_pipeline.video import subprocess_pool
from moclip_jax.input_pipeline.video.clip import (
    Clip,
    VideoError,
    VideoSpec,
    clip_from_frames,
)
from tests.input_pipeline.video_fixtures import drifting_frames

SPEC = VideoSpec(width=32, height=32, gop_size=4, clip_frames=1, max_seconds=20)


def make(number: int, trap: str, folder: str) -> Clip:
    """Prepare a generated video, and note that it was; some misbehave."""
    if trap == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if trap == "segfault once":
        flag = pathlib.Path(folder) / "crashed"
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
    if trap == "hang":
        time.sleep(600)
    if trap == "refuse":
        raise VideoError(f"{folder}/{number}.avi", "is cut")
    if trap == "bug":
        raise ZeroDivisionError("a mistake of ours")
    with open(pathlib.Path(folder) / "prepared.log", "a") as log:
        log.write(f"{number}\n")
    if trap == "slow":
        time.sleep(0.3)
    return clip_from_frames(drifting_frames(3, 32, 32, seed=number), SPEC, 25.0)


def end_by_a_crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def take_all_memory(*_):
    return bytearray(subprocess_pool.MAX_READER_MEMORY + 1)


def never_end(*_):
    time.sleep(600)
