"""What defines a data set: its class names, its videos, and the settings they are prepared with.

Worker processes import this module, so it needs neither TensorFlow nor TFDS.
"""

import abc
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec

LIMITS_IN_DIGEST = {
    "max_frames": 10_000,
    "max_bytes": 4 * 2**30,
    "max_pixels": 8192 * 4608,
    "max_seconds": 600.0,
}
"""Limits with which every digest is computed, whatever the configured ones: version 2.0.0 of the
format included them, at these defaults, and its folders must be found."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One video of a data set, whether or not it could be prepared.

    Attributes:
      name: Unique name, also the key of its record.
      label: Position of its class in the data set's class names; of a data set with several labels
        a video, the positions of all its classes.
      group: Videos of one group show the same scene or person and must stay on one side of a split.
      subsets: For each published split, in order, 'train', 'test' or 'unused'.
      num_frames: Frames of the video; 0 if it was rejected.
      error: Why it was rejected, with its path; empty if it was not.
    """

    name: str
    label: int | tuple[int, ...]
    group: str
    subsets: tuple[str, ...]
    num_frames: int = 0
    error: str = ""

    @property
    def classes(self) -> tuple[int, ...]:
        """The positions of its classes; one unless the data set has several labels a video."""
        return self.label if isinstance(self.label, tuple) else (self.label,)


@dataclasses.dataclass(frozen=True)
class Source:
    """A video still to be prepared.

    Attributes:
      entry: Its line in the index.
      prepare: Returns the clip or raises `VideoError`; must pickle, for the worker processes.
    """

    entry: VideoEntry
    prepare: Callable[[], Clip]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DatasetConfig:
    """The settings of a data set.

    Attributes:
      spec: How each video is brought to the canonical form.
      videos: Folder of the video files; empty where the data set needs none.
      lists: Folder of the split lists; empty where the data set needs none.
      options: Further options of the data set.
    """

    spec: VideoSpec = dataclasses.field(default_factory=VideoSpec)
    videos: str = ""
    lists: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in ("videos", "lists"):
            path = getattr(self, field)
            absolute = os.path.abspath(os.path.expanduser(path)) if path else ""
            object.__setattr__(self, field, absolute)

    @property
    def made_from(self) -> dict[str, Any]:
        """What the records depend on, as JSON values.

        Limits are not part of it: they decide which videos are rejected, not what a record holds.
        """
        return {
            "spec": dataclasses.asdict(self.spec) | LIMITS_IN_DIGEST,
            "videos": self.videos,
            "lists": self.lists,
            "options": dict(self.options),
        }

    @property
    def folder_name(self) -> str:
        """Name of the prepared data's folder: the frame size and a digest of `made_from`."""
        made_from = json.dumps(self.made_from, sort_keys=True).encode()
        digest = hashlib.sha256(made_from).hexdigest()[:12]
        return f"{self.spec.width}x{self.spec.height}-{digest}"


class VideoDataset(abc.ABC):
    """A data set of videos, described and not yet prepared.

    Attributes:
      name: Name of its folder of prepared data.
      config: Its settings.
    """

    name: ClassVar[str]

    def __init__(self, config: DatasetConfig):
        self.config = config

    @abc.abstractmethod
    def sources(
        self, download: Callable[[str], str | os.PathLike]
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the class names, in the order of the labels, and every video of the data set.

        Args:
          download: Downloads an archive, unpacks it, and returns its folder.

        Raises:
          ValueError: The files or options that describe the data set are wrong.
        """


def source_digest(*folders: str, hidden: bool = False) -> str:
    """Return a digest of the names and sizes of all files in some folders.

    Args:
      *folders: Local folders, or single files; '' for none.
      hidden: Whether hidden files count, and those in hidden folders. They are no part of a data
        set, and come and go with file browsers and editors.

    Returns:
      A hexadecimal digest; '' if any of them does not exist (any more).
    """
    digest = hashlib.sha256()
    for folder in folders:
        if folder and not os.path.exists(folder):
            return ""
        if os.path.isfile(folder):
            digest.update(pathlib.Path(folder).read_bytes())
            continue
        paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file()) if folder else []
        for path in paths:
            name = path.relative_to(folder)
            if hidden or not any(part.startswith(".") for part in name.parts):
                line = f"{name.as_posix()} {path.stat().st_size}\n"
                digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_options(kind: type[_T], dataset: str, options: Mapping[str, Any]) -> _T:
    """Return a data set's options as the dataclass that describes them.

    Raises:
      ValueError: An option is unknown, or has a value that the dataclass does not allow.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{dataset}: unknown options {unknown}; known are {sorted(known)}")
    return kind(**options)
