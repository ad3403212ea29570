"""Prepare videos in child processes, in order, each with a time limit.

The child makes the finished record, so that the parent only writes bytes. A damaged file that
crashes or hangs FFmpeg ends its child and is refused; the others go on.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from moclip_jax.input_pipeline.datasets.motion_features import record_features, record_values
from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec
from moclip_jax.input_pipeline.video.subprocess_pool import WorkerError, WorkerPool, run_isolated
from tensorflow_datasets.core.example_serializer import ExampleSerializer

KEPT_NATIVE, KEPT_REENCODED, REFUSED = "native", "reencoded", "refused"
"""What may become of a video, `Outcome.kept`."""

# `max_seconds` is looked at between two frames; this much later the child is ended.
_GRACE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One video of a data set, whether or not it could be prepared.

    Attributes:
      name: Unique name, also the key of its example.
      label: Position of its class in the data set's class names.
      group: Videos of one group show the same scene or person and must stay on one side of a split.
      subsets: For each published split, in order, 'train', 'test' or 'unused'.
      num_frames: Frames of the video; 0 if it could not be prepared.
      error: Why it could not be prepared, with its path; empty if it could.
    """

    name: str
    label: int
    group: str
    subsets: tuple[str, ...]
    num_frames: int = 0
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """A video still to be prepared.

    Attributes:
      entry: Its line in the index.
      prepare: Makes the prepared video or raises `VideoError`; must pickle, for the workers.
    """

    entry: VideoEntry
    prepare: Callable[[], Clip]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a video: its line in the manifest.

    Attributes:
      name: As in its `VideoEntry`.
      kept: 'native' (with the stream's own motion), 'reencoded' (with that of the canonical form)
        or 'refused'.
      reason: Why it was refused, with its path; else empty.
      num_frames: Frames of the video; 0 if it was refused.
      bytes: Size of its record; 0 if it was refused.
      seconds: How long it took in its worker.
    """

    name: str
    kept: str
    reason: str = ""
    num_frames: int = 0
    bytes: int = 0
    seconds: float = 0.0


@functools.lru_cache(maxsize=4)
def example_features(spec: VideoSpec) -> tfds.features.FeaturesDict:
    """Return the TFDS features of a record."""
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "label": np.int64,
            **record_features(spec),
            "frames": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            ),
            "frame_indices": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "num_frames": np.int64,
            "fps": np.float32,
        }
    )


def make_record(source: Source, spec: VideoSpec) -> tuple[bytes, Outcome]:
    """Prepare a video here and now.

    Args:
      source: The video.
      spec: The canonical form.

    Returns:
      The serialised example, empty if the video was refused, and what became of it.
    """
    start = time.monotonic()
    entry = source.entry
    try:
        prepared = source.prepare()
    except VideoError as error:
        return b"", Outcome(entry.name, REFUSED, str(error), seconds=_since(start))
    values: dict[str, Any] = {
        "name": entry.name,
        "label": entry.label,
        **record_values(prepared, spec),
        "frames": prepared.frames,
        "frame_indices": prepared.frame_indices,
        "num_frames": prepared.num_frames,
        "fps": prepared.fps,
    }
    features = example_features(spec)
    example = ExampleSerializer(features.get_serialized_info()).get_tf_example(
        features.encode_example(values)
    )
    # The same bytes in every process: protocol buffers order their maps by a seed of their own.
    record = example.SerializeToString(deterministic=True)
    kept = KEPT_NATIVE if prepared.source == "native" else KEPT_REENCODED
    outcome = Outcome(
        entry.name, kept, num_frames=prepared.num_frames, bytes=len(record), seconds=_since(start)
    )
    return record, outcome


def make_records(
    sources: Iterable[Source], spec: VideoSpec, num_workers: int
) -> Generator[tuple[bytes, Outcome], None, None]:
    """Prepare videos in child processes.

    Args:
      sources: The videos.
      spec: The canonical form; its `max_seconds` is the time limit of a video.
      num_workers: Number of child processes, at least 1.

    Yields:
      As `make_record`, in the order of the videos, with a bounded number of results in memory.
      A video that crashes its process twice, or takes too long, is refused.

    Raises:
      RuntimeError: A process could not even start.
      Exception: Anything but a `VideoError` that preparing a video raised.
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
        if pending:  # Stopped early: nobody waits for what is still running.
            pool.kill()
        threads.shutdown(cancel_futures=True)
        pool.close()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    # Where the system can say so (Linux).
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _make_isolated(pool: WorkerPool, source: Source, spec: VideoSpec) -> tuple[bytes, Outcome]:
    start = time.monotonic()
    for attempt in (1, 2):
        try:
            return run_isolated(
                pool, make_record, [source, spec], spec.max_seconds + _GRACE_SECONDS
            )
        except WorkerError as error:
            if not error.started:
                raise RuntimeError(
                    f"a process that prepares videos {error.reason}, unless it said why most "
                    "likely for want of memory; use fewer (config.dataset.num_workers)"
                ) from error
            # A process is used again, so a crash may be the work of the video before: once more,
            # in a new one.
            if attempt == 2 or error.timed_out:
                name = source.entry.name
                reason = f"{name}: its process {error.reason}"
                return b"", Outcome(name, REFUSED, reason, seconds=_since(start))
    raise AssertionError


def _since(start: float) -> float:
    return round(time.monotonic() - start, 4)
