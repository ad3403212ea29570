"""How training spends its time: whether devices wait for data, and a trace of some steps."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from moclip_jax.runtime.progress import say

# One line an epoch, beside history.jsonl, which holds nothing that depends on the machine.
TIMING_FILE = "timing.jsonl"
# Steps before the traced ones: the first compiles, the others fill the pipeline.
_STEPS_BEFORE_TRACE = 3


class StepTimer:
    """Measures the epochs of one training; the first process notes them.

    A wait for the next batch counts as the devices' own where they had no work left when it came.
    They may have run out in the middle of it, so the share is an upper bound, and it includes the
    start of the pipeline at each epoch's beginning.

    Args:
      directory: the stage's folder, which exists; `timing.jsonl` and `profile/` are written there.
      profile_steps: steps to write a trace of; 0 for none.
    """

    def __init__(self, directory: Path, profile_steps: int = 0):
        self._directory = directory
        self._profile_steps = profile_steps
        self._trace_ends: int | None = None
        self._steps = 0
        self._newest: jax.Array | None = None
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._waited, self._began = 0.0, time.perf_counter()

    def items(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yields the items of an epoch, which begins now."""
        self._begin_epoch()
        iterator = iter(items)
        done = object()
        while True:
            began = time.perf_counter()
            item = next(iterator, done)
            if self._newest is None or self._newest.is_ready():  # type: ignore[attr-defined]
                self._waited += time.perf_counter() - began
            if item is done:
                return
            yield item

    def dispatched(self, result: jax.Array, steps: int) -> None:
        """Notes that work was handed to the devices, of which `result` is the last to be there."""
        self._newest = result
        self._steps += steps
        if self._trace_ends is not None:
            if self._steps >= self._trace_ends:
                self._end_trace()
        elif self._profile_steps and self._steps >= _STEPS_BEFORE_TRACE:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._directory / "profile")
            self._trace_ends = self._steps + self._profile_steps

    def _end_trace(self) -> None:
        jax.block_until_ready(self._newest)
        jax.profiler.stop_trace()
        self._trace_ends, self._profile_steps = None, 0
        say(f"a trace for TensorBoard or Perfetto: {self._directory / 'profile'}")

    def end_epoch(self, epoch: int, step: int) -> float:
        """Notes an epoch (from 0), whose steps are done and which ended with update `step`.

        Returns:
          The share of its time in which devices waited for data, 0 to 1.
        """
        seconds = time.perf_counter() - self._began
        share = self._waited / seconds
        if jax.process_index() == 0:
            line = {"epoch": epoch + 1, "step": step, "seconds": seconds, "data_wait": share}
            with open(self._directory / TIMING_FILE, "a") as file:
                file.write(json.dumps(line) + "\n")
        return share

    def close(self) -> None:
        """Ends a trace that has had fewer steps than were asked for."""
        if self._trace_ends is not None:
            self._end_trace()


def data_wait(directory: Path) -> float | None:
    """Returns the share of a stage's training time spent waiting for data; None if not noted."""
    path = directory / TIMING_FILE
    if not path.exists():
        return None
    # A run that was killed may leave half a line.
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    epochs = [json.loads(line) for line in lines]
    seconds = sum(epoch["seconds"] for epoch in epochs)
    return sum(e["seconds"] * e["data_wait"] for e in epochs) / seconds if seconds else None
