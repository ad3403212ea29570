"""Few-shot training splits: K videos of each class, drawn by group or read from a list."""

import pathlib
import posixpath
import re
from collections.abc import Sequence

import numpy as np

from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.input_pipeline.datasets.split_lists import read_lines
from moclip_jax.runtime.progress import say


def choose_shots(train: Sequence[VideoEntry], shots: int, seed: int) -> list[VideoEntry]:
    """Draw `shots` videos of each class, from as many groups as there are.

    Each class has its groups, and each group its videos, in an order that depends on the seed
    and the class alone. Videos are taken from one group after the other, a second one of a group
    only when every group has given one. So the videos of a smaller K are among those of a larger.

    Args:
      train: Videos to draw from.
      shots: K, above 0. A class with fewer videos gives all of them, which is said.

    Returns:
      The videos drawn, in the order of `train`.
    """
    of_class: dict[int, dict[str, list[VideoEntry]]] = {}
    for entry in train:
        of_class.setdefault(entry.classes[0], {}).setdefault(entry.group, []).append(entry)
    chosen: set[str] = set()
    few = []
    for label, groups in sorted(of_class.items()):
        rng = np.random.default_rng((seed, label))
        turns = []
        for place, group in enumerate(rng.permutation(sorted(groups)).tolist()):
            names = sorted(entry.name for entry in groups[group])
            order = rng.permutation(names).tolist()
            turns += [(turn, place, name) for turn, name in enumerate(order)]
        chosen.update(name for _, _, name in sorted(turns)[:shots])
        if len(turns) < shots:
            few.append(f"class {label} has {len(turns)}")
    if few:
        say(f"few-shot: fewer than {shots} videos are all used: {', '.join(few)}")
    return [entry for entry in train if entry.name in chosen]


def read_shot_list(
    path: pathlib.Path, train: Sequence[VideoEntry], class_names: Sequence[str]
) -> set[str]:
    """Return the names of the training videos that a list names.

    A line is `path label`. The path is the video's name in the data set, or has its file name, with
    or without extension. The label is the name of its class or its number, in all lines from 0 or
    in all from 1; it is only compared with the data set's, and may be missing.

    Raises:
      OSError: There is no such file.
      ValueError: The list is no text or empty; names a video that the training split does not have,
        or gives it another class. The message names the line.
    """
    by_name = {entry.name: entry for entry in train}
    by_stem: dict[str, list[VideoEntry]] = {}
    for entry in train:
        by_stem.setdefault(_stem(entry.name), []).append(entry)
    labels = "|".join(map(re.escape, class_names))
    path_and_label = re.compile(rf"(.*?[^\s,])[\s,]+(\d+|{labels})")
    listed: set[str] = set()
    numbers = []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        match = path_and_label.fullmatch(line)
        name, label = match.groups() if match else (line, "")
        found = [by_name[name]] if name in by_name else by_stem.get(_stem(name), [])
        if len(found) != 1:
            raise ValueError(f"{where}: the training split has no video {name!r}")
        entry, own = found[0], found[0].classes[0]
        class_name = class_names[own]
        if label.isdecimal():
            numbers.append((where, int(label), own, entry.name))
        elif label not in ("", class_name):
            raise ValueError(f"{where}: {entry.name} is of class {class_name!r}, not {label!r}")
        listed.add(entry.name)
    if not listed:
        raise ValueError(f"{path}: lists no video")
    first = min({label - own for _, label, own, _ in numbers} & {0, 1}, default=0)
    for where, label, own, name in numbers:
        if label - own != first:
            raise ValueError(
                f"{where}: {name} is of class {own}, counted from 0, but the line says {label}"
            )
    return listed


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]
