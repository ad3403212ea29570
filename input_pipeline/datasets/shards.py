"""The folder in which a data set is prepared: one file for every few videos, each written whole.

A finished shard survives whatever ends the run, and the next start goes on with the others.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moclip_jax.input_pipeline.datasets.worker import Outcome, Source

from moclip_jax.runtime.progress import say

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

VIDEOS_PER_SHARD = 32
"""Videos of a shard at most: what a killed run loses, and what a Beam worker does in one go."""

_PLAN = "plan.json"


def plan_shards(sources: Sequence[Source]) -> list[list[Source]]:
    """Divide videos among shards of about the same number.

    The order is that of a hash of the names: as good as random, so that the first videos stand for
    all and a shard holds many classes, and the same on every machine.
    """
    ordered = sorted(
        sources, key=lambda source: hashlib.sha256(source.entry.name.encode()).digest()
    )
    number = -(-len(ordered) // VIDEOS_PER_SHARD)
    bounds = [len(ordered) * i // number for i in range(number + 1)]
    return [ordered[begin:end] for begin, end in itertools.pairwise(bounds)]


class ShardFolder:
    """Shards on disk; a shard counts once its outcomes stand beside it."""

    def __init__(self, path: str | os.PathLike, plan: Any):
        """Open the folder; make it if it is not there.

        Args:
          path: A local folder, of this class alone.
          plan: Everything that the shards depend on, in JSON's types. Shards that were made by
            another plan are deleted.
        """
        self.path = pathlib.Path(path)
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        plan_file = self.path / _PLAN
        if self.path.exists():
            if plan_file.exists() and json.loads(plan_file.read_text()) == digest:
                for part in self.path.glob("*.part"):
                    part.unlink()
                return
            say(f"{self.path}: made for other videos or settings, begun anew")
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        _write_whole(plan_file, json.dumps(digest))

    def outcomes(self, index: int) -> list[Outcome] | None:
        """Return what became of a shard's videos; None if it is not finished."""
        try:
            listed = json.loads(self._outcomes(index).read_text())
        except FileNotFoundError:
            return None
        return [Outcome(**fields) for fields in listed]

    def records(self, index: int) -> pathlib.Path:
        """Return the path of a shard's TFRecord file."""
        return self.path / f"{index:05d}.tfrecord"

    def write(self, index: int, results: Iterable[tuple[bytes, Outcome]]) -> Iterator[Outcome]:
        """Write a shard whole or not at all.

        Args:
          index: Number of the shard.
          results: Of each of its videos, the record, empty if it was refused, and the outcome.

        Yields:
          The outcomes; the shard is finished when there are no more.
        """
        # Only here: workers import the builders' modules, and this one takes seconds.
        import tensorflow as tf

        # In a name of its own: engines may try a shard twice at a time.
        temporary = self.path / f"{index:05d}.{os.getpid()}.part"
        outcomes = []
        with tf.io.TFRecordWriter(os.fspath(temporary)) as writer:
            for record, outcome in results:
                if record:
                    writer.write(record)
                outcomes.append(outcome)
                yield outcome
        _flush_to_disk(temporary)
        os.replace(temporary, self.records(index))
        _write_whole(
            self._outcomes(index), json.dumps([dataclasses.asdict(outcome) for outcome in outcomes])
        )

    def _outcomes(self, index: int) -> pathlib.Path:
        return self.path / f"{index:05d}.json"


@contextlib.contextmanager
def exclusively(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Hold a lock that one process at a time can have; wait for it, and say so.

    The system takes it back from a process that dies. Where there are no such locks (Windows),
    nothing is done.

    Args:
      path: The lock's file, which stays.
      what: What is locked, to be said.
    """
    if fcntl is None:
        yield
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{what}: another process is at it; waiting for that")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_whole(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text)
    _flush_to_disk(temporary)
    os.replace(temporary, path)


def _flush_to_disk(path: pathlib.Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
