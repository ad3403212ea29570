"""Batches that are fed to the networks, from prepared data sets."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from moclip_jax.input_pipeline import training_kernel
from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset, prepare_dataset
from moclip_jax.input_pipeline.datasets.records import clip_from_record, motion_features
from moclip_jax.input_pipeline.sampling import Draws
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.views import (
    GridViews,
    MotionViews,
    images,
    num_images,
    test_view,
    training_view,
)

__all__ = [
    "MotionViews",
    "PreparedDataset",
    "VideoEntry",
    "prepare_dataset",
    "train_batches",
    "view_batches",
]

# TensorFlow only feeds data here; it must not take the accelerators' memory from JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

_FRAME_FEATURES = ("num_frames", "frames", "frame_indices")


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
      first_step: Batches of the epoch to leave out; they are skipped before the heavy work.
      process_count: Number of processes; must divide `batch_size`.
      shuffle_buffer: Records held for shuffling, beside the order of the files. Changing it changes
        the order.

    Returns:
      Batches of `motion` uint8 `[b, S, size, size, 2]` and `label` int32 `[b]`, or multi-hot
      float32 `[b, classes]`, with `b = batch_size // process_count`; an incomplete last batch is
      left out.

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
    function, labels = _train_function(dataset, views), _labels(dataset, names)
    examples = records.map(
        lambda position, item: (
            function(item[1], tf.random.fold_in(epoch_seed, position)) | {"label": labels[item[0]]}
        ),
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
    motion: MotionViews | GridViews | None,
    augmented_views: int = 0,
    frames: str | None = None,
    image_size: int = 224,
    resize_size: int = 0,
    resample: str = "bilinear",
    square: bool = False,
    batch_size: int,
    seed: int = 0,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> tf.data.Dataset:
    """Return every video once, in a fixed order, for evaluation and for extracting features.

    Args:
      motion: Segments and crops of the motion; None for no motion.
      augmented_views: Random training views of each video; 0 for the test views.
      frames: Which stored RGB frames: 'middle', 'random', 'uniform_<k>', or None for none.
      image_size: Side in pixels of the RGB frames.
      resize_size: Their shorter side before the crop; 0 for `image_size`.
      square: Both of their sides are resized, and nothing is cropped.
      seed: Seed of what is random; the draws of a video depend on its position in `names` alone.
      first_batch: Batches to leave out; they are skipped before the heavy work.
      process_count: Number of processes; must divide `batch_size`.

    Returns:
      Batches of `motion` uint8 `[b, V, S, size, size, 2]` and `images` uint8
      `[b, k, image_size, image_size, 3]`, each if requested, `label` as `train_batches`, `index`
      int32 `[b]` (position in `names`) and `mask` bool `[b]`; the last batch is filled up with
      zeros and mask False.

    Raises:
      ValueError: Unknown videos or frames, nothing requested, or sizes that do not divide.
    """
    if motion is None and frames is None:
        raise ValueError("view_batches: neither motion nor frames are requested")
    if frames is not None:
        num_images(frames)
    local_size = _local_size(batch_size, process_index, process_count)
    num_batches = -(-len(names) // batch_size)
    records = _named(dataset, tf.data.TFRecordDataset(dataset.records()), names)
    records = records.enumerate().skip(first_batch * batch_size)
    records = _of_process(records, batch_size, local_size, process_index)
    base_seed = tf.constant([seed, 4], tf.int64)
    image = (image_size, resize_size, resample, square)
    function = _view_function(dataset, motion, augmented_views, frames, image)
    labels = _labels(dataset, names)
    examples = records.map(
        lambda _, item: (
            function(item[1], item[0], tf.random.fold_in(base_seed, item[0]))
            | {"label": labels[item[0]]}
        ),
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


def _labels(dataset: PreparedDataset, names: Sequence[str]) -> tf.Tensor:
    """Return the labels by position in `names`: int32, or multi-hot float32."""
    labels = dataset.labels(names)
    return tf.constant(labels, tf.float32 if dataset.multi_label else tf.int32)


def _of_process(
    records: tf.data.Dataset, batch_size: int, local_size: int, process_index: int
) -> tf.data.Dataset:
    """Keep this process's rows of every batch of the enumerated records."""
    if local_size == batch_size:
        return records
    return records.filter(
        lambda position, _: (position % batch_size) // local_size == process_index
    )


# Traced functions are kept: a pipeline is made again for every epoch, and tracing takes longer than
# a small data set's epoch.
@functools.lru_cache(maxsize=32)
def _train_function(dataset: PreparedDataset, views: MotionViews) -> Callable:
    spec = dataset.spec
    canonical = spec.source == "reencode"

    @tf.function(autograph=False)
    def function(record: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        example = dataset.parse(record, motion_features(spec))
        draws = _draw(seed, views.num_segments)
        if canonical:
            motion = training_kernel.training_view(example, draws, views, spec)
        else:
            one = Draws(*(part[None] for part in draws))
            motion = _motion_views(example, views, spec, one)[0]
        return {"motion": motion}

    return function


@functools.lru_cache(maxsize=32)
def _view_function(
    dataset: PreparedDataset,
    motion: MotionViews | GridViews | None,
    augmented_views: int,
    frames: str | None,
    image: tuple[int, int, str, bool],
) -> Callable:
    spec = dataset.spec
    of_motion = motion_features(spec) if motion is not None else ()
    of_frames = _FRAME_FEATURES if frames is not None else ()

    @tf.function(autograph=False)
    def function(record: tf.Tensor, index: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        features = dict.fromkeys((*of_motion, *of_frames))
        example = dataset.parse(record, tuple(features))
        view = {}
        if motion is not None:
            draws = None
            if augmented_views:
                draws = _draw_each(seed, augmented_views, motion.num_segments)
            stored = {name: example[name] for name in of_motion}
            view["motion"] = _motion_views(stored, motion, spec, draws)
        if frames is not None:
            stored = {name: example[name] for name in of_frames}
            view["images"] = _images(stored, frames, image, spec, seed)
        view["index"] = tf.cast(index, tf.int32)
        view["mask"] = tf.constant(True)
        return view

    return function


def _draw(seed: tf.Tensor, num_segments: int) -> Draws:
    """Draw the random numbers of a training view, a pure function of an int `[2]` seed."""
    seeds = tf.random.split(seed, 2)
    of_crop = tf.random.split(seeds[1], 4)
    # Whole numbers are taken modulo the number of choices, as TensorFlow itself does.
    crop = [tf.random.stateless_uniform([], of_crop[i], None, None, tf.uint32) for i in range(3)]
    return Draws(
        segments=tf.random.stateless_uniform([num_segments], seeds[0], dtype=tf.float64),
        crop=tf.stack(crop),
        flip=tf.random.stateless_uniform([], of_crop[3]),
    )


def _draw_each(seed: tf.Tensor, count: int, num_segments: int) -> Draws:
    """Draw the numbers of several views, each `[count, ...]`."""
    each = [_draw(tf.random.fold_in(seed, number + 1), num_segments) for number in range(count)]
    return Draws(*(tf.stack(parts) for parts in zip(*each, strict=True)))


def _motion_views(
    example: Mapping[str, tf.Tensor],
    views: MotionViews | GridViews,
    spec: VideoSpec,
    draws: Draws | None,
) -> tf.Tensor:
    """Return views of a stored video's motion by NumPy, uint8 `[V, S, image_size, image_size, 2]`.

    `draws` are the numbers of `V` augmented views; None gives the test views.
    """

    def make(*arrays: np.ndarray) -> np.ndarray:
        stored = dict(zip(example, arrays, strict=False))
        count = int(stored["num_frames"])
        if draws is None:
            clip = clip_from_record(stored, spec, views.needed_frames(count))
            return test_view(clip, views, spec)
        assert isinstance(views, MotionViews)  # `GridViews` have no augmented form.
        each = [Draws(*parts) for parts in zip(*arrays[len(example) :], strict=True)]
        frames = [views.training_frames(count, one).reshape(-1) for one in each]
        clip = clip_from_record(stored, spec, np.concatenate(frames))
        return np.stack([training_view(clip, one, views, spec) for one in each])

    count = views.shape[0] if draws is None else draws.flip.shape[0]
    inputs = [*example.values(), *(draws or ())]
    result = tf.numpy_function(make, inputs, tf.uint8, stateful=False)
    return tf.ensure_shape(result, [count, *views.shape[1:]])


def _images(
    example: Mapping[str, tf.Tensor],
    frames: str,
    image: tuple[int, int, str, bool],
    spec: VideoSpec,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Return uint8 `[k, image_size, image_size, 3]`, RGB frames of a stored video by Pillow."""
    draw = tf.random.stateless_uniform([], tf.random.fold_in(seed, 0), None, None, tf.uint32)
    image_size, resize_size, resample, square = image

    def make(draw: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        stored = dict(zip(example, arrays, strict=True))
        return images(
            clip_from_record(stored, spec),
            frames,
            image_size,
            int(draw),
            resize_size=resize_size,
            resample=resample,
            square=square,
        )

    result = tf.numpy_function(make, [draw, *example.values()], tf.uint8, stateful=False)
    return tf.ensure_shape(result, [num_images(frames), image_size, image_size, 3])
