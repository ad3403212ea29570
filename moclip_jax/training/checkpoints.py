"""Save and restore the state of training, with Orbax."""

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
# Score of a checkpoint between two evaluations: training resumes from it, but it is never the best.
NO_SCORE = -1.0

_STATE, _ABOUT = "state", "about"


class TrainingCheckpoints:
    """The two newest checkpoints of a trained stage, to resume from, and its two best.

    Only the main process writes and reads; the state is replicated on every device, so the other
    processes receive it over the network. Checkpoints are written in the background.

    Each checkpoint holds the state and, as JSON, what it was made from, the versions of the
    packages, the sums of the epoch so far, and the SHA-256 of the state, which is verified when the
    checkpoint is read.
    """

    def __init__(self, directory: Path, about: Mapping[str, Any] | None = None):
        """Open the checkpoints of a folder.

        Args:
          directory: Folder of the checkpoints; made if absent.
          about: Nested JSON values that must be equal to resume from a checkpoint: `config`,
            `class_names`, `preprocessing`, `weights` (frozen ones, by source and hash).
        """
        self._directory = directory.absolute()
        # Converted to JSON and back, so that tuples compare equal to the lists of the file.
        self._about = json.loads(json.dumps(dict(about or {})))
        self._manager = self._open() if distributed.is_main_process() else None

    def _open(self) -> ocp.CheckpointManager:
        self._directory.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                # Removes what a killed run left half written.
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
        """Save `state` under `step`, in the background.

        Args:
          state: Tree of arrays, replicated on every device.
          score: The checkpoint with the highest score is the best.
          sums: Sums over the steps of the current epoch; empty at its end.

        Raises:
          OSError: This or the previous save failed (a full disk); earlier checkpoints are kept.
        """
        if self._manager is None:
            return
        # A copy, because the next step overwrites the state in place.
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
        """Return step, state and sums of the newest complete checkpoint; None if there is none.

        A damaged checkpoint is renamed, which is logged, and the one before it is read.

        Args:
          like: Tree of the structure, shapes and dtypes of the state.

        Raises:
          ValueError: It was made from another config, other classes or other weights.
        """
        return self._restore(like, lambda manager: max(manager.all_steps(), default=None))

    def restore_best(self, like: Any) -> tuple[int, Any, dict[str, float]] | None:
        """Return step, state and sums of the checkpoint with the best score; None if none."""
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

        result = distributed.run_on_main(read)
        if result is None:
            return None
        step, sums = result
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
        # Orbax raises errors of many types for a damaged file.
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
            raise _DamagedError("its SHA-256 is not that of the saved state")
        return state, sums

    def _check_about(self, step: int, before: Any, versions: Mapping[str, str]) -> None:
        changed = differences(before, self._about)
        if changed:
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} was made from something else:"
                + "".join(f"\n  {line}" for line in changed)
                + "\nRevert the change, use another --workdir, or delete that folder to train "
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
            f"the checkpoint of step {step} is damaged: {why}; it is renamed to {aside}, and "
            + (f"that of step {before} is used" if before is not None else "there is none before")
        )

    def close(self) -> None:
        """Wait until everything is on disk.

        Raises:
          OSError: The last save failed.
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
    """A checkpoint is not what was written, or is incomplete."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _free_name(path: Path) -> Path:
    for number in itertools.count(2):
        if not path.exists():
            return path
        path = path.with_name(f"{path.name.partition('.')[0]}.{number}")
    raise AssertionError
