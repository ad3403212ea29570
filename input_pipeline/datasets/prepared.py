"""Open a prepared data set, preparing it first if it is absent, and divide it into splits."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds

from moclip_jax.input_pipeline.datasets.beam import pipeline_options
from moclip_jax.input_pipeline.datasets.definition import DatasetConfig, VideoEntry, source_digest
from moclip_jax.input_pipeline.datasets.preparation import (
    VERSION,
    Preparation,
    prepare,
    record_splits,
    retry_rejected,
)
from moclip_jax.input_pipeline.datasets.records import parse_record
from moclip_jax.input_pipeline.datasets.registry import DATASETS
from moclip_jax.input_pipeline.datasets.shots import choose_shots, read_shot_list
from moclip_jax.input_pipeline.video.clip import VideoSpec

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedDataset:
    """A data set on disk.

    Attributes:
      class_names: In the order of the labels.
      index: Every video, in the order of the source, rejected ones included.
      spec: The canonical form of the videos, with the limits that the data set was opened with.
      builder: The TFDS builder that reads them.
    """

    class_names: tuple[str, ...]
    index: tuple[VideoEntry, ...]
    spec: VideoSpec
    builder: tfds.core.DatasetBuilder

    @property
    def num_splits(self) -> int:
        """Number of published splits."""
        return len(self.index[0].subsets)

    def splits(
        self,
        split: int = 1,
        selection: str = "heldout",
        heldout_fraction: float = 0.1,
        seed: int = 0,
        shots: int = 0,
        shot_list: str = "",
    ) -> dict[str, list[str]]:
        """Divide the videos into training, validation and test.

        Args:
          selection: What the checkpoint is selected on. 'heldout': whole groups of the training
            subset, taken from every class where groups lie within classes. 'test': the test subset,
            as the published code does. 'last': nothing, the last checkpoint is taken.
          heldout_fraction: Share of the training subset's groups held out.
          shots: Videos of each class that the training subset is reduced to, see `choose_shots`; 0
            for all. Groups are held out of these.
          shot_list: File of the videos that it is reduced to before, see `read_shot_list`; empty
            for none.

        Returns:
          Names of videos under 'train', 'validation', 'test' and 'rejected_test'. The last are the
          videos of the test subset that could not be prepared, which count as wrong; the other
          three hold prepared videos only.

        Raises:
          ValueError: There is no such split or selection, too few groups to hold any out, or a
            wrong list.
        """
        if not 1 <= split <= self.num_splits:
            raise ValueError(f"split is {split}, the data set has 1 to {self.num_splits}")
        of_subset: dict[str, list[VideoEntry]] = {"train": [], "test": [], "unused": []}
        rejected_test = []
        for entry in self.index:
            subset = entry.subsets[split - 1]
            if not entry.error:
                of_subset[subset].append(entry)
            elif subset == "test":
                rejected_test.append(entry.name)
        train, test = of_subset["train"], of_subset["test"]
        if shot_list:
            known = [entry for entry in self.index if entry.subsets[split - 1] == "train"]
            listed = read_shot_list(pathlib.Path(shot_list).expanduser(), known, self.class_names)
            train = [entry for entry in train if entry.name in listed]
        if shots:
            train = choose_shots(train, shots, seed)
        if selection == "heldout":
            train, validation = _hold_out(train, heldout_fraction, seed)
        elif selection == "test":
            validation = test
        elif selection == "last":
            validation = []
        else:
            raise ValueError(f"selection is {selection!r}, must be 'heldout', 'test' or 'last'")
        return {
            "train": [entry.name for entry in train],
            "validation": [entry.name for entry in validation],
            "test": [entry.name for entry in test],
            "rejected_test": rejected_test,
        }

    def first_classes(self, number: int) -> "PreparedDataset":
        """Return the data set of the first classes alone, in the order of the labels.

        Raises:
          ValueError: It has fewer classes.
        """
        if number > len(self.class_names):
            raise ValueError(
                f"config.selection.num_classes={number}: the data set has {len(self.class_names)}"
            )
        index = tuple(entry for entry in self.index if max(entry.classes) < number)
        return dataclasses.replace(self, class_names=self.class_names[:number], index=index)

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several labels."""
        return isinstance(self.index[0].label, tuple)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Return the classes of videos of the index, prepared or rejected, int64 `[n]`.

        Several labels a video are multi-hot, float32 `[n, classes]` of 0 and 1.
        """
        entries = {entry.name: entry for entry in self.index}
        classes = [entries[name].classes for name in names]
        if not self.multi_label:
            return np.array([label for (label,) in classes], np.int64)
        multi_hot = np.zeros((len(names), len(self.class_names)), np.float32)
        for row, positions in zip(multi_hot, classes, strict=True):
            row[list(positions)] = 1
        return multi_hot

    def records(self) -> list[str]:
        """Return the paths of the record files, in order."""
        info = self.builder.info
        return [
            os.fspath(path)
            for split in record_splits(info.metadata)
            for path in info.splits[split].filepaths
        ]

    def parse(self, record: "tf.Tensor", features: Sequence[str]) -> "dict[str, tf.Tensor]":
        """Parse some features of a record, see `records.parse_record`."""
        return parse_record(record, features, self.spec)


def prepare_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike,
    spec: VideoSpec,
    videos: str = "",
    lists: str = "",
    num_workers: int = 0,
    options: Mapping[str, Any] | None = None,
    only_open: bool = False,
    beam: str = "",
) -> PreparedDataset:
    """Open a prepared data set; prepare it first if it is absent.

    A preparation that was killed is resumed. Of two at a time in one folder the second waits. If a
    limit of `spec` is higher than before, the rejected videos are tried again.

    Args:
      name: A key of `DATASETS`.
      data_dir: Folder of all prepared data sets. This one's subfolder is named by a hash of
        everything that it is made from.
      only_open: True prepares nothing, not even rejected videos again.
      beam: Options of Apache Beam, see `beam.pipeline_options`; empty prepares without it.

    Raises:
      FileNotFoundError: It is absent and `only_open`.
      ValueError: Unknown name or options; wrong lists or folders; no video could be prepared; the
        files have changed since the data set was prepared; `data_dir` is a bucket; or Beam is
        requested and not installed.
      RuntimeError: A process that prepares videos could not start.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}, known are {sorted(DATASETS)}")
    if "://" in os.fspath(data_dir):
        raise ValueError(f"{data_dir}: videos are prepared in local or mounted folders")
    config = DatasetConfig(spec=spec, videos=videos, lists=lists, options=options or {})
    dataset = DATASETS[name](config)
    root = pathlib.Path(os.path.expanduser(data_dir))
    folder = root / dataset.name / config.folder_name / VERSION

    def download(url: str) -> os.PathLike:
        # Its bars would fill a log file.
        tfds.disable_progress_bar()
        manager = tfds.download.DownloadManager(download_dir=root / "downloads")
        return manager.download_and_extract(url)

    how = Preparation(num_workers, pipeline_options(beam) if beam else None, download)
    if not only_open:
        prepare(dataset, folder, how)
    elif not folder.is_dir():
        raise FileNotFoundError(
            f"the prepared videos are not at {folder}; they were deleted or moved: put them back, "
            "or start the run in another --workdir"
        )
    metadata = tfds.builder_from_directory(folder).info.metadata
    # Hidden files counted as long as the limits were not stored by themselves.
    now = source_digest(config.videos, config.lists, hidden="limits" not in metadata)
    # Folders may be gone once the data set is prepared, but must not hold other files unnoticed.
    if now and now != metadata["source_digest"]:
        raise ValueError(
            f"the files in {videos!r} or {lists!r} have changed since they were prepared; delete "
            f"{folder} to prepare them again, or restore them"
        )
    if not only_open:
        retry_rejected(dataset, folder, how)
    builder = tfds.builder_from_directory(folder)
    return PreparedDataset(
        class_names=tuple(builder.info.metadata["class_names"]),
        index=tuple(_entry(entry, spec) for entry in builder.info.metadata["videos"]),
        spec=spec,
        builder=builder,
    )


def _entry(values: Mapping[str, Any], spec: VideoSpec) -> VideoEntry:
    """Return a video of the index, rejected if it is longer than the present limit."""
    # JSON has no tuples.
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    entry = VideoEntry(**{**values, **tuples})
    limit = spec.limits.max_frames
    if limit is None or entry.num_frames <= limit:
        return entry
    error = f"{entry.name}: has {entry.num_frames} frames, more than max_frames={limit}"
    return dataclasses.replace(entry, num_frames=0, error=error)


def _hold_out(
    train: list[VideoEntry], fraction: float, seed: int
) -> tuple[list[VideoEntry], list[VideoEntry]]:
    """Split off whole groups."""
    if not 0 < fraction < 1:
        raise ValueError(f"heldout_fraction is {fraction}, must lie between 0 and 1")
    labels: dict[str, set[int]] = {}
    for entry in train:
        labels.setdefault(entry.group, set()).update(entry.classes)
    # Groups of a single class are drawn class by class, so that every class is in both parts.
    pools: dict[int, list[str]] = {}
    single = all(len(group_labels) == 1 for group_labels in labels.values())
    for group, group_labels in labels.items():
        pools.setdefault(min(group_labels) if single else -1, []).append(group)
    generator = np.random.default_rng(seed)
    held: set[str] = set()
    for _, groups in sorted(pools.items()):
        if len(groups) > 1:
            count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
            held.update(sorted(groups)[i] for i in generator.permutation(len(groups))[:count])
    if not held:
        raise ValueError(
            "selection 'heldout' needs at least two groups in the training subset; use 'last'"
        )
    rest = [entry for entry in train if entry.group not in held]
    return rest, [entry for entry in train if entry.group in held]
