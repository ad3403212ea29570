"""Check a user's own videos for copies and unbalanced classes, and warn before training."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.runtime.progress import say

# Classes are unbalanced if one has this many times the training videos of another.
_UNBALANCED = 4
_CHUNK = 1 << 20


def warn(sentence: str) -> None:
    """Log a warning about the data; the run continues."""
    say(f"warning: {sentence}")


def copies(paths: Iterable[pathlib.Path]) -> list[list[pathlib.Path]]:
    """Return the files that have the same content, in groups of two or more.

    Only files of equal size are read. Empty files are not counted as copies.
    """
    by_size = collections.defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size].append(path)
    by_content = collections.defaultdict(list)
    for size, same_size in by_size.items():
        if size and len(same_size) > 1:
            for path in same_size:
                by_content[_digest(path)].append(path)
    return [same for same in by_content.values() if len(same) > 1]


def warn_of_data(
    class_names: Sequence[str],
    entries: Sequence[VideoEntry],
    paths: Mapping[str, pathlib.Path],
    same: Sequence[Sequence[pathlib.Path]],
) -> None:
    """Warn of untrained, untested and unbalanced classes, and of copies.

    `paths` has the file of each video by name, `same` the files of equal content (`copies`).
    """
    names = {path: name for name, path in paths.items()}
    label_of = {entry.name: entry.classes for entry in entries}
    for split in range(len(entries[0].subsets)):
        where = f" in split {split + 1}" if len(entries[0].subsets) > 1 else ""
        counts = {
            subset: collections.Counter(
                label for e in entries if e.subsets[split] == subset for label in e.classes
            )
            for subset in ("train", "test")
        }
        _warn_of_counts(class_names, counts["train"], counts["test"], where)
        subset_of = {e.name: e.subsets[split] for e in entries}
        across = []
        for group in same:
            sides = {subset_of[names[path]]: names[path] for path in group}
            if {"train", "test"} <= sides.keys():
                across.append((sides["train"], sides["test"]))
        if across:
            warn(
                f"{len(across)} test videos{where} are copies of training videos, such as "
                f"{across[0][1]} of {across[0][0]}; the accuracy will be too high: list each once"
            )
    for group in same:
        classes = sorted({class_names[label] for path in group for label in label_of[names[path]]})
        if len({label_of[names[path]] for path in group}) > 1:
            warn(
                f"the same video is in the classes {', '.join(classes)}: "
                f"{', '.join(names[path] for path in group)}; keep it in one"
            )


def _warn_of_counts(
    class_names: Sequence[str], train: Mapping[int, int], test: Mapping[int, int], where: str
) -> None:
    for label, name in enumerate(class_names):
        if not train.get(label):
            warn(f"class '{name}' has no training video{where}, so it will never be predicted")
        if not test.get(label):
            warn(
                f"class '{name}' has no test video{where}: the accuracy will say nothing of it; "
                "two videos of a class are the least for both sides"
            )
    trained = {label: count for label, count in train.items() if count}
    if trained:
        most, least = max(trained, key=trained.__getitem__), min(trained, key=trained.__getitem__)
        if trained[most] >= _UNBALANCED * trained[least]:
            warn(
                f"classes are unbalanced{where}: '{class_names[most]}' has {trained[most]} "
                f"training videos and '{class_names[least]}' {trained[least]}; the model will lean "
                "to the former"
            )


def _digest(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
