"""What a workdir remembers of each stage: its settings, its weights, and whether it is done."""

import itertools
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from moclip_jax.runtime.files import write_json


class StageRecord:
    """The file `WORKDIR/STAGE/stage.json`: the settings of a stage, and whether it is done."""

    def __init__(
        self,
        workdir: Path,
        stage: str,
        settings: dict[str, Any],
        previous: "StageRecord | None" = None,
    ):
        """Describe a stage; nothing is read or written yet.

        Args:
          settings: All that its result depends on, as nested JSON values.
          previous: Record of the stage that its input comes from; None for the first stage.
        """
        self._previous = previous
        self._path = workdir / stage / "stage.json"
        self._stage = stage
        # Converted to JSON and back, so that tuples compare equal to the lists of the file.
        self._settings = json.loads(json.dumps(settings))

    def is_done(self) -> bool:
        """Return whether the stage was finished with these settings.

        Raises:
          ValueError: It was started with other settings (the message names each difference), or the
            result of the previous stage that it was made from was deleted or made again.
        """
        if not self._path.exists():
            return False
        record = json.loads(self._path.read_text())
        changed = differences(record["settings"], self._settings)
        if changed:
            raise ValueError(
                f"stage '{self._stage}' in {self._path.parent} was run with other settings:"
                + "".join(f"\n  {line}" for line in changed)
                + "\nUse another --workdir, revert the change, or delete that folder (and those "
                "of the later stages) to run it again."
            )
        if record.get("made_from") != self._source():
            raise ValueError(
                f"stage '{self._stage}' was made from a result of the previous stage that no "
                f"longer exists; delete {self._path.parent} (and the later stages) to run it again"
            )
        return record["done"]

    def begin(self) -> None:
        """Record that the stage is running with these settings."""
        self._write(done=False)

    def finish(self) -> None:
        """Record that the stage is done."""
        self._write(done=True)

    def result(self) -> str:
        """Return the identifier of this result, new each time the stage is run; '' if not done."""
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
    """Compare the frozen weights' fingerprints with those in a JSON file beside a result.

    `note` writes the file if it does not exist.

    Raises:
      ValueError: The weights of a network differ; the message names it and both sources.
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
            f"{path.parent} was made with other weights:{lines}\nRestore the weights, or delete "
            "that folder and those of the later stages to run them again."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each nested value that differs, with both values."""
    old, new = (flatten_dict(dict(settings), sep=".") for settings in (before, now))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, is_now = old.get(key, "(not set)"), new.get(key, "(not set)")
        if was == is_now:
            continue
        if isinstance(was, list) and isinstance(is_now, list) and max(len(was), len(is_now)) > 8:
            # Of a long list, such as the class names, the first difference is enough.
            pairs = itertools.zip_longest(was, is_now, fillvalue="(none)")
            place, (was, is_now) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
            key = f"{key}[{place}]"
        lines.append(f"{key}: was {was!r}, is {is_now!r}")
    return lines
