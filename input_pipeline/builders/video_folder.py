"""Videos in a folder per class, with UCF101-like split lists or a seeded split."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from input_pipeline.builders.base import PreparedVideoBuilder, Source, VideoEntry, read_options
from input_pipeline.builders.split_lists import ListedVideo, has_lists, read_split_lists
from input_pipeline.video import VideoSpec, prepare_video
from input_pipeline.video_files import VIDEO_SUFFIXES

_GROUP = re.compile(r"_(g\d+)_")


@dataclasses.dataclass(frozen=True)
class VideoFolderOptions:
    """Options of the data set; both hold only where there are no lists.

    Attributes:
      test_fraction: Share of each class's videos in the test subset, in (0, 1).
      seed: Seed of the split.
    """

    test_fraction: float = 0.25
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.test_fraction < 1:
            raise ValueError(
                f"video_folder: test_fraction is {self.test_fraction}, must lie between 0 and 1"
            )


class VideoFolder(PreparedVideoBuilder, skip_registration=True):  # type: ignore[call-arg]
    """One class a folder. Lists may be given, or lie in the folder itself."""

    name = "video_folder"

    def sources(
        self, dl_manager: tfds.download.DownloadManager
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the classes and videos as the lists, or the folders, give them."""
        del dl_manager  # Nothing to download.
        config = self.builder_config
        folder = existing_folder(config.videos, "videos")
        options = read_options(VideoFolderOptions, self.name, config.options)
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

        return lists.class_names, listed_sources(lists.splits, find, config.spec)


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
      spec: The canonical form.

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
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{folder}: needs a folder for each class, at least two")
    sources = []
    rng = np.random.default_rng(options.seed)
    for label, class_folder in enumerate(folders):
        files = sorted(
            p for p in class_folder.rglob("*") if p.is_file() and not p.name.startswith(".")
        )
        videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
        if len(videos) < len(files):
            logging.info("%s: %d files are no videos", class_folder, len(files) - len(videos))
        if len(videos) < 2:
            raise ValueError(
                f"{class_folder}: needs at least two videos, one to train, one to test"
            )
        groups: dict[str, list[pathlib.Path]] = {}
        for path in videos:
            groups.setdefault(_group(path, str(path)), []).append(path)
        if len(groups) < 2:
            raise ValueError(
                f"{class_folder}: all videos are of one group ({next(iter(groups))}), which must "
                "not be on both sides of the split; give lists, or rename them"
            )
        # Whole groups, until the share is reached; one at least is left to train on.
        wanted = max(round(options.test_fraction * len(videos)), 1)
        test: set[pathlib.Path] = set()
        for number in rng.permutation(len(groups))[:-1]:
            if len(test) < wanted:
                test.update(groups[list(groups)[number]])
        for path in videos:
            subset = "test" if path in test else "train"
            name = path.relative_to(folder).as_posix()
            sources.append(_source(path, name, label, (subset,), spec))
    return [p.name for p in folders], sources


def _source(
    path: pathlib.Path, name: str, label: int, subsets: tuple[str, ...], spec: VideoSpec
) -> Source:
    entry = VideoEntry(name, label, _group(path, name), subsets)
    return Source(entry, functools.partial(prepare_video, str(path), spec))


def _group(path: pathlib.Path, name: str) -> str:
    """Return UCF101's mark `_gNN_` in the file's name; without it every video is its own group."""
    match = _GROUP.search(path.stem)
    return match.group(1) if match else name
