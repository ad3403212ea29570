"""Fields of accumulated canonical motion for `tf.data`, compiled by XLA.

A pixel's origin is found backwards: from frame to frame it goes where its block came from, until
the I-frame; a step that would leave the picture is not made. All pixels do so at once, in a loop
that the compiler turns into vector instructions. Fields of a stream's own motion, whose sizes
differ from video to video, are those of `native_motion.native_fields`.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from moclip_jax.input_pipeline.augment import Crop, bilinear_taps
from moclip_jax.input_pipeline.datasets.records import join_bytes, unpack_groups
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.motion_vectors import BLOCK

_U32 = tf.uint32
# Added to a float of little magnitude, it leaves the nearest whole number in the lowest bits.
_TO_WHOLE = 1.5 * 2**23


def motion_to_frames(
    example: Mapping[str, tf.Tensor], frame_indices: tf.Tensor, spec: VideoSpec, accumulated: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the displacements that lead to some frames.

    Args:
      example: `is_intra` bool `[n]`, and `displacements`: int16 `[n, gh, gw, 2]`, or string
        `[groups]` as they are stored, of which only the needed ones are unpacked.
      frame_indices: int32 `[S]`, static `S`.
      spec: The canonical form.
      accumulated: False for the motion of each frame alone.

    Returns:
      Displacements int16 `[S, L, gh, gw, 2]` of each group from its I-frame on, or uint8
      `[S, L, 2, gh, gw, 2]` if they came packed; and steps int32 `[S, 2]`: the place in the group
      of the first displacement that a pixel follows, and the place at which it has arrived.
    """
    grid = -(-spec.height // BLOCK), -(-spec.width // BLOCK)
    displacements, is_intra = example["displacements"], example["is_intra"]
    # A stream that is taken up in the middle has no I-frame first: it begins before frame 0.
    starts = tf.cast(tf.where(is_intra)[:, 0], tf.int32)
    packed = displacements.dtype == tf.string
    starts = tf.concat([[-1], starts], 0)
    group = tf.searchsorted(starts, frame_indices, side="right") - 1
    start = tf.gather(starts, group)
    length = spec.gop_size + 1
    if packed:
        # Stored videos begin with an I-frame.
        groups = tf.gather(displacements, group - 1)
        motion = unpack_groups(groups, grid, length)
    else:
        frames = start[:, None] + tf.range(length)
        frames = tf.clip_by_value(frames, 0, tf.shape(displacements)[0] - 1)
        motion = tf.ensure_shape(
            tf.gather(displacements, frames), [frame_indices.shape[0], length, *grid, 2]
        )
    begin = frame_indices - start
    with tf.control_dependencies(
        [tf.debugging.assert_less(begin, length, "a group is longer than VideoSpec.gop_size")]
    ):
        end = tf.zeros_like(begin) if accumulated else tf.maximum(begin - 1, 0)
    return motion, tf.stack([begin, end], 1)


def fields(motion: tf.Tensor, steps: tf.Tensor, spec: VideoSpec, bound: float) -> tf.Tensor:
    """Return fields of motion as bytes, as `augment.scale_to_uint8` of what `accumulate` gives.

    Args:
      motion: From `motion_to_frames`.
      steps: Likewise.
      spec: The canonical form.
      bound: Motion in pixels that reaches the ends of the range.

    Returns:
      uint8 `[S, height, width, 2]`; no motion is 128.
    """
    function = _fields_function(spec.height, spec.width)
    words = tf.map_fn(
        lambda one: function(*one, tf.constant(bound, tf.float32)),
        (motion, steps),
        fn_output_signature=tf.TensorSpec([spec.height, spec.width], tf.uint16),
    )
    return tf.bitcast(words, tf.uint8)


def cropped_fields(
    motion: tf.Tensor,
    steps: tf.Tensor,
    spec: VideoSpec,
    bound: float,
    *,
    size: int,
    sides: tuple[int, ...],
    crop: Crop,
) -> tf.Tensor:
    """Return fields resized, cropped and flipped, as `augment.crop_flip` makes them of `fields`.

    Only what lies under the crop is resized.

    Args:
      motion: From `motion_to_frames`.
      steps: Likewise.
      spec: The canonical form.
      bound: Motion in pixels that reaches the ends of the range.
      size: Side of the crop in pixels.
      sides: From `augment.crop_sides`.
      crop: From `augment.random_crop`.

    Returns:
      uint8 `[S, size, size, 2]`.
    """
    across, down = (
        [tf.constant(part) for part in bilinear_taps(sides, length)]
        for length in (spec.width, spec.height)
    )
    columns = [part[crop.choice, crop.left : crop.left + size] for part in across]
    columns = tf.cond(
        crop.flip, lambda: [tf.reverse(part, [0]) for part in columns], lambda: columns
    )
    rows = [part[crop.choice, crop.top : crop.top + size] for part in down]
    function = _crop_function(spec.height, spec.width, size)
    words = function(
        motion,
        steps,
        tf.constant(bound, tf.float32),
        *(tf.ensure_shape(part, [size]) for part in (*columns, *rows)),
        tf.where(crop.flip, tf.constant(255, _U32), tf.constant(0, _U32)),
        tf.constant(0),
    )
    return tf.bitcast(words, tf.uint8)


# One function for each size: they are compiled when first called, which takes about a second.
@functools.lru_cache
def _fields_function(height: int, width: int) -> Callable:
    @tf.function(jit_compile=True, autograph=False)
    def function(motion: tf.Tensor, steps: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
        return tf.cast(_field_words(_cells(motion), steps, height, width, bound), tf.uint16)

    return function


@functools.lru_cache
def _crop_function(height: int, width: int, size: int) -> Callable:
    @tf.function(jit_compile=True, autograph=False)
    def function(motion, steps, bound, x0, x1, x_weight, y0, y1, y_weight, flip, zero):
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

    The compiler would else compute them anew wherever they are read. A loop's variables lie in
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
    if motion.dtype == tf.uint8:
        motion = join_bytes(motion)
    motion = tf.cast(motion, tf.int32)
    words = tf.bitcast(motion[..., 1] * 65536 + motion[..., 0], _U32)
    columns = words.shape[-1]
    padding = [[0, 0]] * (words.shape.rank - 1) + [[0, _power_of_two(columns) - columns]]
    padded = tf.pad(words, padding)
    return tf.reshape(padded, [*words.shape[:-2], words.shape[-2] * padded.shape[-1]])


def _field_words(
    cells: tf.Tensor, steps: tf.Tensor, height: int, width: int, bound: tf.Tensor
) -> tf.Tensor:
    """Return a field as words, uint32 `[height, width]`: x in the lowest byte, y in the next.

    Args:
      cells: uint32 `[L, rows * columns]`.
      steps: int32 `[2]`, from the first place in `cells` down to before the second.
      height: Of the picture.
      width: Of the picture.
      bound: float scalar.
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
    """Scale as `augment.scale_to_uint8`."""
    scaled = tf.cast(tf.cast(motion, tf.float32) * 127.5 / bound, tf.int32) + 128
    return tf.bitcast(tf.clip_by_value(scaled, 0, 255), _U32)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
