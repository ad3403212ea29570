"""Log the estimated cost of a preparation, its progress, and its totals."""

import collections
import pathlib
import shutil
import time
from collections.abc import Sequence

from absl import logging

from moclip_jax.input_pipeline.datasets.definition import Source
from moclip_jax.input_pipeline.datasets.shards import ShardFolder
from moclip_jax.input_pipeline.datasets.worker import REJECTED, Outcome
from moclip_jax.runtime.progress import Progress, duration, say

# The estimate is made from at least so many videos, and logged for at least so many seconds.
_SAMPLE = 8
_LONG_RUN_SECONDS = 20.0


class PreparationLog:
    """Logs one preparation.

    Attributes:
      missing: Numbers of the shards that are not finished.
      num_missing: Number of their videos.
    """

    def __init__(self, what: str, folder: ShardFolder, shards: Sequence[Sequence[Source]]):
        """Log how much an earlier run finished."""
        done = [folder.outcomes(index) for index in range(len(shards))]
        self.missing = [index for index, outcomes in enumerate(done) if outcomes is None]
        self._what, self._folder, self._total = what, folder, sum(map(len, shards))
        self._num_shards = len(shards)
        self._outcomes: list[Outcome] = []
        found = sum(len(outcomes) for outcomes in done if outcomes is not None)
        if found:
            say(f"{what}: {found} of {self._total} videos were prepared before; resumed")
        self._progress = Progress(self._total, what, "videos", done_before=found)
        self.num_missing = self._total - found
        self._start = time.monotonic()

    def add(self, outcome: Outcome, num_workers: int) -> None:
        """Count a video that was prepared here; log the estimate once enough of them are."""
        self._outcomes.append(outcome)
        self._progress.advance()
        if outcome.kept == REJECTED:
            logging.warning("rejected: %s", outcome.reason)
        if outcome.warning:
            # Commands silence library logging, and this concerns the user's data.
            say(f"warning: {outcome.warning}")
        if len(self._outcomes) == max(_SAMPLE, 2 * num_workers):
            size, seconds = _means(self._outcomes)
            all_seconds = seconds * self.num_missing / num_workers
            if all_seconds < _LONG_RUN_SECONDS:
                return
            all_bytes = size * self.num_missing
            say(
                f"{self._what}: the first {len(self._outcomes)} took {seconds:.2f} s and "
                f"{size / 1e3:.0f} kB each; {self.num_missing} will take about "
                f"{duration(all_seconds)} with {num_workers} workers, and {all_bytes / 1e9:.2f} GB"
            )
            free = shutil.disk_usage(self._folder.path).free
            if all_bytes > free:
                say(f"warning: only {free / 1e9:.2f} GB are free in {self._folder.path}")

    def done(self, manifest: pathlib.Path) -> None:
        """Log the totals of all videos, also those of earlier runs."""
        done = [self._folder.outcomes(index) or [] for index in range(self._num_shards)]
        outcomes = [outcome for shard in done for outcome in shard]
        kept = collections.Counter(
            "rejected" if outcome.kept == REJECTED else outcome.kept for outcome in outcomes
        )
        size, seconds = _means(outcomes)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(kept.items()))
        say(
            f"{self._what}: {len(outcomes)} videos ({counts}) in "
            f"{duration(time.monotonic() - self._start)}; {seconds:.2f} s and {size / 1e3:.0f} kB "
            f"each, {sum(outcome.bytes for outcome in outcomes) / 1e9:.3f} GB; {manifest}"
        )


def _means(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return the mean bytes and seconds of a video."""
    count = len(outcomes)
    return sum(o.bytes for o in outcomes) / count, sum(o.seconds for o in outcomes) / count
