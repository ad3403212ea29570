"""Checkpoints of training and the markers of finished stages, through Orbax and JSON."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from moclip_jax.sharding import make_mesh

SCORE = "score"


class TrainingCheckpoints:
    """The newest checkpoint of a trained stage, to go on from, and its best, to keep.

    Args:
      directory: where the checkpoints lie; made if absent.
    """

    def __init__(self, directory: Path):
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                create=True,
                best_fn=lambda metrics: metrics[SCORE],
                best_mode="max",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(1),
                        checkpoint_managers.BestN(
                            get_metric_fn=lambda metrics: metrics[SCORE], n=1
                        ),
                    ]
                ),
            ),
        )

    def save(self, step: int, state: Any, score: float) -> None:
        """Saves `state` under `step`, in the background; `score` decides which is the best."""
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics={SCORE: score})

    def latest_step(self) -> int | None:
        """Returns the newest saved step, or None if nothing was saved."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the saved step with the highest score, or None if nothing was saved."""
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state saved under `step`, shaped, typed and placed as the tree `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, replacing what stood at `path`."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree, force=True)


def load_tree(path: Path, like: Any) -> Any:
    """Reads a tree written by `save_tree`, on any number of devices.

    Args:
      path: the checkpoint.
      like: tree of the same structure with the shapes and dtypes to expect.

    Returns:
      The tree, on the first device; in a run of several processes, whole on every device.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      ValueError: it does not have the structure, shapes or dtypes of `like`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    sharding: jax.sharding.Sharding
    if jax.process_count() == 1:
        sharding = SingleDeviceSharding(jax.devices()[0])
    else:
        sharding = NamedSharding(make_mesh(), PartitionSpec())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(path.absolute(), abstract)
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
        before, now = flat_settings(record["settings"]), flat_settings(self._settings)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            lines = [
                f"  {key}: was {before.get(key, '(not set)')!r}, is {now.get(key, '(not set)')!r}"
                for key in changed
            ]
            raise ValueError(
                f"stage '{self._stage}' in {self._path.parent} was run with other settings:\n"
                + "\n".join(lines)
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


def flat_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of nested sections under their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
