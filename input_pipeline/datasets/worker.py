"""Prepare videos in child processes, in order, each with a time limit.

A child returns the finished record, so that the parent only writes bytes. A damaged file that
crashes or hangs FFmpeg ends its child and is rejected; the other videos are not affected.
"""

import collections
import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Generator, Iterable

from moclip_jax.input_pipeline.datasets.definition import Source
from moclip_jax.input_pipeline.datasets.records import encode_record
from moclip_jax.input_pipeline.video.clip import VideoError, VideoSpec
from moclip_jax.input_pipeline.video.subprocess_pool import WorkerError, WorkerPool, run_isolated

KEPT_NATIVE, KEPT_REENCODED, REJECTED = "native", "reencoded", "refused"
"""Values of `Outcome.kept`, as the manifest of version 2.0.0 spells them."""

# `max_seconds` is checked between two frames; a child is ended this much later.
_GRACE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a video: its line in the manifest.

    Attributes:
      name: As in its `VideoEntry`.
      kept: 'native' (with the stream's own motion), 'reencoded' (with that of the canonical form)
        or 'refused' (rejected).
      reason: Why it was rejected, with its path; else empty.
      num_frames: Frames of the video; 0 if it was rejected.
      bytes: Size of its record; 0 if it was rejected.
      seconds: Wall-clock time in its worker.
      warning: What is wrong with it although it was kept (`Clip.warning`), with its path; else
        empty.
    """

    name: str
    kept: str
    reason: str = ""
    num_frames: int = 0
    bytes: int = 0
    seconds: float = 0.0
    warning: str = ""


def make_record(source: Source, spec: VideoSpec) -> tuple[bytes, Outcome]:
    """Prepare a video; return its record, empty if it was rejected, and what became of it."""
    start = time.monotonic()
    entry = source.entry
    try:
        clip = source.prepare()
    except VideoError as error:
        return b"", Outcome(entry.name, REJECTED, str(error), seconds=_since(start))
    record = encode_record(entry.name, entry.label, clip, spec)
    kept = KEPT_NATIVE if clip.source == "native" else KEPT_REENCODED
    outcome = Outcome(
        entry.name,
        kept,
        num_frames=clip.num_frames,
        bytes=len(record),
        seconds=_since(start),
        warning=f"{entry.name}: {clip.warning}" if clip.warning else "",
    )
    return record, outcome


def make_records(
    sources: Iterable[Source], spec: VideoSpec, num_workers: int
) -> Generator[tuple[bytes, Outcome], None, None]:
    """Prepare videos in child processes.

    Args:
      spec: The canonical form; its `max_seconds` is the time limit of a video.

    Yields:
      As `make_record`, in the order of the videos, with a bounded number of results in memory.
      A video that crashes its process twice, or exceeds the time limit, is rejected.

    Raises:
      RuntimeError: A process could not be started.
      Exception: Any other error than a `VideoError` that preparing a video raised.
    """
    pool = WorkerPool(num_workers)
    threads = concurrent.futures.ThreadPoolExecutor(num_workers)
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for source in sources:
            pending.append(threads.submit(_make_isolated, pool, source, spec))
            if len(pending) >= 4 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        if pending:  # Stopped early: the results of the running videos are not needed.
            pool.kill()
        threads.shutdown(cancel_futures=True)
        pool.close()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    # Only Linux reports which cores a process is restricted to.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _make_isolated(pool: WorkerPool, source: Source, spec: VideoSpec) -> tuple[bytes, Outcome]:
    start = time.monotonic()
    assert spec.max_seconds is not None  # A data set has a limit.
    for attempt in (1, 2):
        try:
            return run_isolated(
                pool, make_record, [source, spec], spec.max_seconds + _GRACE_SECONDS
            )
        except WorkerError as error:
            if not error.started:
                raise RuntimeError(
                    f"a worker process {error.reason}, most likely out of memory unless it printed "
                    "another cause; use fewer (config.dataset.num_workers)"
                ) from error
            # A process serves many videos, so the crash may be due to an earlier one: the second
            # attempt runs in a new process.
            if attempt == 2 or error.timed_out:
                name = source.entry.name
                reason = f"{name}: its process {error.reason}"
                return b"", Outcome(name, REJECTED, reason, seconds=_since(start))
    raise AssertionError


def _since(start: float) -> float:
    return round(time.monotonic() - start, 4)
