"""The views of `views.py` by TensorFlow ops (to be removed)."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from moclip_jax.input_pipeline import accumulation, augment
from moclip_jax.input_pipeline import graph_sampling as sampling
from moclip_jax.input_pipeline.native_motion import NATIVE_FEATURES, native_fields
from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec
from moclip_jax.input_pipeline.views import MotionViews, num_images


def example_from_video(prepared: Clip) -> dict[str, tf.Tensor]:
    """Turn a prepared video into the tensors that a stored example gives.

    Args:
      prepared: From `read_clip` or `clip_from_frames`.

    Returns:
      `displacements` int16 `[n, gh, gw, 2]`, `is_intra` bool `[n]`, `num_frames` int64 scalar,
      `frames` string `[k]` (JPEG), `frame_indices` int32 `[k]`; and, for motion that may be the
      stream's own, `is_bidirectional` bool `[n]`, `future` bool `[n, gh, gw]`, and `height`,
      `width` and `orientation`, int32 scalars. A window of a stream, whose motion begins before
      it, has its `lead`, an int32 scalar.
    """
    native = {name: tf.constant(getattr(prepared, name)) for name in NATIVE_FEATURES}
    lead = {"lead": tf.constant(prepared.lead)} if prepared.lead else {}
    motion = {
        "displacements": tf.constant(prepared.displacements),
        "is_intra": tf.constant(prepared.is_intra),
    }
    return native | lead | motion | pictures_from_video(prepared)


def pictures_from_video(prepared: Clip) -> dict[str, tf.Tensor]:
    """Turn a prepared video into an example of its pictures alone.

    Args:
      prepared: From `read_clip` or `clip_from_frames`.

    Returns:
      `num_frames`, `frames` and `frame_indices` as `example_from_video`.
    """
    return {
        "num_frames": tf.constant(prepared.num_frames, tf.int64),
        "frames": tf.constant(prepared.frames),
        "frame_indices": tf.constant(prepared.frame_indices),
    }


def example_signature(example: Mapping[str, tf.Tensor]) -> dict[str, tf.TensorSpec]:
    """Describe examples of any length and size that hold what this one holds.

    Args:
      example: As `example_from_video` gives.

    Returns:
      For `tf.function(input_signature=...)`, so that it is traced once for all videos.
    """
    return {
        name: tf.TensorSpec(
            [None] * min(value.shape.rank, 3) + value.shape.as_list()[3:], value.dtype, name=name
        )
        for name, value in example.items()
    }


def training_view(
    example: Mapping[str, tf.Tensor], views: MotionViews, spec: VideoSpec, seed: tf.Tensor
) -> tf.Tensor:
    """Draw one augmented view of a video's motion.

    Args:
      example: As `example_from_video` gives.
      views: What to draw.
      spec: The canonical form of the example.
      seed: int `[2]`; the view is a pure function of it and the example.

    Returns:
      uint8 `[num_segments, image_size, image_size, 2]`.
    """
    seeds = tf.random.split(seed, 2)
    indices = sampling.training_segments(example["num_frames"], views.num_segments, seeds[0])
    indices = _carrying_motion(example, indices)
    drawn = (views.image_size, views.scales, views.flip_probability, seeds[1])
    if spec.source != "reencode":
        return augment.random_crop_flip(_fields(example, indices, views, spec), *drawn)
    motion, steps = accumulation.motion_to_frames(example, indices, spec, views.accumulated)
    return accumulation.cropped_fields(
        motion,
        steps,
        spec,
        views.bound,
        size=views.image_size,
        sides=augment.crop_sides(views.image_size, views.scales),
        crop=augment.random_crop(*drawn),
    )


def test_view(example: Mapping[str, tf.Tensor], views: MotionViews, spec: VideoSpec) -> tf.Tensor:
    """Return the test views of a video's motion, always the same.

    Args:
      example: As `example_from_video` gives.
      views: Segments and crops.
      spec: The canonical form of the example.

    Returns:
      uint8 `[crops, num_segments, image_size, image_size, 2]`.
    """
    indices = sampling.test_segments(example["num_frames"], views.num_segments)
    fields = _fields(example, _carrying_motion(example, indices), views, spec)
    if views.crops == 10:
        return augment.ten_crops(fields, views.resize_size, views.image_size)
    return augment.center_crop(fields, views.resize_size, views.image_size)[None]


test_view.__test__ = False  # type: ignore[attr-defined]


def view_of_example(
    example: Mapping[str, tf.Tensor],
    spec: VideoSpec,
    *,
    motion: MotionViews | None,
    augmented_views: int = 0,
    frames: str | None = None,
    image_size: int = 224,
    resize_size: int = 0,
    resample: str = "bilinear",
    seed: tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
    """Return what the networks see of one video.

    Args:
      example: As `example_from_video` gives; without motion also as `pictures_from_video`.
      spec: The canonical form of the example.
      motion: Segments and crops; None for no motion.
      augmented_views: Number of random training views; 0 for the test views.
      frames: Which stored RGB frames: 'middle', 'random' (one) or 'uniform_<k>' (the `k` stored
        frames next to the centres of `k` equal parts); None for none.
      image_size: Side in pixels of the RGB frames.
      resize_size: Their shorter side before the crop; 0 for `image_size`.
      resample: 'bilinear' or 'bicubic'.
      seed: int `[2]` for the random views and frames; None where nothing is random.

    Returns:
      `motion` uint8 `[V, S, size, size, 2]` and `images` uint8 `[k, image_size, image_size, 3]`,
      each if asked for.

    Raises:
      ValueError: `frames` is unknown, or something random lacks a seed.
    """
    if seed is None and (frames == "random" or (motion is not None and augmented_views)):
        raise ValueError("random views need a seed")
    view = {}
    if motion is not None and augmented_views:
        # One after the other, to hold one view's intermediate values at a time.
        view["motion"] = tf.map_fn(
            lambda number: training_view(example, motion, spec, fold_in(seed, number + 1)),
            tf.range(augmented_views),
            fn_output_signature=tf.TensorSpec(
                [motion.num_segments, motion.image_size, motion.image_size, 2], tf.uint8
            ),
        )
    elif motion is not None:
        view["motion"] = test_view(example, motion, spec)
    if frames is not None:
        positions = _frame_positions(example, frames, seed)
        view["images"] = tf.stack(
            [
                augment.clip_image(
                    example["frames"][positions[k]], image_size, resize_size, resample
                )
                for k in range(positions.shape[0])
            ]
        )
    return view


def fold_in(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Derive an independent int `[2]` seed from a seed and a number."""
    return tf.random.fold_in(seed, number)


def _frame_positions(
    example: Mapping[str, tf.Tensor], frames: str, seed: tf.Tensor | None
) -> tf.Tensor:
    """Return int32 `[k]`, positions in the stored frames."""
    count = num_images(frames)
    stored = example["frame_indices"]
    num_frames = tf.cast(example["num_frames"], tf.int32)
    if frames == "random":
        return tf.random.stateless_uniform([1], fold_in(seed, 0), 0, tf.size(stored), tf.int32)
    if frames == "middle":
        wanted = num_frames[None] // 2
    else:
        centres = (np.arange(count) + 0.5) / count
        wanted = tf.cast(centres * tf.cast(num_frames, tf.float64), tf.int32)
    distance = tf.abs(stored[None, :] - wanted[:, None])
    return tf.ensure_shape(tf.argmin(distance, 1, tf.int32), [count])


def _fields(
    example: Mapping[str, tf.Tensor], indices: tf.Tensor, views: MotionViews, spec: VideoSpec
) -> tf.Tensor:
    """Return uint8 `[S, height, width, 2]`."""
    if spec.source == "reencode":
        motion, steps = accumulation.motion_to_frames(example, indices, spec, views.accumulated)
        return accumulation.fields(motion, steps, spec, views.bound)
    return native_fields(example, indices, spec, views.bound, views.accumulated)


def _carrying_motion(example: Mapping[str, tf.Tensor], indices: tf.Tensor) -> tf.Tensor:
    if "lead" in example:
        indices += example["lead"]
    return sampling.frame_before_intra(indices, example["is_intra"])
