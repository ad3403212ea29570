"""What a trained stage notes of each epoch: `history.jsonl`, and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clu import metric_writers

from moclip_jax.runtime import distributed
from moclip_jax.runtime.files import atomic_write


class MetricLog:
    """One line an epoch; process 0 writes, the others do nothing.

    Args:
      directory: the stage's folder.
      step: where training goes on. Lines of later epochs, which a stopped run had done after its
        last checkpoint, are dropped.
    """

    def __init__(self, directory: Path, step: int):
        self._path = directory / "history.jsonl"
        self._writer: Any = None
        if not distributed.is_main_process():
            return
        self._writer = metric_writers.SummaryWriter(str(directory / "tensorboard"))
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _is_whole(line) and json.loads(line)["step"] <= step]
            if kept != lines:
                with atomic_write(self._path) as temporary:
                    temporary.write_text("".join(kept))

    def record(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Adds the line of `epoch` (from 0), which ended with update `step`."""
        if self._writer is None:
            return
        self._writer.write_scalars(step, metrics)
        with open(self._path, "a") as history:
            history.write(json.dumps({"epoch": epoch + 1, "step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Writes what TensorBoard's writer still holds."""
        if self._writer is not None:
            self._writer.close()


def _is_whole(line: str) -> bool:
    # A run that was killed, or whose disk was full, may leave half a line.
    return line.endswith("}\n")
