"""Training views of canonical motion, compiled by XLA for `tf.data`.

The same as `views.training_view`, bit for bit; `benchmarks/pipeline.py` times both. A pixel's
origin is found backwards: from frame to frame it goes where its block came from, until the I-frame;
a step that would leave the frame is not made. All pixels do so at once, in a loop that the compiler
turns into vector instructions.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from moclip_jax.input_pipeline import sampling
from moclip_jax.input_pipeline.datasets.records import grid_size, join_bytes, unpack_groups
from moclip_jax.input_pipeline.motion_fields import bilinear_taps
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.motion_vectors import BLOCK
from moclip_jax.input_pipeline.views import MotionViews, training_crop

_U32 = tf.uint32
# Added to a float of little magnitude, it leaves the nearest whole number in the lowest bits.
_TO_WHOLE = 1.5 * 2**23


def training_view(
    example: Mapping[str, tf.Tensor], draws: sampling.Draws, views: MotionViews, spec: VideoSpec
) -> tf.Tensor:
    """Return `views.training_view` of a stored video of canonical motion.

    Args:
      example: `num_frames` int64 scalar, `is_intra` bool `[n]` and `displacements` string
        `[groups]`, as they are stored; only the groups that are needed are unpacked.

    Returns:
      uint8 `[S, image_size, image_size, 2]`.

    Raises:
      tf.errors.InvalidArgumentError: A group of pictures is longer than `VideoSpec.gop_size`.
    """
    size = views.image_size
    group, *plan = tf.numpy_function(
        functools.partial(_plan, views, spec),
        [example["num_frames"], example["is_intra"], *draws],
        [tf.int64, tf.int32, tf.int32, tf.float32, tf.uint32],
        stateful=False,
    )
    shapes = [[views.num_segments, 2], [4, size], [2, size], []]
    plan = [tf.ensure_shape(part, shape) for part, shape in zip(plan, shapes, strict=True)]
    packed = tf.gather(example["displacements"], tf.ensure_shape(group, [views.num_segments]))
    motion = unpack_groups(packed, grid_size(spec), spec.gop_size + 1)
    motion = tf.ensure_shape(motion, [views.num_segments, *motion.shape[1:]])
    function = _crop_function(spec.height, spec.width, size)
    words = function(motion, tf.constant(views.bound, tf.float32), *plan, tf.constant(0))
    return tf.bitcast(words, tf.uint8)


def _plan(
    views: MotionViews,
    spec: VideoSpec,
    num_frames: np.ndarray,
    is_intra: np.ndarray,
    *numbers: np.ndarray,
) -> tuple[Any, ...]:
    """Choose frames and crop.

    Returns:
      The group of each segment, int64 `[S]`; steps int32 `[S, 2]`, the place in the group of the
      first displacement that a pixel follows, and the place at which it has arrived; the pixels
      between which columns and rows lie, int32 `[4, size]`, and their weights, float32
      `[2, size]`; and what x is turned by, uint32, 255 in a flip.
    """
    draws = sampling.Draws(*numbers)
    frames = sampling.training_segments(int(num_frames), views.num_segments, draws.segments)
    frames = sampling.frame_before_intra(frames, is_intra)
    # Stored videos begin with an I-frame.
    starts = np.flatnonzero(is_intra)
    group = np.searchsorted(starts, frames, side="right") - 1
    begin = frames - starts[group]
    if begin.max() > spec.gop_size:
        raise ValueError("a group of pictures is longer than VideoSpec.gop_size")
    end = np.zeros_like(begin) if views.accumulated else np.maximum(begin - 1, 0)
    crop = training_crop(draws, views)
    columns: tuple[np.ndarray, ...] = bilinear_taps(crop.side, spec.width, crop.left, crop.size)
    if crop.flip:
        columns = tuple(part[::-1] for part in columns)
    rows = bilinear_taps(crop.side, spec.height, crop.top, crop.size)
    return (
        group,
        np.stack([begin, end], 1).astype(np.int32),
        np.stack([*columns[:2], *rows[:2]]).astype(np.int32),
        np.stack([columns[2], rows[2]]),
        np.uint32(255 * crop.flip),
    )


# One function for each size: they are compiled when first called, which takes about a second.
@functools.lru_cache
def _crop_function(height: int, width: int, size: int) -> Callable:
    @tf.function(jit_compile=True, autograph=False)
    def function(motion, bound, steps, pixels, weights, flip, zero):
        x0, x1, y0, y1 = tf.unstack(pixels)
        x_weight, y_weight = tf.unstack(weights)
        cells = _cells(motion)
        crops = []
        for i in range(motion.shape[0]):
            (field,) = _kept([_field_words(cells[i], steps[i], height, width, bound)], zero)
            # Both pixels that a column lies between, in one word.
            pairs = tf.gather(field, x0, axis=1) | _left(tf.gather(field, x1, axis=1), 16)
            (pairs,) = _kept([pairs], zero)
            above, below = _kept([tf.gather(pairs, y0), tf.gather(pairs, y1)], zero)
            channels = [
                _between(
                    _across(above, 8 * channel, x_weight, zero),
                    _across(below, 8 * channel, x_weight, zero),
                    y_weight[:, None],
                    zero,
                )
                for channel in range(2)
            ]
            x, y = (tf.bitcast(channel + _TO_WHOLE, _U32) & 255 for channel in channels)
            crops.append((x ^ flip) | _left(y, 8))
        return tf.cast(tf.stack(crops), tf.uint16)

    return function


def _across(pairs: tf.Tensor, shift: int, weight: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """Return one channel of pairs of pixels, interpolated."""
    left, right = (
        tf.cast(_as_int(_right(pairs, shift + part) & 255), tf.float32) for part in (0, 16)
    )
    return _between(left, right, weight, zero)


def _between(low: tf.Tensor, high: tf.Tensor, weight: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """Return `low + (high - low) * weight` with both results rounded, as TensorFlow's kernel does.

    The compiler would else join product and sum to one operation that rounds once. It cannot see
    that the number added in between, to the bits of the product, is `zero`.
    """
    product = (high - low) * weight
    return low + tf.bitcast(_as_int(product) + zero, tf.float32)


def _kept(tensors: list[tf.Tensor], zero: tf.Tensor) -> list[tf.Tensor]:
    """Return tensors as they are, computed once and for all.

    The compiler would else recompute them wherever they are read. A loop's variables lie in
    memory; it cannot see that this loop turns once.
    """
    _, *kept = tf.while_loop(
        lambda turn, *_: turn < 1, lambda turn, *same: (turn + 1, *same), [zero, *tensors]
    )
    return kept


def _cells(motion: tf.Tensor) -> tf.Tensor:
    """Return displacements as words, (y, x) in their halves: `[..., L, rows * columns]`.

    Rows are filled up to a power of two, so that a shift gives the place of a row.
    """
    motion = tf.cast(join_bytes(motion), tf.int32)
    words = tf.bitcast(motion[..., 1] * 65536 + motion[..., 0], _U32)
    columns = words.shape[-1]
    padding = [[0, 0]] * (words.shape.rank - 1) + [[0, _power_of_two(columns) - columns]]
    padded = tf.pad(words, padding)
    return tf.reshape(padded, [*words.shape[:-2], words.shape[-2] * padded.shape[-1]])


def _field_words(
    cells: tf.Tensor, steps: tf.Tensor, height: int, width: int, bound: tf.Tensor
) -> tf.Tensor:
    """Return a field as words, uint32 `[height, width]`: x in the lowest byte, y in the next.

    `cells` are uint32 `[L, rows * columns]`; `steps` int32 `[2]`, from the first place in `cells`
    down to before the second.
    """
    columns = _power_of_two(-(-width // BLOCK))
    bits = columns.bit_length() - 1
    here = tf.constant((np.arange(height)[:, None] * 65536 + np.arange(width)).astype(np.uint32))

    def step(number: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # y lies 16 bits up, its cell 3 further; of which the cell's row takes what x leaves.
        row = _right(place, 16 + 3 - bits) & (0xFFFFFFFF - (columns - 1))
        cell = row | (_right(place, 3) & (columns - 1))
        there = place + tf.gather(cells[number], _as_int(cell))
        # A negative x borrows from y, but is itself found to lie outside, as a large number.
        inside = ((there & 0xFFFF) < width) & (_right(there, 16) < height)
        return number - 1, tf.where(inside, there, place)

    _, place = tf.while_loop(lambda number, _: number > steps[1], step, [steps[0], here])
    x, y = (
        _to_byte(_as_int(_right(here, s) & 0xFFFF) - _as_int(_right(place, s) & 0xFFFF), bound)
        for s in (0, 16)
    )
    return x | _left(y, 8)


def _right(words: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(words, tf.constant(bits, _U32))


def _left(words: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.left_shift(words, tf.constant(bits, _U32))


def _as_int(word: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(word, tf.int32)


def _to_byte(motion: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
    """Scale as `motion_fields.scale_to_uint8`; float32 is exact enough for whole pixels."""
    scaled = tf.cast(tf.cast(motion, tf.float32) * 127.5 / bound, tf.int32) + 128
    return tf.bitcast(tf.clip_by_value(scaled, 0, 255), _U32)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
