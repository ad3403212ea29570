"""The test view of a video's motion in memory (NumPy), as `predict` makes it.

Bit for bit what `views.test_view` makes in a graph. For a single video this is the faster way.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from moclip_jax.input_pipeline import sampling
from moclip_jax.input_pipeline.augment import bilinear_taps, crop_ten
from moclip_jax.input_pipeline.native_motion import scale_native
from moclip_jax.input_pipeline.video.clip import Clip
from moclip_jax.input_pipeline.video.motion_vectors import BlockMotion
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.views import MotionViews


def test_view_in_memory(prepared: Clip, views: MotionViews, spec: VideoSpec) -> np.ndarray:
    """Return the test views of a video's motion.

    Args:
      prepared: From `read_clip` or `clip_from_frames`.
      views: Segments and crops.
      spec: The canonical form of the video.

    Returns:
      uint8 `[crops, num_segments, image_size, image_size, 2]`.
    """
    frames = sampling.test_segments(tf.constant(prepared.num_frames), views.num_segments)
    frames = sampling.frame_before_intra(frames + prepared.lead, prepared.is_intra).numpy()
    size, side = views.image_size, views.resize_size
    first, length = ((side - size) // 2, size) if views.crops == 1 else (0, side)
    motion = prepared.motion
    resize = _Resizer(*motion.shown_size, side, first, length)
    resized = np.empty((len(frames), length, length, 2), np.uint8)
    for rows, field in fields_in_memory(motion, frames, spec, views.bound, views.accumulated):
        resized[rows] = resize(field)
    return resized[None] if views.crops == 1 else crop_ten(tf.constant(resized), size).numpy()


# pytest would take the name for a test wherever it is imported.
test_view_in_memory.__test__ = False  # type: ignore[attr-defined]


def fields_in_memory(
    motion: BlockMotion,
    frame_indices: np.ndarray,
    spec: VideoSpec,
    bound: float,
    accumulated: bool = True,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield one by one the fields that `native_motion.native_fields` makes in a graph.

    Args:
      motion: Of a video.
      frame_indices: int `[S]`.
      spec: As `native_fields`.
      bound: As `native_fields`.
      accumulated: As `native_fields`.

    Yields:
      The places in `frame_indices` that ask for a frame, and its field, uint8 `[h, w, 2]`, which
      the next one takes the place of; no motion is 128.
    """
    height, width = motion.shown_size
    # No pixel has come from outside the picture: there are few values, and each is scaled once.
    reach = max(height, width)
    values = tf.range(-reach, reach + 1)
    table = scale_native(tf.stack([values, values], 1), (height, width), spec, bound)
    table = table.numpy().T.ravel()  # First the bytes of x, then those of y.
    zero = np.array([reach, reach + len(values)], np.intp)
    zero = np.broadcast_to(zero, (height, width, 2)).copy()
    places, scaled = np.empty_like(zero), np.empty(zero.shape, np.uint8)
    if accumulated:
        # One at a time: whole numbers for the pixels of all fields would take four times the bytes.
        made = motion.accumulated_fields(frame_indices)
    else:
        made = (([row], field) for row, field in enumerate(motion.each_alone(frame_indices)))
    for rows, field in made:
        np.add(zero, field, out=places)
        # All lie in the table; 'clip' because NumPy would copy the output otherwise.
        yield rows, np.take(table, places, out=scaled, mode="clip")


class _Resizer:
    """Resizes fields to a square and takes a smaller one of it, as `augment.center_crop`."""

    def __init__(self, height: int, width: int, side: int, first: int, length: int):
        """Prepare for fields of one size.

        Args:
          height: Of the fields.
          width: Of the fields.
          side: Of the square that they are resized to.
          first: Row and column of it with which the smaller one begins.
          length: Side of the smaller one.
        """
        upper, lower, self._down = (
            part[0, first : first + length] for part in bilinear_taps((side,), height)
        )
        self._left, self._right, across = (
            part[0, first : first + length] for part in bilinear_taps((side,), width)
        )
        self._rows = slice(upper[0], lower[-1] + 1)
        self._upper, self._lower = upper - upper[0], lower - upper[0]
        # Of both channels of a pixel.
        self._across = np.repeat(across, 2)

    def __call__(self, field: np.ndarray) -> np.ndarray:
        """Return uint8 `[length, length, 2]` of uint8 `[h, w, 2]`, contiguous."""
        # Both channels of a pixel as one item.
        pixels = field.view(np.uint16)[self._rows, :, 0]
        left, right = _floats(pixels, self._left), _floats(pixels, self._right)
        rows = _between(left, right, self._across)
        if self._down.any():
            rows = _between(rows[self._upper], rows[self._lower], self._down[:, None])
        else:  # As in the canonical form, whose height is that of the square.
            rows = rows[self._upper]
        return np.rint(rows, out=rows).astype(np.uint8).reshape(len(rows), -1, 2)


def _floats(pixels: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return some columns' bytes as float32: uint16 `[n, w]` -> `[n, 2 * len(columns)]`."""
    return np.take(pixels, columns, axis=1).view(np.uint8).astype(np.float32)


def _between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return `low + (high - low) * weight`, each operation rounded, in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high
