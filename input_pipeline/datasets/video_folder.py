"""Videos in a folder per class, with UCF101-like split lists or a seeded split."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from moclip_jax.input_pipeline.datasets.data_checks import copies, warn, warn_of_data
from moclip_jax.input_pipeline.datasets.definition import (
    Source,
    VideoDataset,
    VideoEntry,
    read_options,
)
from moclip_jax.input_pipeline.datasets.split_lists import ListedVideo, has_lists, read_split_lists
from moclip_jax.input_pipeline.video.clip import VideoError, VideoSpec, read_clip
from moclip_jax.input_pipeline.video.files import describe_skipped, videos_under
from moclip_jax.runtime.progress import say

_GROUP = re.compile(r"_(g\d+)_")


@dataclasses.dataclass(frozen=True)
class VideoFolderOptions:
    """Options of the data set; the first two hold only where there are no lists.

    Attributes:
      test_fraction: Share of each class's videos in the test subset, in (0, 1).
      seed: Seed of the split.
      unlabelled: True takes every video of the folder and its subfolders to train on, as one class:
        for pretraining.
    """

    test_fraction: float = 0.25
    seed: int = 0
    unlabelled: bool = False

    def __post_init__(self):
        if not 0 < self.test_fraction < 1:
            raise ValueError(
                f"video_folder: test_fraction is {self.test_fraction}, must lie between 0 and 1"
            )


class VideoFolder(VideoDataset):
    """One class a folder. Lists may be given, or lie in the folder itself."""

    name = "video_folder"

    def sources(
        self, download: Callable[[str], str | os.PathLike]
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the classes and videos as the lists, or the folders, give them."""
        del download  # Nothing to download.
        config = self.config
        folder = existing_folder(config.videos, "videos")
        options = read_options(VideoFolderOptions, self.name, config.options)
        if options.unlabelled:
            return _unlabelled(folder, config.spec)
        if config.lists:
            lists_folder = existing_folder(config.lists, "lists")
        elif has_lists(folder):
            lists_folder = folder
        else:
            return _split_by_seed(folder, options, config.spec)
        lists = read_split_lists(lists_folder)

        def find(video: ListedVideo) -> pathlib.Path | None:
            path = folder / video.path
            return path if path.is_file() else None

        sources = listed_sources(lists.splits, find, config.spec)
        _warn(folder, lists.class_names, sources)
        return lists.class_names, sources


def _unlabelled(folder: pathlib.Path, spec: VideoSpec) -> tuple[list[str], list[Source]]:
    found, skipped = videos_under(folder)
    for line in describe_skipped(skipped):
        say(line)
    if not found:
        raise ValueError(f"{folder}: no video in it")
    paths = sorted(map(pathlib.Path, found))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return ["unlabelled"], [
        _source(path, name, 0, ("train",), spec) for path, name in zip(paths, names, strict=True)
    ]


def existing_folder(path: str, what: str) -> pathlib.Path:
    """Return a configured folder.

    Raises:
      ValueError: It is not given or does not exist.
    """
    if not path:
        raise ValueError(f"the folder of the {what} is not given")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: the folder of the {what} does not exist")
    return folder


def listed_sources(
    splits: Sequence[Mapping[str, Iterable[ListedVideo]]],
    find: Callable[[ListedVideo], pathlib.Path | None],
    spec: VideoSpec,
) -> list[Source]:
    """Join the lists of all splits into one source a video.

    Args:
      splits: For each split, the lines under 'train' and 'test'.
      find: Returns the file of a listed video, or None if there is none.

    Returns:
      Sources in the order of their first mention; a split that does not list a video has 'unused'.

    Raises:
      ValueError: A listed file does not exist; the message names the first few.
    """
    subsets: dict[pathlib.Path, list[str]] = {}
    first: dict[pathlib.Path, ListedVideo] = {}
    missing: dict[str, ListedVideo] = {}
    for number, split in enumerate(splits):
        for subset, videos in split.items():
            for video in videos:
                path = find(video)
                if path is None:
                    missing.setdefault(video.path, video)
                    continue
                if first.setdefault(path, video).label != video.label:
                    raise ValueError(
                        f"{video.where}: {video.path} has another class at {first[path].where}"
                    )
                subsets.setdefault(path, ["unused"] * len(splits))[number] = subset
    if missing:
        some = "; ".join(f"{video.path} ({video.where})" for video in list(missing.values())[:3])
        raise ValueError(f"the lists name {len(missing)} videos that are not there: {some}")
    return [
        _source(path, first[path].path, first[path].label, tuple(subsets[path]), spec)
        for path in subsets
    ]


def _split_by_seed(
    folder: pathlib.Path, options: VideoFolderOptions, spec: VideoSpec
) -> tuple[list[str], list[Source]]:
    sources = []
    class_names: list[str] = []
    rng = np.random.default_rng(options.seed)
    skipped: list[VideoError] = []
    for class_folder in sorted(folder.iterdir()):
        if class_folder.name.startswith("."):
            skipped.append(VideoError(class_folder, "hidden"))
            continue
        if not class_folder.is_dir():
            skipped.append(VideoError(class_folder, "not in the folder of a class"))
            continue
        found, left_out = videos_under(class_folder)
        skipped += left_out
        # The order of paths as objects, which the seeded split has always had.
        videos = sorted(map(pathlib.Path, found))
        if not videos:
            warn(f"{class_folder}: no video in it, so it is no class")
            continue
        groups = _groups(folder, videos)
        members: dict[str, list[pathlib.Path]] = {}
        for path in videos:
            members.setdefault(groups[path], []).append(path)
        # Whole groups are taken until the share is reached; at least one is left for training.
        wanted = max(round(options.test_fraction * len(videos)), 1)
        test: set[pathlib.Path] = set()
        for number in rng.permutation(len(members))[:-1]:
            if len(test) < wanted:
                test.update(members[list(members)[number]])
        for path in videos:
            subset = "test" if path in test else "train"
            name = path.relative_to(folder).as_posix()
            sources.append(
                _source(path, name, len(class_names), (subset,), spec, group=groups[path])
            )
        class_names.append(class_folder.name)
    for line in describe_skipped(skipped):
        say(line)
    if len(class_names) < 2:
        raise ValueError(f"{folder}: needs a folder with videos for each class, at least two")
    if all(source.entry.subsets == ("train",) for source in sources):
        raise ValueError(
            f"{folder}: nothing to test on, as each class has one video, or videos of one group "
            "(_gNN_ in their names); add videos to at least one class, or give lists"
        )
    _warn(folder, class_names, sources)
    return class_names, sources


def _groups(folder: pathlib.Path, videos: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Return the group of each video: its mark, or its own; copies are in one."""
    groups = {path: group_of(path.relative_to(folder).as_posix()) for path in videos}
    for same in copies(videos):
        first = groups[same[0]]
        merged = {groups[path] for path in same}
        groups = {path: first if group in merged else group for path, group in groups.items()}
    return groups


def _warn(folder: pathlib.Path, class_names: Sequence[str], sources: Sequence[Source]) -> None:
    entries = [source.entry for source in sources]
    paths = {entry.name: folder / entry.name for entry in entries}
    warn_of_data(class_names, entries, paths, copies(paths.values()))


def _source(
    path: pathlib.Path,
    name: str,
    label: int,
    subsets: tuple[str, ...],
    spec: VideoSpec,
    group: str = "",
) -> Source:
    entry = VideoEntry(name, label, group or group_of(name), subsets)
    return Source(entry, functools.partial(read_clip, str(path), spec))


def group_of(name: str) -> str:
    """Return UCF101's mark `_gNN_` in a file's name; without it every video is its own group."""
    match = _GROUP.search(pathlib.PurePosixPath(name).stem)
    return match.group(1) if match else name
