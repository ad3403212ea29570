"""Prepared data sets on disk: made if absent, opened if there, and what each video is for."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from moclip_jax.input_pipeline.datasets.base import (
    SPLIT,
    PreparationConfig,
    PreparedVideoBuilder,
    VideoEntry,
    source_digest,
)
from moclip_jax.input_pipeline.datasets.beam import pipeline_options
from moclip_jax.input_pipeline.datasets.hmdb51 import Hmdb51
from moclip_jax.input_pipeline.datasets.motion_storage import unpack_displacements
from moclip_jax.input_pipeline.datasets.moving_shapes import MovingShapes
from moclip_jax.input_pipeline.datasets.ucf101 import Ucf101
from moclip_jax.input_pipeline.datasets.video_folder import VideoFolder
from moclip_jax.input_pipeline.native_motion import NATIVE_FEATURES
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.motion_vectors import BLOCK

BUILDERS: Mapping[str, type[PreparedVideoBuilder]] = {
    "hmdb51": Hmdb51,
    "moving_shapes": MovingShapes,
    "ucf101": Ucf101,
    "video_folder": VideoFolder,
}


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

    def splits(
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
        subset: dict[str, list[VideoEntry]] = {"train": [], "test": []}
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

    def parse(
        self, record: tf.Tensor, features: Sequence[str], *, packed: bool = False
    ) -> dict[str, tf.Tensor]:
        """Parse some features of a serialised example, and no more.

        Args:
          record: string scalar.
          features: Names of features; RGB `frames` stay JPEG.
          packed: Leave canonical `displacements` packed, string `[groups]`, for whoever needs few
            of them (`accumulation.motion_to_frames`).

        Returns:
          The features, in the dtypes that `example_from_video` gives.
        """
        stored = self.builder.info.features
        spec = stored.tf_example_spec
        example = tf.io.parse_single_example(record, {name: spec[name] for name in features})
        canonical = self.spec.source == "reencode"
        for name in features:
            if name == "displacements" and canonical:
                if not packed:
                    grid = -(-self.spec.height // BLOCK), -(-self.spec.width // BLOCK)
                    example[name] = unpack_displacements(example[name], grid)
            elif name in ("displacements", "future"):
                example[name] = stored[name].decode_example(example[name])
            elif name in ("is_intra", "frame_indices", *NATIVE_FEATURES):
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
    only_open: bool = False,
    beam: str = "",
) -> PreparedDataset:
    """Open a prepared data set; prepare it first if it is not there.

    A preparation that was killed is gone on from. Two at a time in one folder: the second waits.

    Args:
      name: A key of `BUILDERS`.
      data_dir: Folder of all prepared data sets. This one's subfolder is named by a hash of
        everything that it is made from.
      spec: How videos are brought to the canonical form.
      videos: Folder of the video files, where the builder needs one.
      lists: Folder of the split lists, where the builder needs one.
      num_workers: Processes that prepare videos; 0 for one a core.
      options: Further options of the builder.
      only_open: True prepares nothing.
      beam: Options of Apache Beam, see `on_beam.pipeline_options`; empty prepares without it.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: It is not there and `only_open`.
      ValueError: Unknown name or options; wrong lists or folders; no video could be prepared; the
        files have changed since the data set was prepared; or Beam is asked for and not installed.
      RuntimeError: A process that prepares videos could not start.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown data set {name!r}, known are {sorted(BUILDERS)}")
    config = PreparationConfig(
        spec=spec, videos=videos, lists=lists, options=options or {}, num_workers=num_workers
    )
    # Progress comes as lines of our own, which also make sense in a log file.
    tfds.disable_progress_bar()
    builder = BUILDERS[name](config=config, data_dir=os.path.expanduser(data_dir))
    if only_open and not os.path.isdir(builder.data_dir):
        raise FileNotFoundError(
            f"the prepared videos are not at {builder.data_dir}; they were deleted or moved: put "
            "them back, or start the run in another --workdir"
        )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            try_download_gcs=False, beam_options=pipeline_options(beam) if beam else None
        )
    )
    metadata = builder.info.metadata
    now = source_digest(config.videos, config.lists)
    # Folders may be gone once the data set is prepared, but not silently hold something else.
    if now and now != metadata["source_digest"]:
        raise ValueError(
            f"the files in {videos!r} or {lists!r} have changed since they were prepared; delete "
            f"{builder.data_dir} to prepare them anew, or restore them"
        )
    return PreparedDataset(
        class_names=tuple(metadata["class_names"]),
        index=tuple(
            VideoEntry(**{**entry, "subsets": tuple(entry["subsets"])})
            for entry in metadata["videos"]
        ),
        spec=VideoSpec(**metadata["spec"]),
        builder=builder,
    )


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
