"""Write a data set in shards, each whole or not at all.

A finished shard survives whatever ends the run, and the next start continues with the others.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moclip_jax.input_pipeline.datasets.definition import Source
from moclip_jax.input_pipeline.datasets.worker import Outcome
from moclip_jax.runtime.files import atomic_write, write_json
from moclip_jax.runtime.progress import say

VIDEOS_PER_SHARD = 32
"""Most videos of a shard: what a killed run loses, and the unit of work of a Beam worker."""

_PLAN = "plan.json"


def plan_shards(sources: Sequence[Source]) -> list[list[Source]]:
    """Divide videos among shards of about the same number.

    The order is that of a hash of the names. It is as good as random, so that the first videos are
    typical of all and a shard holds many classes, and it is the same on every machine.
    """
    ordered = sorted(
        sources, key=lambda source: hashlib.sha256(source.entry.name.encode()).digest()
    )
    number = -(-len(ordered) // VIDEOS_PER_SHARD)
    bounds = [len(ordered) * i // number for i in range(number + 1)]
    return [ordered[begin:end] for begin, end in itertools.pairwise(bounds)]


class ShardFolder:
    """Shards on disk; a shard is finished once its outcomes are written beside it."""

    def __init__(self, path: str | os.PathLike, plan: Any):
        """Open the folder; make it if it does not exist.

        Args:
          path: A local folder, used by this class alone.
          plan: Everything that the shards depend on, as JSON values. Shards that were made by
            another plan are deleted.
        """
        self.path = pathlib.Path(path)
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        plan_file = self.path / _PLAN
        if self.path.exists():
            if plan_file.exists() and json.loads(plan_file.read_text()) == digest:
                # What a killed process was writing.
                for part in self.path.glob("*.part*"):
                    part.unlink()
                return
            say(f"{self.path}: made for other videos or settings; started again")
            shutil.rmtree(self.path)
        write_json(plan_file, digest)

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
        """Write a shard whole or not at all, and yield the outcomes.

        `results` are the record (empty if rejected) and outcome of each video. The shard is
        finished when there are no more.
        """
        # Imported here because worker processes import this module, and TensorFlow takes seconds.
        import tensorflow as tf

        outcomes = []
        with (
            atomic_write(self.records(index)) as temporary,
            tf.io.TFRecordWriter(os.fspath(temporary)) as writer,
        ):
            for record, outcome in results:
                if record:
                    writer.write(record)
                outcomes.append(outcome)
                yield outcome
        write_json(self._outcomes(index), [dataclasses.asdict(outcome) for outcome in outcomes])

    def _outcomes(self, index: int) -> pathlib.Path:
        return self.path / f"{index:05d}.json"
