"""What the TFDS builders share: features, the index of all videos, and how they are prepared."""

import abc
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging
from moclip_jax.input_pipeline.datasets import beam
from moclip_jax.input_pipeline.datasets.shards import ShardFolder, plan_shards
from moclip_jax.input_pipeline.datasets.worker import (
    REFUSED,
    Outcome,
    Source,
    VideoEntry,
    example_features,
    make_records,
    num_cores,
)
from moclip_jax.input_pipeline.video.clip import VideoSpec
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from moclip_jax.runtime.files import wait_for_lock
from moclip_jax.runtime.progress import Progress, duration, say

__all__ = [
    "MANIFEST",
    "SPLIT",
    "PreparationConfig",
    "PreparedVideoBuilder",
    "Source",
    "VideoEntry",
    "read_options",
    "source_digest",
]

SPLIT = "videos"
"""The only TFDS split; its name for everything, 'all', is reserved there."""

MANIFEST = "manifest.jsonl"
"""File of a prepared data set with a line for each video, see `Outcome`."""

# The estimate is of so many videos at least, and said where it comes to so many seconds.
_SAMPLE = 8
_LONG_RUN_SECONDS = 20.0

_T = TypeVar("_T")


@dataclasses.dataclass(eq=False, kw_only=True)
class PreparationConfig(tfds.core.BuilderConfig):
    """What a prepared data set is made from.

    `tfds build --config=JSON` gives the fields as JSON, `spec` as an object.

    Attributes:
      name: Name of the folder; empty for one made of all that the data depends on.
      spec: How each video is brought to the canonical form.
      videos: Folder of the video files; empty where the builder needs none.
      lists: Folder of the split lists; empty where the builder needs none.
      options: Further options of the builder.
      num_workers: Processes that prepare videos; 0 for one a core. Not part of the data.
    """

    name: str = ""
    spec: VideoSpec = dataclasses.field(default_factory=VideoSpec)
    videos: str = ""
    lists: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_workers: int = 0

    def __post_init__(self):
        if isinstance(self.spec, Mapping):
            self.spec = VideoSpec(**self.spec)
        self.videos, self.lists = (
            os.path.abspath(os.path.expanduser(path)) if path else ""
            for path in (self.videos, self.lists)
        )
        self.options = dict(self.options)
        if not self.name:
            made_from = json.dumps(self.made_from, sort_keys=True).encode()
            digest = hashlib.sha256(made_from).hexdigest()[:12]
            self.name = f"{self.spec.width}x{self.spec.height}-{digest}"

    @property
    def made_from(self) -> dict[str, Any]:
        """What the data depends on, in JSON's types."""
        return {
            "spec": dataclasses.asdict(self.spec),
            "videos": self.videos,
            "lists": self.lists,
            "options": self.options,
        }


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


class PreparedVideoBuilder(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes each video's displacements and frames as an example, and all videos as an index.

    TFDS holds one split, `SPLIT`; which video belongs to which published split is in the index, so
    that one preparation serves them all. The records are written shard by shard in a folder beside
    the data set's own, where a killed run is gone on from; TFDS reads them.
    """

    VERSION = tfds.core.Version("2.0.0")
    # TFDS would look for checksums beside this file, by means of a package it does not require.
    code_path = None
    # What `tfds build` makes of no --config; it also needs one to accept any.
    BUILDER_CONFIGS = [PreparationConfig(name="published", description="The published recipe.")]  # noqa: RUF012

    builder_config: PreparationConfig

    def __init__(self, *, data_dir: str | os.PathLike | None = None, **options: Any):
        """Open the data set, or describe one to be made, as TFDS's builders do.

        Raises:
          ValueError: `data_dir` is the address of a bucket.
        """
        if data_dir and "://" in os.fspath(data_dir):
            raise ValueError(f"{data_dir}: videos are prepared in local or mounted folders")
        super().__init__(data_dir=data_dir, **options)

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
            features=example_features(self.builder_config.spec),
            metadata=tfds.core.MetadataDict(),
            # Examples carry their own name and label; TFDS has no use for a supervised pair.
            supervised_keys=None,
        )

    # TFDS announces preparation on standard output in words of its own; our lines say more.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass

    def download_and_prepare(self, **options: Any) -> None:
        """Prepare the data set if it is not there, as TFDS's method does.

        One process at a time works on a data set; others wait, and find it done.
        """
        final = pathlib.Path(self.data_dir)
        self._final_folder = final
        self._work_folder = final.with_name(f"{final.name}.preparing")
        if final.exists() and not self._work_folder.exists():
            # Also where it may not be written to. TFDS may be told to make it again.
            super().download_and_prepare(**options)
            return
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # It would wait for the lock of its parent, which waits for it.
            raise RuntimeError(
                "a process that is to prepare videos runs the main program again; put that under "
                "if __name__ == '__main__':"
            )
        there = final.exists()
        with wait_for_lock(final.with_name(f"{final.name}.lock"), f"prepare {self.name}"):
            if final.exists() and not there:
                self.info.read_from_directory(self.data_dir)
            for left in final.parent.glob(f"{final.name}.incomplete*"):
                shutil.rmtree(left)  # Of a run that was killed in its last moment.
            super().download_and_prepare(**options)
            shutil.rmtree(self._work_folder, ignore_errors=True)

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any
    ) -> None:
        for field in ("max_examples_per_split", "num_shards"):
            if getattr(download_config, field) is not None:
                raise ValueError(f"{self.name}: cannot be prepared with {field}")
        config = self.builder_config
        class_names, sources = self.sources(dl_manager)
        names = collections.Counter(source.entry.name for source in sources)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"{self.name}: {len(twice)} videos share a name, such as {twice[0]!r}")
        if not sources:
            raise ValueError(f"{self.name}: no videos")
        # Of the files as they are before the work, so that a later change shows.
        digest = source_digest(config.videos, config.lists)
        entries = [dataclasses.asdict(source.entry) for source in sources]
        folder = ShardFolder(
            self._work_folder, [str(self.version), config.made_from, digest, entries]
        )
        shards = plan_shards(sources)
        self._prepare(folder, shards, download_config)
        done = [folder.outcomes(index) or [] for index in range(len(shards))]
        outcomes = {outcome.name: outcome for shard in done for outcome in shard}
        index = [_with_outcome(source.entry, outcomes[source.entry.name]) for source in sources]
        if all(entry.error for entry in index):
            # To be tried again: the reason may lie outside the files.
            shutil.rmtree(folder.path)
            raise ValueError(f"{self.name}: no video could be prepared; first: {index[0].error}")
        self._assemble(folder, done)
        with open(pathlib.Path(self.data_dir) / MANIFEST, "w") as file:
            for source in sources:
                line = json.dumps(dataclasses.asdict(outcomes[source.entry.name]))
                file.write(f"{line}\n")
        self.info.metadata.update(
            class_names=list(class_names),
            spec=dataclasses.asdict(config.spec),
            videos=[dataclasses.asdict(entry) for entry in index],
            source_digest=digest,
        )

    def _prepare(
        self, folder: ShardFolder, shards: list[list[Source]], download_config: Any
    ) -> None:
        """Finish all shards."""
        config = self.builder_config
        report = _Report(f"prepare {self.name}", folder, shards)
        by_beam = (
            download_config.beam_options is not None or download_config.beam_runner is not None
        )
        num_workers = min(config.num_workers or num_cores(), max(report.left, 1))
        # Beam tells nothing of its progress: here the first shard is made, for the estimate.
        here = report.missing[: 1 if by_beam else None]
        sources = itertools.chain.from_iterable(shards[index] for index in here)
        with contextlib.closing(make_records(sources, config.spec, num_workers)) as results:
            for index in here:
                for outcome in folder.write(index, itertools.islice(results, len(shards[index]))):
                    report.add(outcome, num_workers)
        if by_beam:
            beam.write_shards(
                folder,
                [(index, shards[index]) for index in report.missing[1:]],
                config.spec,
                options=download_config.beam_options,
                runner=download_config.beam_runner,
            )
        report.done(self._final_folder / MANIFEST)

    def _assemble(self, folder: ShardFolder, done: list[list[Outcome]]) -> None:
        """Put the shards that hold any record under the names that TFDS reads."""
        lengths = [sum(outcome.kept != REFUSED for outcome in shard) for shard in done]
        filled = [index for index, length in enumerate(lengths) if length]
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=self.name,
            split=SPLIT,
            filetype_suffix=self.info.file_format.file_suffix,
        )
        for number, index in enumerate(filled):
            path = template.sharded_filepath(shard_index=number, num_shards=len(filled))
            # The shards' folder keeps them until the data set is whole.
            try:
                os.link(folder.records(index), path)
            except OSError:
                shutil.copyfile(folder.records(index), path)
        self.info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=SPLIT,
                        shard_lengths=[lengths[index] for index in filled],
                        num_bytes=sum(outcome.bytes for shard in done for outcome in shard),
                        filename_template=template,
                    )
                ]
            )
        )


class _Report:
    """Says what a preparation will cost, how far it is, and what it came to."""

    def __init__(self, what: str, folder: ShardFolder, shards: Sequence[Sequence[Source]]):
        done = [folder.outcomes(index) for index in range(len(shards))]
        self.missing = [index for index, outcomes in enumerate(done) if outcomes is None]
        self._what, self._folder, self._total = what, folder, sum(map(len, shards))
        self._num_shards = len(shards)
        self._outcomes: list[Outcome] = []
        found = sum(len(outcomes) for outcomes in done if outcomes is not None)
        if found:
            say(f"{what}: {found} of {self._total} videos were prepared before; going on")
        self._progress = Progress(self._total, what, "videos", done_before=found)
        self.left = self._total - found
        self._start = time.monotonic()

    def add(self, outcome: Outcome, num_workers: int) -> None:
        """Count a video that was prepared here."""
        self._outcomes.append(outcome)
        self._progress.advance()
        if outcome.kept == REFUSED:
            logging.warning("cannot be used: %s", outcome.reason)
        if len(self._outcomes) == max(_SAMPLE, 2 * num_workers):
            size, seconds = _means(self._outcomes)
            all_seconds = seconds * self.left / num_workers
            if all_seconds < _LONG_RUN_SECONDS:
                return
            all_bytes = size * self.left
            say(
                f"{self._what}: the first {len(self._outcomes)} took {seconds:.2f} s and "
                f"{size / 1e3:.0f} kB each; {self.left} will take about {duration(all_seconds)} "
                f"with {num_workers} workers, and {all_bytes / 1e9:.2f} GB"
            )
            free = shutil.disk_usage(self._folder.path).free
            if all_bytes > free:
                say(f"warning: only {free / 1e9:.2f} GB are free in {self._folder.path}")

    def done(self, manifest: pathlib.Path) -> None:
        """Say what all videos came to, also those of earlier starts."""
        done = [self._folder.outcomes(index) or [] for index in range(self._num_shards)]
        outcomes = [outcome for shard in done for outcome in shard]
        kept = collections.Counter(outcome.kept for outcome in outcomes)
        size, seconds = _means(outcomes)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(kept.items()))
        say(
            f"{self._what}: {len(outcomes)} videos ({counts}) in "
            f"{duration(time.monotonic() - self._start)}; {seconds:.2f} s and {size / 1e3:.0f} kB "
            f"each, {sum(outcome.bytes for outcome in outcomes) / 1e9:.3f} GB; {manifest}"
        )


def _means(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return the mean bytes and seconds of a video."""
    count = len(outcomes)
    return sum(o.bytes for o in outcomes) / count, sum(o.seconds for o in outcomes) / count


def _with_outcome(entry: VideoEntry, outcome: Outcome) -> VideoEntry:
    return dataclasses.replace(entry, num_frames=outcome.num_frames, error=outcome.reason)
