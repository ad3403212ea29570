"""Which frames of a video the motion network sees (TensorFlow ops).

The rules are those of TSN (Wang et al., 2016) as CoViAR applies them to motion vectors: frame 0
never carries any, so it is never drawn. Rounding is half to even, as in NumPy and Python.
"""

import tensorflow as tf


def training_segments(num_frames: tf.Tensor, num_segments: int, seed: tf.Tensor) -> tf.Tensor:
    """Draw one frame from each of `num_segments` equal parts of a video.

    With `size = (num_frames - 2) / num_segments`, part `s` runs from `begin = round(size * s)` to
    `end = round(size * (s + 1))`, at least `begin + 1`, and its frame is uniform in
    `[begin + 1, end]`.

    Args:
      num_frames: int scalar, frames of the video.
      num_segments: Number of parts.
      seed: int `[2]`; the draw is a pure function of it.

    Returns:
      int32 `[num_segments]`, clipped to the video.
    """
    num_frames = tf.cast(num_frames, tf.int32)
    size = _divide(num_frames - 2, num_segments)
    bounds = tf.cast(tf.round(size * tf.range(num_segments + 1, dtype=tf.float64)), tf.int32)
    begin = bounds[:-1]
    length = tf.maximum(bounds[1:] - begin, 1)
    uniform = tf.random.stateless_uniform([num_segments], seed, dtype=tf.float64)
    offset = tf.cast(tf.floor(uniform * tf.cast(length, tf.float64)), tf.int32)
    return _clip(begin + 1 + tf.minimum(offset, length - 1), num_frames)


def test_segments(num_frames: tf.Tensor, num_segments: int) -> tf.Tensor:
    """Return the middle frame of each of `num_segments` equal parts of a video.

    With `size = (num_frames - 1) / num_segments`, the frame of part `s` is
    `round(size * (s + 0.5)) + 1`.

    Args:
      num_frames: int scalar, frames of the video.
      num_segments: Number of parts.

    Returns:
      int32 `[num_segments]`, clipped to the video.
    """
    num_frames = tf.cast(num_frames, tf.int32)
    size = _divide(num_frames - 1, num_segments)
    centres = tf.round(size * (tf.range(num_segments, dtype=tf.float64) + 0.5))
    return _clip(tf.cast(centres, tf.int32) + 1, num_frames)


# pytest would take the name for a test wherever it is imported.
test_segments.__test__ = False  # type: ignore[attr-defined]


def frame_before_intra(indices: tf.Tensor, is_intra: tf.Tensor) -> tf.Tensor:
    """Replace an I-frame, which carries no motion vectors, by the frame before it.

    That is the last frame of the GOP before, whose accumulated field is the longest.

    Args:
      indices: int32 `[S]`.
      is_intra: bool `[n]`.

    Returns:
      int32 `[S]`, clipped to the video.
    """
    before = indices - tf.cast(tf.gather(is_intra, indices), indices.dtype)
    return tf.maximum(before, 0)


def _divide(numerator: tf.Tensor, denominator: int) -> tf.Tensor:
    # Not `/`: TensorFlow's graph optimiser turns a division by a constant into a multiplication by
    # its inverse, and 7.5 into 7.4999..., which rounds to another frame.
    return tf.math.divide_no_nan(tf.cast(numerator, tf.float64), denominator)


def _clip(indices: tf.Tensor, num_frames: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(indices, 0, num_frames - 1)
