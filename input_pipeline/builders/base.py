"""What the TFDS builders share: features, the index of all videos, and the pool of workers."""

import abc
import collections
import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from input_pipeline.builders.motion_features import record_features, record_values
from input_pipeline.interrupts import start_deaf_to_ctrl_c
from input_pipeline.progress import Progress
from input_pipeline.video import PreparedVideo, VideoError, VideoSpec

SPLIT = "videos"
"""The only TFDS split; its name for everything, 'all', is reserved there."""


_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One video of a data set, whether or not it could be prepared.

    Attributes:
      name: Unique name, also the key of its example.
      label: Position of its class in the data set's class names.
      group: Videos of one group show the same scene or person and must stay on one side of a split.
      subsets: For each published split, in order, 'train', 'test' or 'unused'.
      num_frames: Frames of the video; 0 if it could not be prepared.
      error: Why it could not be prepared, with its path; empty if it could.
    """

    name: str
    label: int
    group: str
    subsets: tuple[str, ...]
    num_frames: int = 0
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """A video still to be prepared.

    Attributes:
      entry: Its line in the index.
      prepare: Makes the prepared video or raises `VideoError`; must pickle, for the workers.
    """

    entry: VideoEntry
    prepare: Callable[[], PreparedVideo]


@dataclasses.dataclass(eq=False, kw_only=True)
class PreparationConfig(tfds.core.BuilderConfig):
    """What a prepared data set is made from.

    Attributes:
      spec: How each video is brought to the canonical form.
      videos: Folder of the video files; empty where the builder needs none.
      lists: Folder of the split lists; empty where the builder needs none.
      options: Further options of the builder.
      num_workers: Processes that prepare videos; 0 for one a core. Not part of the data.
    """

    spec: VideoSpec = dataclasses.field(default_factory=VideoSpec)
    videos: str = ""
    lists: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_workers: int = 0


def source_digest(*folders: str) -> str:
    """Return a digest of the names and sizes of all files in some folders.

    Args:
      *folders: Local folders; '' for none.

    Returns:
      A hexadecimal digest; '' if any of the folders does not exist (any more).
    """
    digest = hashlib.sha256()
    for folder in folders:
        if folder and not os.path.isdir(folder):
            return ""
        paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file()) if folder else []
        for path in paths:
            line = f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_options(kind: type[_T], data_set: str, options: Mapping[str, Any]) -> _T:
    """Return a data set's options as the dataclass that describes them.

    Raises:
      ValueError: An option is unknown, or has a value that the dataclass refuses.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{data_set}: unknown options {unknown}; known are {sorted(known)}")
    return kind(**options)


class PreparedVideoBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Writes each video's displacements and frames as an example, and all videos as an index.

    TFDS holds one split, `SPLIT`; which video belongs to which published split is in the index, so
    that one preparation serves them all.
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for checksums beside this file, by means of a package it does not require.
    code_path = None

    builder_config: PreparationConfig

    @abc.abstractmethod
    def sources(
        self, dl_manager: tfds.download.DownloadManager
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the class names, in the order of the labels, and every video of the data set.

        Raises:
          ValueError: The files or options that describe the data set are wrong.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Block displacements and RGB frames of re-encoded videos.",
            features=tfds.features.FeaturesDict(
                {
                    "name": tfds.features.Text(),
                    "label": np.int64,
                    **record_features(self.builder_config.spec),
                    "frames": tfds.features.Sequence(
                        tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
                    ),
                    "frame_indices": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                    "num_frames": np.int64,
                    "fps": np.float32,
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Examples carry their own name and label; TFDS has no use for a supervised pair.
            supervised_keys=None,
        )

    # TFDS announces preparation on standard output in words of its own; our lines say more.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        class_names, sources = self.sources(dl_manager)
        names = collections.Counter(source.entry.name for source in sources)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"{self.name}: {len(twice)} videos share a name, such as {twice[0]!r}")
        if not sources:
            raise ValueError(f"{self.name}: no videos")
        return {SPLIT: self._generate_examples(class_names, sources)}

    def _generate_examples(
        self, class_names: Sequence[str], sources: Sequence[Source]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        index: list[VideoEntry] = []
        # Of the files as they are before the work, so that a later change shows.
        digest = source_digest(self.builder_config.videos, self.builder_config.lists)
        progress = Progress(len(sources), f"prepare {self.name}", "videos")
        for source, result in _prepare_all(sources, self.builder_config.num_workers):
            progress.advance()
            entry = source.entry
            if isinstance(result, VideoError):
                logging.warning("cannot be used: %s", result)
                index.append(dataclasses.replace(entry, error=str(result)))
                continue
            index.append(dataclasses.replace(entry, num_frames=result.num_frames))
            yield (
                entry.name,
                {
                    "name": entry.name,
                    "label": entry.label,
                    **record_values(result, self.builder_config.spec),
                    "frames": result.frames,
                    "frame_indices": result.frame_indices,
                    "num_frames": result.num_frames,
                    "fps": result.fps,
                },
            )
        progress.done()
        if all(entry.error for entry in index):
            raise ValueError(f"{self.name}: no video could be prepared; first: {index[0].error}")
        self.info.metadata.update(
            class_names=list(class_names),
            spec=dataclasses.asdict(self.builder_config.spec),
            videos=[dataclasses.asdict(entry) for entry in index],
            source_digest=digest,
        )


def _prepare_all(
    sources: Sequence[Source], num_workers: int
) -> Iterator[tuple[Source, PreparedVideo | VideoError]]:
    """Prepare all videos, in order, with a bounded number of results waiting in memory."""
    num_workers = min(num_workers or _num_cores(), len(sources))
    if num_workers == 1:
        for source in sources:
            yield source, _prepare(source)
        return
    # Spawned, because a fork of a process that runs TensorFlow's threads can hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context) as pool:
        remaining = iter(sources)
        pending: collections.deque = collections.deque()
        try:
            for source in remaining:
                with start_deaf_to_ctrl_c():
                    pending.append((source, pool.submit(_prepare, source)))
                if len(pending) >= 4 * num_workers:
                    source, future = pending.popleft()
                    yield source, future.result()
            while pending:
                source, future = pending.popleft()
                yield source, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died while preparing videos, most likely for want of memory; "
                "use fewer workers"
            ) from error
        finally:
            for _, future in pending:
                future.cancel()


def _num_cores() -> int:
    # Those that this process may use, where the system can say so (Linux).
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare(source: Source) -> PreparedVideo | VideoError:
    try:
        return source.prepare()
    except VideoError as error:
        return error
