"""Fields of motion at a stream's own size, with B-frames, upright and scaled (TensorFlow ops).

The canonical form needs none of this: one size, no B-frames, upright. See `docs/video.md`.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from moclip_jax.input_pipeline import augment
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.motion_vectors import BLOCK
from moclip_jax.input_pipeline.video.orientation import FLIPPED_X, FLIPPED_Y, TRANSPOSED

NATIVE_FEATURES = ("is_bidirectional", "future", "height", "width", "orientation")
"""What an example of a stream's own motion holds besides that of a canonical one."""


def native_features(spec: VideoSpec) -> tuple[str, ...]:
    """Return the features that `native_fields` needs of a stored example, beside the usual ones."""
    return () if spec.source == "reencode" else NATIVE_FEATURES


def native_fields(
    example: Mapping[str, tf.Tensor],
    frame_indices: tf.Tensor,
    spec: VideoSpec,
    bound: float,
    accumulated: bool = True,
) -> tf.Tensor:
    """Return motion fields as bytes, at the size the picture is shown in.

    The motion equals `BlockMotion.accumulate`, bit for bit. Bytes mean the same as those of the
    canonical form: pixels are first scaled to canonical ones, on each axis by the ratio of the
    sizes. One field is made after another in the order of the frames, so that those of a group of
    pictures are accumulated together; only their bytes are kept.

    Args:
      example: As `example_from_video` gives, or a record's.
      frame_indices: int32 `[S]`.
      spec: The canonical form; its size is the unit of motion.
      bound: Motion in canonical pixels that reaches the ends of the range.
      accumulated: False gives the motion of each frame alone, against the reference that each block
        has. It points forward in time also where that is the next reference.

    Returns:
      uint8 `[S, h, w, 2]`; no motion is 128.
    """
    height, width = example["height"], example["width"]
    grid = [-1, -(-height // BLOCK), -(-width // BLOCK)]
    displacements = tf.reshape(example["displacements"], [*grid, 2])
    future = tf.reshape(example["future"], grid)
    is_bidirectional = example["is_bidirectional"]
    # The references, and before them a frame at rest for B-frames that are shown first.
    references = tf.cast(tf.where(~is_bidirectional)[:, 0], tf.int32)
    chain = tf.pad(tf.gather(displacements, references), [[1, 0], [0, 0], [0, 0], [0, 0]])
    chain_intra = tf.concat([[True], tf.gather(example["is_intra"], references)], 0)
    intra = tf.cast(tf.where(chain_intra)[:, 0], tf.int32)
    at_rest = augment.origins_at_rest(height, width)
    in_order = tf.argsort(frame_indices, stable=True)

    def follow(origins: tf.Tensor, begin: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Return the origins at a place of the chain from those at the place before `begin`."""
        frames = chain[begin : place + 1]
        return tf.ensure_shape(augment.follow_blocks(origins, frames, height, width), at_rest.shape)

    def one(
        number: tf.Tensor, reached: tf.Tensor, origins: tf.Tensor, fields: tf.TensorArray
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.TensorArray]:
        index = frame_indices[in_order[number]]
        place = tf.searchsorted(references, index[None], side="right")[0]
        start = intra[tf.searchsorted(intra, place[None], side="right")[0] - 1]
        if accumulated:
            # Go on from the frame before, if there is no I-frame between.
            origins = tf.cond(start > reached, lambda: at_rest, lambda: origins)
            begin = tf.maximum(start, reached) + 1
        else:
            origins, begin = at_rest, tf.maximum(start + 1, place)
        origins = follow(origins, begin, place)

        def of(origins: tf.Tensor) -> tf.Tensor:
            return augment.motion_of_origins(origins, height, width)

        def between() -> tf.Tensor:
            has_next = place + 1 < tf.size(chain_intra)
            if accumulated:
                following = tf.cond(
                    has_next,
                    lambda: tf.cond(
                        chain_intra[place + 1],
                        lambda: at_rest,
                        lambda: follow(origins, place + 1, place + 1),
                    ),
                    lambda: origins,
                )
                around = tf.stack([of(origins), of(following)])
            else:
                around = tf.zeros(tf.stack([2, height, width, 2]), tf.int32)
            return _between(
                displacements[index], future[index], around, has_next, height, width, accumulated
            )

        field = tf.cond(is_bidirectional[index], between, lambda: of(origins))
        shown = _orient(field, example["orientation"])
        scaled = scale_native(shown, tf.shape(shown), spec, bound)
        return number + 1, place, origins, fields.write(in_order[number], scaled)

    count = tf.size(frame_indices)
    fields = tf.TensorArray(tf.uint8, count, element_shape=[None, None, 2])
    *_, fields = tf.while_loop(
        lambda number, *_: number < count, one, [0, -1, at_rest, fields], parallel_iterations=1
    )
    return tf.ensure_shape(fields.stack(), [frame_indices.shape[0], None, None, 2])


def _between(
    displacements: tf.Tensor,
    future: tf.Tensor,
    fields: tf.Tensor,
    has_next: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    accumulated: bool,
) -> tf.Tensor:
    """Return the motion of a B-frame, int32 `[h, w, 2]`, from that of the references around it.

    A pixel whose source moved by `m` has itself moved by `m` and by the way from its source.
    """

    def spread(cells: tf.Tensor) -> tf.Tensor:
        return tf.repeat(tf.repeat(cells, BLOCK, 0), BLOCK, 1)[:height, :width]

    shift, ahead = spread(tf.cast(displacements, tf.int32)), spread(future)
    x, y = tf.range(width) + shift[..., 0], tf.range(height)[:, None] + shift[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (~ahead | has_next)
    # Both references' pixels in a row, the next one's behind.
    position = tf.where(inside, y * width + x, 0) + tf.where(ahead, height * width, 0)
    moved = tf.gather(tf.reshape(fields, [-1, 2]), position)
    if accumulated:
        moved -= shift
    else:
        moved += tf.where(ahead[..., None], shift, -shift)
    return tf.where(inside[..., None], moved, fields[0])


def _orient(field: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an int32 field `[h, w, 2]` as `orientation.orient_field` does."""

    def when(bit: int, turn: Any, field: tf.Tensor) -> tf.Tensor:
        is_set = tf.bitwise.bitwise_and(orientation, bit) > 0
        turned = tf.cond(is_set, lambda: turn(field), lambda: field)
        return tf.ensure_shape(turned, [None, None, 2])

    field = when(TRANSPOSED, lambda f: tf.reverse(tf.transpose(f, [1, 0, 2]), [2]), field)
    field = when(FLIPPED_X, lambda f: tf.reverse(f, [1]) * [-1, 1], field)
    return when(FLIPPED_Y, lambda f: tf.reverse(f, [0]) * [1, -1], field)


def scale_native(
    field: tf.Tensor, shown_size: tf.Tensor | tuple[int, int], spec: VideoSpec, bound: float
) -> tf.Tensor:
    """Scale motion of a stream's own size to bytes, on each axis by the ratio of the sizes.

    Args:
      field: int32 `[..., 2]`, (x, y) in pixels of the picture.
      shown_size: Height and width of the picture as it is shown.
      spec: The canonical form.
      bound: As `native_fields`.

    Returns:
      uint8 of the same shape: `int(v * canonical * 127.5 / (bound * size)) + 128`, clipped.
    """
    size = tf.cast(tf.stack([shown_size[1], shown_size[0]]), tf.float64)
    canonical = tf.constant([spec.width, spec.height], tf.float64)
    # In float64 both products are exact for a bound of few digits, as whole pixels are.
    scaled = tf.math.divide_no_nan(tf.cast(field, tf.float64) * (canonical * 127.5), size * bound)
    return tf.cast(tf.clip_by_value(tf.cast(scaled, tf.int32) + 128, 0, 255), tf.uint8)
