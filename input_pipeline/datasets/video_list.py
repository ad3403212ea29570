"""Videos that lists name: CSV files, and lists of lines `path label` as Kinetics users have them.

`config.dataset.lists` is a file, or a folder with one list for each side, told by `train`, `val` or
`test` in their names. A CSV file has a header:

* `path`, `label`, and if wanted `split` and `group` (a person or scene, kept on one side);
* Kinetics' own: `label`, `youtube_id`, `time_start`, `time_end`, `split`. The file is
  `ID_SSSSSS_EEEEEE.mp4`, times in seconds with leading zeros, as its downloaders name it.

Other lists have lines `path label`, as mmaction2 takes them. Labels are names or, if all are
numbers, positions from 0, whose names are the lines of a file `classes.txt` in the lists' folder.
With the option `multi_label` a video may have several, separated by `;` or `|`; the column of a CSV
file is then called `labels`.

Videos for validation are those to test on where there are none for testing: Kinetics publishes no
labels of its own. Paths count from `config.dataset.videos` or its folder of the label; they may be
absolute, or addresses that fsspec opens, such as `s3://bucket/video.mp4`.
"""

import csv
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

import fsspec

from moclip_jax.input_pipeline.datasets.data_checks import copies, warn, warn_of_data
from moclip_jax.input_pipeline.datasets.definition import (
    Source,
    VideoDataset,
    VideoEntry,
    read_options,
)
from moclip_jax.input_pipeline.datasets.split_lists import read_lines
from moclip_jax.input_pipeline.datasets.video_folder import group_of
from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec, read_clip

_SIDES = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_SIDE_IN_NAME = re.compile(r"train|val|test", re.IGNORECASE)
_PATH_AND_LABEL = re.compile(r"(.*[^\s,])[\s,]+(\S+)")
_SEPARATOR = re.compile(r"[;|]")
_CLASSES = "classes.txt"
_TIMES = ("time_start", "time_end")


@dataclasses.dataclass(frozen=True)
class VideoListOptions:
    """Options of the data set.

    Attributes:
      missing: `error`, or `skip` to leave out local files that are not there, as of Kinetics, whose
        videos disappear from where they are downloaded.
      multi_label: Whether a video may have several labels.
    """

    missing: str = "error"
    multi_label: bool = False

    def __post_init__(self):
        if self.missing not in ("error", "skip"):
            raise ValueError(f"video_list: missing is {self.missing!r}, must be 'error' or 'skip'")


@dataclasses.dataclass(frozen=True)
class _Row:
    path: str
    labels: tuple[str, ...]
    side: str
    group: str
    where: str


class VideoList(VideoDataset):
    """The videos that the lists name, wherever they are."""

    name = "video_list"

    def sources(
        self, download: Callable[[str], str | os.PathLike]
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the classes and videos of the lists."""
        del download  # Addresses are opened where their videos are prepared.
        config = self.config
        options = read_options(VideoListOptions, self.name, config.options)
        lists = pathlib.Path(config.lists) if config.lists else None
        if lists is None or not lists.exists():
            raise ValueError(
                f"video_list: config.dataset.lists='{config.lists}' is neither a list nor a folder "
                "of lists"
            )
        rows = list(_read_rows(lists, options.multi_label))
        class_names, positions = _classes(rows, lists if lists.is_dir() else lists.parent)
        tested = any(row.side == "test" for row in rows)
        subsets = {"train": "train", "test": "test", "val": "unused" if tested else "test"}
        sources, files, missing = {}, {}, []
        for row in rows:
            if row.path in sources:
                raise ValueError(f"{row.where}: {row.path} is listed twice")
            found: str | pathlib.Path | None = row.path
            if "://" in row.path:
                _check_protocol(row)
            else:
                found = _find(pathlib.Path(config.videos), row)
            if found is None:
                missing.append(f"{row.path} ({row.where})")
                continue
            if isinstance(found, pathlib.Path):
                files[row.path] = found
            group = row.group or group_of(row.path)
            classes = tuple(positions[label] for label in row.labels)
            label = classes if options.multi_label else classes[0]
            entry = VideoEntry(row.path, label, group, (subsets[row.side],))
            sources[row.path] = Source(entry, functools.partial(_read, str(found), config.spec))
        if missing:
            told = f"the lists name {len(missing)} videos that are not there: "
            told += "; ".join(missing[:3])
            if options.missing == "error":
                raise ValueError(f"{told}; or set config.dataset.options.missing=skip")
            warn(told)
        if not sources:
            raise ValueError(f"{lists}: names no video that is there")
        entries = [source.entry for source in sources.values()]
        warn_of_data(class_names, entries, files, copies(files.values()))
        return class_names, list(sources.values())


def _read_rows(lists: pathlib.Path, multi_label: bool) -> Iterator[_Row]:
    paths = [lists]
    if lists.is_dir():
        paths = sorted(
            path
            for path in lists.iterdir()
            if path.suffix in (".csv", ".txt") and _SIDE_IN_NAME.search(path.stem)
        )
        if not paths:
            raise ValueError(f"{lists}: has no .csv or .txt with train, val or test in its name")
    for path in paths:
        found = _SIDE_IN_NAME.search(path.stem)
        side = found[0].lower() if found else ""
        read = _read_csv if path.suffix == ".csv" else _read_lines
        yield from read(path, side, multi_label)


def _labels(text: str, multi_label: bool) -> tuple[str, ...]:
    """Return the labels of a video, each once."""
    if not multi_label:
        return (text,)
    return tuple(dict.fromkeys(part.strip() for part in _SEPARATOR.split(text) if part.strip()))


def _read_lines(path: pathlib.Path, side: str, multi_label: bool) -> Iterator[_Row]:
    if not side:
        raise ValueError(f"{path}: its name must say train, val or test; or give a .csv with split")
    for number, line in read_lines(path):
        match = _PATH_AND_LABEL.fullmatch(line)
        labels = _labels(match[2] if match else "", multi_label)
        if match is None or not any(labels):
            raise ValueError(f"{path}:{number}: must be 'path label', is {line!r}")
        yield _Row(match[1], labels, side, "", f"{path}:{number}")


def _read_csv(path: pathlib.Path, side: str, multi_label: bool) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a text file") from error
    reader = csv.DictReader(text.splitlines(keepends=True))
    fields = reader.fieldnames or ()
    kinetics = {"youtube_id", *_TIMES} <= set(fields)
    column = "labels" if multi_label else "label"
    if column not in fields or not (kinetics or "path" in fields):
        raise ValueError(
            f"{path}: its first line must name the columns path and {column} (or Kinetics' own), "
            f"is {','.join(fields)!r}; labels is the column of "
            "config.dataset.options.multi_label=True"
        )
    for row in reader:
        where = f"{path}:{reader.line_num}"
        name, labels = row.get("path"), _labels(row[column] or "", multi_label)
        if kinetics:
            # A line that is cut off has None in its last columns.
            times = [(row[field] or "").strip() for field in _TIMES]
            if not all(time.isdecimal() for time in times):
                raise ValueError(f"{where}: times are {times}, must be whole seconds")
            name = "_".join((row["youtube_id"], *(f"{int(time):06d}" for time in times))) + ".mp4"
        own = (row.get("split") or side).lower()
        if own not in _SIDES:
            raise ValueError(f"{where}: split is {own!r}, must be train, val or test")
        if not name or not any(labels):
            raise ValueError(f"{where}: the path or the label is missing")
        yield _Row(name, labels, _SIDES[own], row.get("group") or "", where)


def _classes(rows: Sequence[_Row], folder: pathlib.Path) -> tuple[list[str], dict[str, int]]:
    """Return the classes, and the position of each label of the lists among them."""
    labels = sorted({label for row in rows for label in row.labels})
    if len(labels) < 2:
        raise ValueError(f"{folder}: the lists need at least two classes, have {labels}")
    if not all(label.isdecimal() for label in labels):
        return labels, {label: position for position, label in enumerate(labels)}
    path = folder / _CLASSES
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; it must name the classes that the numbers stand for"
        )
    names = [line for _, line in read_lines(path)]
    for row in rows:
        last = max(row.labels, key=int)
        if int(last) >= len(names):
            raise ValueError(f"{row.where}: {path} has {len(names)} classes, from 0: not {last}")
    return names, {label: int(label) for label in labels}


def _check_protocol(row: _Row) -> None:
    """Raise ValueError for an address that nothing installed here opens, before any work."""
    try:
        fsspec.get_filesystem_class(row.path.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise ValueError(f"{row.where}: {row.path} cannot be opened here: {error}") from error


def _find(videos: pathlib.Path, row: _Row) -> pathlib.Path | None:
    for path in (videos / row.path, videos / row.labels[0] / row.path):
        if path.is_file():
            return path
    return None


def _read(path: str, spec: VideoSpec) -> Clip:
    """As `read_clip`, also of an address, which is first copied to a temporary file."""
    if "://" not in path:
        return read_clip(path, spec)
    with tempfile.NamedTemporaryFile(suffix=pathlib.PurePosixPath(path).suffix) as local:
        try:
            with fsspec.open(path, "rb") as remote:
                shutil.copyfileobj(remote, local)
            local.flush()
            return read_clip(local.name, spec)
        except VideoError as error:
            raise VideoError(path, error.reason) from error
        except OSError as error:
            raise VideoError(path, f"cannot be read: {error}") from error
