"""Read published splits in the format of UCF101's lists.

`classInd.txt` holds a line `number Class` for each class, numbers from 1; `trainlist0N.txt` a line
`Class/file.avi number` and `testlist0N.txt` a line `Class/file.avi` for each video of split N. The
number may also follow a tab or a comma, and a path may begin with `./`.
"""

import dataclasses
import pathlib
import posixpath
import re

_NUMBER_AND_NAME = re.compile(r"(\d+)[\s,]+(.+)")
_NAME_AND_NUMBER = re.compile(r"(.*[^\s,])[\s,]+(\d+)")
_LIST = re.compile(r"(train|test)list(\d\d)\.txt")


@dataclasses.dataclass(frozen=True)
class ListedVideo:
    """One line of a list.

    Attributes:
      path: Path below the folder of the videos, 'Class/file.avi'.
      label: Position of the class, from 0.
      where: The list and line, for messages.
    """

    path: str
    label: int
    where: str


@dataclasses.dataclass(frozen=True)
class SplitLists:
    """All lists of a data set.

    Attributes:
      class_names: In the order of the labels.
      splits: For each split from 1, its lines under 'train' and 'test'.
    """

    class_names: tuple[str, ...]
    splits: tuple[dict[str, tuple[ListedVideo, ...]], ...]


def has_lists(folder: pathlib.Path) -> bool:
    """Return whether a folder holds the lists."""
    return (folder / "classInd.txt").is_file()


def read_split_lists(folder: pathlib.Path) -> SplitLists:
    """Read `classInd.txt` and every pair of lists in a folder.

    Raises:
      ValueError: A file is missing or has a wrong line; the message names the file and the line.
    """
    class_names = read_classes(folder / "classInd.txt")
    # The lists and the files spell one class of UCF101 with other capitals.
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    if len(labels) != len(class_names):
        raise ValueError(f"{folder / 'classInd.txt'}: two classes have the same name")
    found = {match.groups() for p in folder.iterdir() if (match := _LIST.fullmatch(p.name))}
    numbers = sorted({number for _, number in found})
    if numbers != [f"{n:02d}" for n in range(1, len(numbers) + 1)] or not numbers:
        raise ValueError(
            f"{folder}: needs trainlist01.txt and testlist01.txt (and 02, 03, ... for more "
            f"splits), found splits {numbers}"
        )
    splits = []
    for number in numbers:
        split = {}
        seen: dict[str, str] = {}
        for subset in ("train", "test"):
            path = folder / f"{subset}list{number}.txt"
            if (subset, number) not in found:
                raise ValueError(f"{path}: no such list, though split {number} has the other one")
            split[subset] = _read_list(path, labels, len(class_names))
            for video in split[subset]:
                key = video.path.casefold()
                if key in seen:
                    raise ValueError(
                        f"{video.where}: {video.path} is already listed at {seen[key]}"
                    )
                seen[key] = video.where
        splits.append(split)
    return SplitLists(class_names, tuple(splits))


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """Return the classes of a `classInd.txt`, a line `1 Class` each, numbered from 1.

    Raises:
      ValueError: The file is absent or empty, or a line is wrong; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it must name the classes, a line '1 Class' each")
    names: list[str] = []
    for number, line in read_lines(path):
        match = _NUMBER_AND_NAME.fullmatch(line)
        if match is None or match[1] != str(len(names) + 1):
            raise ValueError(f"{path}:{number}: must be '{len(names) + 1} Class', is {line!r}")
        names.append(match[2])
    if not names:
        raise ValueError(f"{path}: names no class")
    return tuple(names)


def _read_list(
    path: pathlib.Path, labels: dict[str, int], num_classes: int
) -> tuple[ListedVideo, ...]:
    videos = []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        listed, last = split_number(line)
        listed = normal_path(listed, where)
        class_name, slash, _ = listed.partition("/")
        if not slash:
            raise ValueError(f"{where}: must be 'Class/file', is {line!r}")
        label = labels.get(class_name.casefold())
        if label is None:
            raise ValueError(f"{where}: class {class_name!r} is not in classInd.txt")
        if last and int(last) != label + 1:
            raise ValueError(
                f"{where}: class {class_name!r} is number {label + 1} of {num_classes} in "
                f"classInd.txt, but the line says {last}"
            )
        videos.append(ListedVideo(listed, label, where))
    if not videos:
        raise ValueError(f"{path}: lists no video")
    return tuple(videos)


def split_number(line: str) -> tuple[str, str]:
    """Split a line into a name and the number after a space, tab or comma; '' if there is none."""
    match = _NAME_AND_NUMBER.fullmatch(line)
    return (match[1], match[2]) if match else (line, "")


def normal_path(listed: str, where: str) -> str:
    """Return a listed path without './'.

    Raises:
      ValueError: It does not lie below the folder of the videos; the message begins with `where`.
    """
    path = posixpath.normpath(listed)
    if path.startswith(("/", "../")):
        raise ValueError(
            f"{where}: paths are taken from the folder of the videos; write 'Class/file', not "
            f"{listed!r}"
        )
    return path


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, stripped, with their numbers from 1.

    Raises:
      ValueError: The file is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a text file") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line]
