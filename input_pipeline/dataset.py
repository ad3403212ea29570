"""Prepared data sets, and the batches that are fed to the networks."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline.builders.base import (
    SPLIT,
    PreparationConfig,
    PreparedVideoBuilder,
    VideoEntry,
)
from input_pipeline.builders.moving_shapes import MovingShapes
from input_pipeline.builders.ucf101 import Ucf101
from input_pipeline.builders.video_folder import VideoFolder
from input_pipeline.video import VideoSpec
from input_pipeline.views import (
    MotionViews,
    example_from_video,
    fold_in,
    num_images,
    training_view,
    view_of_example,
)

__all__ = [
    "BUILDERS",
    "MotionViews",
    "PreparedDataset",
    "example_from_video",
    "prepare_dataset",
    "train_batches",
    "view_batches",
    "view_of_example",
]

# TensorFlow only feeds data here; it must not take the accelerators' memory from JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

BUILDERS: Mapping[str, type[PreparedVideoBuilder]] = {
    "moving_shapes": MovingShapes,
    "ucf101": Ucf101,
    "video_folder": VideoFolder,
}

_MOTION_FEATURES = ("label", "displacements", "is_intra", "num_frames")
_FRAME_FEATURES = ("frames", "frame_indices")


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedDataset:
    """A data set on disk.

    Attributes:
      class_names: In the order of the labels.
      index: Every video, in the order of the source; also those that could not be prepared.
      spec: The canonical form of the videos.
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

    def roles(
        self,
        split: int = 1,
        selection: str = "heldout",
        heldout_fraction: float = 0.1,
        seed: int = 0,
    ) -> dict[str, list[str]]:
        """Say what each video is for.

        Args:
          split: Published split, from 1.
          selection: What the checkpoint is chosen on. 'heldout': whole groups of the training
            subset, taken from every class where groups lie within classes. 'test': the test subset,
            as the published code does. 'last': nothing, the last one is taken.
          heldout_fraction: Share of the training subset's groups held out.
          seed: Seed of the choice of groups.

        Returns:
          Names under 'train', 'validation' and 'test', of videos that could be prepared, and under
          'refused_test' those of the test subset that could not: they count as wrong.

        Raises:
          ValueError: There is no such split or selection, or too few groups to hold any out.
        """
        if not 1 <= split <= self.num_splits:
            raise ValueError(f"split is {split}, the data set has 1 to {self.num_splits}")
        subset = {"train": [], "test": []}
        refused = []
        for entry in self.index:
            role = entry.subsets[split - 1]
            if role in subset and not entry.error:
                subset[role].append(entry)
            elif role == "test":
                refused.append(entry.name)
        train, test = subset["train"], subset["test"]
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
            "refused_test": refused,
        }

    def records(self) -> list[str]:
        """Return the paths of the record files, in order."""
        return [os.fspath(path) for path in self.builder.info.splits[SPLIT].filepaths]

    def parse(self, record: tf.Tensor, features: Sequence[str]) -> dict[str, tf.Tensor]:
        """Parse some features of a serialised example, and no more.

        Args:
          record: string scalar.
          features: Names of features; RGB `frames` stay JPEG.

        Returns:
          The features, in the dtypes that `example_from_video` gives.
        """
        stored = self.builder.info.features
        spec = stored.tf_example_spec
        example = tf.io.parse_single_example(record, {name: spec[name] for name in features})
        for name in features:
            if name == "displacements":
                example[name] = stored[name].decode_example(example[name])
            elif name in ("is_intra", "frame_indices"):
                # Records know no integers but int64.
                example[name] = tf.cast(example[name], stored[name].tf_dtype)
        return example


def prepare_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike,
    spec: VideoSpec,
    videos: str = "",
    lists: str = "",
    num_workers: int = 0,
    options: Mapping[str, Any] | None = None,
) -> PreparedDataset:
    """Open a prepared data set; prepare it first if it is not there.

    Args:
      name: A key of `BUILDERS`.
      data_dir: Folder of all prepared data sets. This one's subfolder is named by a hash of
        everything that it is made from.
      spec: How videos are brought to the canonical form.
      videos: Folder of the video files, where the builder needs one.
      lists: Folder of the split lists, where the builder needs one.
      num_workers: Processes that prepare videos; 0 for one a core.
      options: Further options of the builder.

    Returns:
      The data set.

    Raises:
      ValueError: Unknown name or options; wrong lists or folders; no video could be prepared.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown data set {name!r}, known are {sorted(BUILDERS)}")
    options = dict(options or {})
    source = {
        "spec": dataclasses.asdict(spec),
        "videos": os.path.abspath(os.path.expanduser(videos)) if videos else "",
        "lists": os.path.abspath(os.path.expanduser(lists)) if lists else "",
        "options": options,
    }
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:12]
    config = PreparationConfig(
        name=f"{spec.width}x{spec.height}-{digest}",
        spec=spec,
        videos=source["videos"],
        lists=source["lists"],
        options=options,
        num_workers=num_workers,
    )
    # Progress comes as lines of our own, which also make sense in a log file.
    tfds.disable_progress_bar()
    builder = BUILDERS[name](config=config, data_dir=os.path.expanduser(data_dir))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    metadata = builder.info.metadata
    return PreparedDataset(
        class_names=tuple(metadata["class_names"]),
        index=tuple(
            VideoEntry(**{**entry, "subsets": tuple(entry["subsets"])})
            for entry in metadata["videos"]
        ),
        spec=VideoSpec(**metadata["spec"]),
        builder=builder,
    )


def train_batches(
    dataset: PreparedDataset,
    names: Sequence[str],
    views: MotionViews,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle_buffer: int = 1024,
) -> tf.data.Dataset:
    """Return one epoch of training batches.

    The order and every random draw are a pure function of `seed`, `epoch` and the position in the
    epoch. Starting at `first_step` gives the batches that an epoch from its beginning would have
    given from there, and the processes' batches together are those of a single process.

    Args:
      dataset: A prepared data set.
      names: Videos of the epoch.
      views: How motion is sampled and augmented.
      batch_size: Of all processes together.
      seed: Seed of the run.
      epoch: Number of the epoch.
      first_step: Batches of the epoch to leave out; they are skipped before the heavy work.
      process_index: This process, from 0.
      process_count: Number of processes; must divide `batch_size`.
      shuffle_buffer: Records held for shuffling, beside the order of the files. Changing it changes
        the order.

    Returns:
      Batches of `motion` uint8 `[b, S, size, size, 2]` and `label` int32 `[b]` with
      `b = batch_size // process_count`; an incomplete last batch is left out.

    Raises:
      ValueError: Unknown or too few videos, or sizes that do not divide.
    """
    local_size = _local_size(batch_size, process_index, process_count)
    num_steps = len(names) // batch_size
    if not num_steps:
        raise ValueError(f"{len(names)} training videos do not fill a batch of {batch_size}")
    generator = np.random.default_rng([seed, epoch])
    files = dataset.records()
    records = tf.data.TFRecordDataset([files[i] for i in generator.permutation(len(files))])
    records = _named(dataset, records, names)
    records = records.shuffle(
        shuffle_buffer, seed=int(generator.integers(2**62)), reshuffle_each_iteration=False
    )
    records = records.take(num_steps * batch_size).enumerate().skip(first_step * batch_size)
    records = _of_process(records, batch_size, local_size, process_index)
    epoch_seed = tf.constant(generator.integers(2**62, size=2), tf.int64)
    function = _train_function(dataset, views)
    examples = records.map(
        lambda position, item: function(item[1], fold_in(epoch_seed, position)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    batches = examples.batch(local_size, drop_remainder=True)
    steps = max(num_steps - first_step, 0)
    return batches.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


def view_batches(
    dataset: PreparedDataset,
    names: Sequence[str],
    *,
    motion: MotionViews | None,
    augmented_views: int = 0,
    frames: str | None = None,
    image_size: int = 224,
    batch_size: int,
    seed: int = 0,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> tf.data.Dataset:
    """Return every video once, in a fixed order, for evaluation and for extracting features.

    Args:
      dataset: A prepared data set.
      names: Videos.
      motion: Segments and crops of the motion; None for no motion.
      augmented_views: Random training views of each video; 0 for the test views.
      frames: Which stored RGB frames: 'middle', 'random', 'uniform_<k>', or None for none.
      image_size: Side in pixels of the RGB frames.
      batch_size: Of all processes together.
      seed: Seed of what is random; the draws of a video depend on its position in `names` alone.
      first_batch: Batches to leave out; they are skipped before the heavy work.
      process_index: This process, from 0.
      process_count: Number of processes; must divide `batch_size`.

    Returns:
      Batches of `motion` uint8 `[b, V, S, size, size, 2]` and `images` uint8
      `[b, k, image_size, image_size, 3]`, each if asked for, `label` int32 `[b]`, `index` int32
      `[b]` (position in `names`) and `mask` bool `[b]`; the last batch is filled up with zeros and
      mask False.

    Raises:
      ValueError: Unknown videos or frames, nothing asked for, or sizes that do not divide.
    """
    if motion is None and frames is None:
        raise ValueError("view_batches: neither motion nor frames are asked for")
    if frames is not None:
        num_images(frames)
    local_size = _local_size(batch_size, process_index, process_count)
    num_batches = -(-len(names) // batch_size)
    records = _named(dataset, tf.data.TFRecordDataset(dataset.records()), names)
    records = records.enumerate().skip(first_batch * batch_size)
    records = _of_process(records, batch_size, local_size, process_index)
    base_seed = tf.constant([seed, len(_MOTION_FEATURES)], tf.int64)
    function = _view_function(dataset, motion, augmented_views, frames, image_size)
    examples = records.map(
        lambda _, item: function(item[1], item[0], fold_in(base_seed, item[0])),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    empty = {key: tf.zeros(spec.shape, spec.dtype) for key, spec in examples.element_spec.items()}
    # Real rows come first and fill every batch but the last, so padding is only ever needed there.
    padding = tf.data.Dataset.from_tensors(empty).repeat(local_size)
    batches = examples.concatenate(padding).batch(local_size, drop_remainder=True)
    steps = max(num_batches - first_batch, 0)
    batches = batches.take(steps).apply(tf.data.experimental.assert_cardinality(steps))
    return batches.prefetch(2)


def _hold_out(
    train: list[VideoEntry], fraction: float, seed: int
) -> tuple[list[VideoEntry], list[VideoEntry]]:
    """Split off whole groups."""
    if not 0 < fraction < 1:
        raise ValueError(f"heldout_fraction is {fraction}, must lie between 0 and 1")
    labels: dict[str, set[int]] = {}
    for entry in train:
        labels.setdefault(entry.group, set()).add(entry.label)
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


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} does not divide among {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}, of {process_count} processes")
    return batch_size // process_count


def _named(
    dataset: PreparedDataset, records: tf.data.Dataset, names: Sequence[str]
) -> tf.data.Dataset:
    """Keep the records of these videos, as (position in `names`, record)."""
    known = {entry.name for entry in dataset.index if not entry.error}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{len(unknown)} videos are not in the data set, such as {unknown[0]!r}")
    if len(set(names)) != len(names):
        raise ValueError("a video is named twice")
    if not names:
        return tf.data.Dataset.zip(tf.data.Dataset.range(0), records)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(names)), tf.range(len(names), dtype=tf.int64)
        ),
        default_value=-1,
    )

    def locate(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return table.lookup(dataset.parse(record, ["name"])["name"]), record

    # Sequential: the work is small, and threads would only hand records over.
    return records.map(locate).filter(lambda position, _: position >= 0)


def _of_process(
    records: tf.data.Dataset, batch_size: int, local_size: int, process_index: int
) -> tf.data.Dataset:
    """Keep this process's rows of every batch of the enumerated records."""
    if local_size == batch_size:
        return records
    return records.filter(
        lambda position, _: (position % batch_size) // local_size == process_index
    )


# Traced functions are kept: a pipeline is made anew for every epoch, and tracing takes longer than
# a small data set's epoch.
@functools.lru_cache(maxsize=32)
def _train_function(dataset: PreparedDataset, views: MotionViews) -> Callable:
    @tf.function(autograph=False)
    def function(record: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        example = dataset.parse(record, _MOTION_FEATURES)
        return {
            "motion": training_view(example, views, dataset.spec, seed),
            "label": tf.cast(example["label"], tf.int32),
        }

    return function


@functools.lru_cache(maxsize=32)
def _view_function(
    dataset: PreparedDataset,
    motion: MotionViews | None,
    augmented_views: int,
    frames: str | None,
    image_size: int,
) -> Callable:
    features = ("label", "num_frames")
    features += ("displacements", "is_intra") if motion is not None else ()
    features += _FRAME_FEATURES if frames is not None else ()

    @tf.function(autograph=False)
    def function(record: tf.Tensor, index: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        example = dataset.parse(record, features)
        view = view_of_example(
            example,
            dataset.spec,
            motion=motion,
            augmented_views=augmented_views,
            frames=frames,
            image_size=image_size,
            seed=seed,
        )
        view["label"] = tf.cast(example["label"], tf.int32)
        view["index"] = tf.cast(index, tf.int32)
        view["mask"] = tf.constant(True)
        return view

    return function
