"""Checkpoints of training and the markers of finished stages, through Orbax and JSON."""

import itertools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from moclip_jax.runtime import distributed
from moclip_jax.runtime.progress import say
from moclip_jax.runtime.tree_io import disk_errors, single_process
from moclip_jax.runtime.versions import package_versions
from moclip_jax.training.fingerprint import sha256_of
from moclip_jax.training.stages import differences

SCORE = "score"
# Of a checkpoint that was made between two evaluations: to go on from, never the best.
NO_SCORE = -1.0

_STATE, _ABOUT = "state", "about"


class TrainingCheckpoints:
    """The two newest checkpoints of a trained stage, to go on from, and its two best, to keep.

    Process 0 alone writes and reads; the state is whole on every device, so the others get it over
    the network. Saving goes on in the background.

    Each checkpoint holds, beside the state, `about` as JSON: what it was made from, the versions it
    was made with, the sums of the epoch so far, and the SHA-256 of the state, against which it is
    checked when it is read.

    Args:
      directory: where the checkpoints lie; made if absent.
      about: nested JSON values that must be the same to go on from a checkpoint: `config`,
        `class_names`, `preprocessing`, `weights` (frozen ones, by source and hash).
    """

    def __init__(self, directory: Path, about: Mapping[str, Any] | None = None):
        self._directory = directory.absolute()
        # Through JSON once, so that tuples compare equal to the lists read back.
        self._about = json.loads(json.dumps(dict(about or {})))
        self._manager = self._open() if distributed.is_main_process() else None

    def _open(self) -> ocp.CheckpointManager:
        self._directory.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                # What a killed run left half written.
                cleanup_tmp_directories=True,
                best_fn=lambda metrics: metrics[SCORE],
                best_mode="max",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(2),
                        checkpoint_managers.BestN(
                            get_metric_fn=lambda metrics: metrics[SCORE], n=2
                        ),
                    ]
                ),
                multiprocessing_options=single_process(),
            ),
            item_names=(_STATE, _ABOUT),
        )

    def save(self, step: int, state: Any, score: float, sums: Mapping[str, float]) -> None:
        """Saves `state` under `step`, in the background.

        Args:
          step: updates done.
          state: tree of arrays, whole on every device.
          score: decides which is the best.
          sums: of the epoch that is under way; empty at its end.

        Raises:
          OSError: this or the save before failed (a full disk); what was saved before is there.
        """
        if self._manager is None:
            return
        # Copied: the next step overwrites the state in place.
        state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        about = {
            "made_from": self._about,
            "versions": package_versions(),
            "sums": dict(sums),
            "sha256": sha256_of(state),
        }
        with disk_errors(self._directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{_STATE: ocp.args.StandardSave(state), _ABOUT: ocp.args.JsonSave(about)}
                ),
                metrics={SCORE: score},
            )

    def restore_newest(self, like: Any) -> tuple[int, Any, dict[str, float]] | None:
        """Returns step, state and sums of the newest whole checkpoint; None if there is none.

        A damaged one is set aside (renamed) with a sentence, and the one before it is read.

        Args:
          like: tree of the state's structure, shapes and dtypes.

        Raises:
          ValueError: it was made from another config, other classes or other weights.
        """
        return self._restore(like, lambda manager: max(manager.all_steps(), default=None))

    def restore_best(self, like: Any) -> tuple[int, Any, dict[str, float]] | None:
        """As `restore_newest`, of the checkpoint with the highest score."""
        return self._restore(like, lambda manager: manager.best_step())

    def _restore(
        self, like: Any, choose: Callable[[ocp.CheckpointManager], int | None]
    ) -> tuple[int, Any, dict[str, float]] | None:
        found: list[Any] = []

        def read() -> list[Any] | None:
            assert self._manager is not None
            with disk_errors(self._directory):
                self._manager.wait_until_finished()
            while (step := choose(self._manager)) is not None:
                try:
                    state, sums = self._read(step, like)
                except _DamagedError as error:
                    self._set_aside(step, str(error))
                    continue
                found.append(state)
                return [step, sums]
            return None

        told = distributed.run_on_main(read)
        if told is None:
            return None
        step, sums = told
        state = distributed.broadcast_from_main(found[0] if found else None, like)
        return step, state, sums

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, float]]:
        assert self._manager is not None
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        try:
            about = self._manager.restore(
                step, args=ocp.args.Composite(**{_ABOUT: ocp.args.JsonRestore()})
            )[_ABOUT]
            made_from, digest, sums = about["made_from"], about["sha256"], about["sums"]
        # Whatever a library raises over a file that is not what it wrote.
        except Exception as error:
            raise _DamagedError(f"its description cannot be read ({_first_line(error)})") from error
        self._check_about(step, made_from, about["versions"])
        try:
            state = self._manager.restore(
                step, args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract)})
            )[_STATE]
        except Exception as error:
            raise _DamagedError(f"it cannot be read ({_first_line(error)})") from error
        if sha256_of(state) != digest:
            raise _DamagedError("its numbers are not those that were saved")
        return state, sums

    def _check_about(self, step: int, before: Any, versions: Mapping[str, str]) -> None:
        changed = differences(before, self._about)
        if changed:
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} was made from something else:"
                + "".join(f"\n  {line}" for line in changed)
                + "\nTake the change back, use another --workdir, or delete that folder to train "
                "again."
            )
        now = package_versions()
        others = [f"{k} {v} (now {now.get(k)})" for k, v in versions.items() if now.get(k) != v]
        if others:
            say(f"the checkpoint of step {step} was made with {', '.join(others)}")

    def _set_aside(self, step: int, why: str) -> None:
        assert self._manager is not None
        folder = self._directory / str(step)
        aside = _free_name(folder.with_name(f"damaged-{step}"))
        os.replace(folder, aside)
        self._manager.reload()
        before = self._manager.latest_step()
        say(
            f"the checkpoint of step {step} is damaged: {why}; it is set aside as {aside}, and "
            + (f"that of step {before} is used" if before is not None else "there is none before")
        )

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError: the last save failed.
        """
        if self._manager is None:
            return
        manager, self._manager = self._manager, None
        with disk_errors(self._directory):
            try:
                manager.wait_until_finished()
            finally:
                manager.close()


class _DamagedError(Exception):
    """A checkpoint is not what was written."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _free_name(path: Path) -> Path:
    for number in itertools.count(2):
        if not path.exists():
            return path
        path = path.with_name(f"{path.name.partition('.')[0]}.{number}")
    raise AssertionError
