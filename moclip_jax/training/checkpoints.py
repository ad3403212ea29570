"""Checkpoints of training and the markers of finished stages, through Orbax and JSON."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from moclip_jax.runtime import distributed
from moclip_jax.runtime.progress import say
from moclip_jax.training.fingerprint import sha256_of

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
                multiprocessing_options=_alone(),
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
            "versions": dict(distributed.package_versions()),
            "sums": dict(sums),
            "sha256": sha256_of(state),
        }
        with _disk_errors(self._directory):
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
            with _disk_errors(self._directory):
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
        differences = differing(before, self._about)
        if differences:
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} was made from something else:"
                + "".join(f"\n  {line}" for line in differences)
                + "\nTake the change back, use another --workdir, or delete that folder to train "
                "again."
            )
        now = distributed.package_versions()
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
        with _disk_errors(self._directory):
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


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Orbax and TensorStore report a disk's errors in types of their own; here they are OSError."""
    try:
        yield
    except Exception as error:
        text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        for number in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT, errno.EACCES):
            if os.strerror(number).lower() in text.lower():
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax then waits for no other process: here one process writes, and each reads by itself."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, replacing what stood at `path`.

    Process 0 writes. What stood there stays until the new one is whole.

    Raises:
      OSError: the disk is full or cannot be written.
    """
    if not distributed.is_main_process():
        return
    path = path.absolute()
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    with _disk_errors(path):
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
            checkpointer.save(new, args=ocp.args.StandardSave(jax.tree.map(np.asarray, tree)))
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old, ignore_errors=True)


def load_tree(path: Path, like: Any) -> Any:
    """Reads a tree written by `save_tree`, on any number of devices and processes.

    Args:
      path: the checkpoint.
      like: tree of the same structure with the shapes and dtypes to expect.

    Returns:
      The tree, on the first device of each process.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      ValueError: it does not have the structure, shapes or dtypes of `like`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
        try:
            return checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(abstract))
        except ValueError as error:
            raise ValueError(
                f"{path} does not fit the networks that this version builds for its settings; it "
                f"was damaged, or written by another version: {str(error).splitlines()[0]}"
            ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON so that the file is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


class StageRecord:
    """What a workdir remembers of one stage: the settings it ran with, and whether it ended.

    Args:
      workdir: the run's folder.
      stage: its name.
      settings: everything the stage's result depends on, as nested JSON values.
      previous: the record of the stage before it, whose result it is made from; None for the first.
    """

    def __init__(
        self,
        workdir: Path,
        stage: str,
        settings: dict[str, Any],
        previous: "StageRecord | None" = None,
    ):
        self._previous = previous
        self._path = workdir / stage / "stage.json"
        self._stage = stage
        # Through JSON once, so that tuples compare equal to the lists read back.
        self._settings = json.loads(json.dumps(settings))

    def is_done(self) -> bool:
        """Tells whether the stage ended with these settings.

        Raises:
          ValueError: it was begun or ended with others (the message names each that differs), or it
            was made from a result of the stage before that was since made again or deleted.
        """
        if not self._path.exists():
            return False
        record = json.loads(self._path.read_text())
        changed = differing(record["settings"], self._settings)
        if changed:
            raise ValueError(
                f"stage '{self._stage}' in {self._path.parent} was run with other settings:"
                + "".join(f"\n  {line}" for line in changed)
                + "\nUse another --workdir, take the change back, or delete that folder (and those "
                "of the stages after it) to have it made again."
            )
        if record.get("made_from") != self._source():
            raise ValueError(
                f"stage '{self._stage}' was made from a result of the stage before it that is no "
                f"longer there; delete {self._path.parent} (and the stages after it) to make it "
                "again"
            )
        return record["done"]

    def begin(self) -> None:
        """Notes that the stage runs with these settings."""
        self._write(done=False)

    def finish(self) -> None:
        """Notes that the stage's result is complete."""
        self._write(done=True)

    def result(self) -> str:
        """Returns a name of this very result, another each time the stage is made; '' if none."""
        if not self._path.exists():
            return ""
        return json.loads(self._path.read_text()).get("result", "")

    def _source(self) -> str:
        return "" if self._previous is None else self._previous.result()

    def _write(self, done: bool) -> None:
        record = {
            "done": done,
            "result": uuid.uuid4().hex if done else "",
            "made_from": self._source(),
            "settings": self._settings,
        }
        write_json(self._path, record)


def check_weights(path: Path, weights: dict[str, dict[str, str]], *, note: bool) -> None:
    """Compares weights with those that a result on disk was made with.

    Args:
      path: JSON file beside that result.
      weights: name of a network -> as `frozen` gives.
      note: True writes the file if there is none yet.

    Raises:
      ValueError: a network's weights are others; the message names it, and both sources.
    """
    if not path.exists():
        if note:
            write_json(path, weights)
        return
    before = json.loads(path.read_text())
    changed = [name for name in weights if before[name]["sha256"] != weights[name]["sha256"]]
    if changed:
        lines = "".join(
            f"\n  {name}: was {before[name]['source']} (sha256 {before[name]['sha256'][:12]}), is "
            f"{weights[name]['source']} (sha256 {weights[name]['sha256'][:12]})"
            for name in changed
        )
        raise ValueError(
            f"{path.parent} was made with other weights:{lines}\nPut the weights back, or delete "
            "that folder and those of the stages after it to have them made again."
        )


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a line for each nested value that is not the same, with both values."""
    old, new = flat_settings(dict(before)), flat_settings(dict(now))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, is_now = old.get(key, "(not set)"), new.get(key, "(not set)")
        if was == is_now:
            continue
        if isinstance(was, list) and isinstance(is_now, list) and max(len(was), len(is_now)) > 8:
            # Of a long list (the classes), where it first differs says more than all of it.
            pairs = itertools.zip_longest(was, is_now, fillvalue="(none)")
            place, (was, is_now) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
            key = f"{key}[{place}]"
        lines.append(f"{key}: was {was!r}, is {is_now!r}")
    return lines


def flat_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of nested sections under their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
