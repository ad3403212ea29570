"""Log each epoch of training: its metrics, the time spent waiting for data, and a profile."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from moclip_jax.runtime.distributed import is_main_process
from moclip_jax.runtime.files import atomic_write
from moclip_jax.runtime.progress import say

# Metrics of each epoch; the file depends on the settings alone, not on the machine.
METRICS_FILE = "history.jsonl"
# Seconds of each epoch, and the share of them spent waiting for data.
TIMING_FILE = "timing.jsonl"
# Steps before the profiled ones: the first compiles, the others fill the input pipeline.
_STEPS_BEFORE_PROFILE = 3


class MetricLog:
    """Writes the metrics of each epoch to `history.jsonl` and to TensorBoard, on the main process.

    Lines of epochs after `step` are dropped: a stopped run logged them after its last checkpoint,
    and they are trained again.
    """

    def __init__(self, directory: Path, step: int):
        """Open the log."""
        self._path = directory / METRICS_FILE
        self._writer: Any = None
        if not is_main_process():
            return
        # Imported late: reports read a log without TensorFlow.
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(str(directory / "tensorboard"))
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _is_whole(line) and json.loads(line)["step"] <= step]
            if kept != lines:
                with atomic_write(self._path) as temporary:
                    temporary.write_text("".join(kept))

    def write(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of `epoch` (from 0), which ended with update `step`."""
        if self._writer is None:
            return
        import tensorflow as tf

        with self._writer.as_default(step):
            for name, value in metrics.items():
                tf.summary.scalar(name, value)
        with open(self._path, "a") as file:
            file.write(json.dumps({"epoch": epoch + 1, "step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Flush and close TensorBoard's writer."""
        if self._writer is not None:
            self._writer.close()


class StepTimer:
    """Measures how long devices wait for data, and writes a profile of some steps.

    A wait for the next batch counts only if the devices had finished all their work when the batch
    came. They may have finished in the middle of the wait, so the share is an upper bound; it
    includes the start of the input pipeline at the beginning of each epoch.
    """

    def __init__(self, directory: Path, profile_steps: int = 0):
        """Start the clock.

        Args:
          directory: The stage's folder, which exists; for `timing.jsonl` and `profile/`.
          profile_steps: Number of steps to profile; 0 for none.
        """
        self._directory = directory
        self._profile_steps = profile_steps
        self._profile_end: int | None = None
        self._steps = 0
        self._last_result: jax.Array | None = None
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._waited, self._began = 0.0, time.perf_counter()

    def items(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items of an epoch, which starts now, and time the wait for each of them."""
        self._start_epoch()
        iterator = iter(items)
        end = object()
        while True:
            began = time.perf_counter()
            item = next(iterator, end)
            if self._last_result is None or self._last_result.is_ready():  # type: ignore[attr-defined]
                self._waited += time.perf_counter() - began
            if item is end:
                return
            yield item

    def dispatched(self, result: jax.Array, steps: int) -> None:
        """Note that `steps` were dispatched to the devices, with `result` as their last result."""
        self._last_result = result
        self._steps += steps
        if self._profile_end is not None:
            if self._steps >= self._profile_end:
                self._end_profile()
        elif self._profile_steps and self._steps >= _STEPS_BEFORE_PROFILE:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._directory / "profile")
            self._profile_end = self._steps + self._profile_steps

    def _end_profile(self) -> None:
        jax.block_until_ready(self._last_result)
        jax.profiler.stop_trace()
        self._profile_end, self._profile_steps = None, 0
        say(f"a profile for TensorBoard or Perfetto: {self._directory / 'profile'}")

    def end_epoch(self, epoch: int, step: int) -> float:
        """Log the time of `epoch` (from 0), which ended with update `step`.

        Returns the share of the epoch in which devices waited for data, 0 to 1.
        """
        seconds = time.perf_counter() - self._began
        share = self._waited / seconds
        if jax.process_index() == 0:
            line = {"epoch": epoch + 1, "step": step, "seconds": seconds, "data_wait": share}
            with open(self._directory / TIMING_FILE, "a") as file:
                file.write(json.dumps(line) + "\n")
        return share

    def close(self) -> None:
        """End a profile for which training had too few steps."""
        if self._profile_end is not None:
            self._end_profile()


def data_wait(directory: Path) -> float | None:
    """Return the share of a stage's training time spent waiting for data; None if unknown."""
    path = directory / TIMING_FILE
    if not path.exists():
        return None
    lines = path.read_text().splitlines(keepends=True)
    epochs = [json.loads(line) for line in lines if _is_whole(line)]
    seconds = sum(epoch["seconds"] for epoch in epochs)
    return sum(e["seconds"] * e["data_wait"] for e in epochs) / seconds if seconds else None


def _is_whole(line: str) -> bool:
    # A run that was killed, or whose disk was full, may leave half a line.
    return line.endswith("}\n")
