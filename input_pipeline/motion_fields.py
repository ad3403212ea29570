"""Motion fields as bytes: scaled, resized, cropped and flipped (NumPy)."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from moclip_jax.input_pipeline.video.motion_vectors import BlockMotion
from moclip_jax.input_pipeline.video.spec import VideoSpec


def scale_to_uint8(
    motion: np.ndarray, size: tuple[int, int], spec: VideoSpec, bound: float
) -> np.ndarray:
    """Scale motion in pixels to bytes.

    The unit is the pixel of the canonical form: motion of a frame of another size is first scaled
    by the ratio of the sizes, on each axis by its own.

    Args:
      motion: int `[..., 2]`, (x, y) in pixels.
      size: Height and width in pixels of the frame that moves.
      bound: Motion in canonical pixels that reaches the ends of the byte range.

    Returns:
      uint8 of the same shape, `int(v * canonical / size * 127.5 / bound) + 128`, clipped to
      0..255; no motion is 128.
    """
    # In float64 both products are exact for a bound of few digits, as whole pixels are, so that
    # the one division is rounded as if all were exact.
    canonical = np.array([spec.width, spec.height]) * 127.5
    scaled = motion * canonical / (np.array(size[::-1]) * float(bound))
    return np.clip(scaled.astype(np.int32) + 128, 0, 255).astype(np.uint8)


def byte_fields(
    motion: BlockMotion,
    frame_indices: Sequence[int] | np.ndarray,
    spec: VideoSpec,
    bound: float,
    accumulated: bool = True,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the motion fields of some frames as bytes, one at a time.

    Args:
      motion: Of a video.
      spec: The canonical form, whose size is the unit of motion.
      bound: As `scale_to_uint8`.
      accumulated: False for the motion of each frame alone, against the reference that each block
        has. It points forward in time also where that is the next reference.

    Yields:
      Places in `frame_indices` that request a frame, and its field uint8 `[h, w, 2]` as it is
      shown, which the next one takes the place of.
    """
    height, width = motion.shown_size
    # No pixel comes from outside the frame: there are few values, and each is scaled once.
    reach = max(height, width)
    values = np.arange(-reach, reach + 1)
    table = scale_to_uint8(np.stack([values, values], 1), (height, width), spec, bound)
    table = table.T.ravel()  # First the bytes of x, then those of y.
    zero = np.broadcast_to(np.array([reach, reach + len(values)], np.intp), (height, width, 2))
    zero = zero.copy()
    places, scaled = np.empty_like(zero), np.empty(zero.shape, np.uint8)
    if accumulated:
        fields = motion.accumulated_fields(frame_indices)
    else:
        fields = (([row], field) for row, field in enumerate(motion.each_alone(frame_indices)))
    for rows, field in fields:
        np.add(zero, field, out=places)
        # All lie in the table; 'clip' because NumPy would copy the output otherwise.
        yield rows, np.take(table, places, out=scaled, mode="clip")


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square of a field that was resized to a square.

    Attributes:
      side: Side in pixels that the field is resized to.
      top: First row of the crop.
      left: First column of the crop.
      size: Side of the crop in pixels.
      flip: Whether the crop is flipped horizontally.
    """

    side: int
    top: int
    left: int
    size: int
    flip: bool = False


class CropResizer:
    """Resizes fields of one size and crops them; only what lies under the crop is computed.

    The resize is bilinear with half-pixel centres and without antialiasing: bit for bit what
    TensorFlow's `tf.image.resize` gives, rounded half to even, and OpenCV's to one grey level.
    """

    def __init__(self, height: int, width: int, crop: Crop):
        """Prepare for fields of one size.

        Args:
          crop: What is taken of them.
        """
        upper, lower, self._down = bilinear_taps(crop.side, height, crop.top, crop.size)
        columns = bilinear_taps(crop.side, width, crop.left, crop.size)
        self._flip = crop.flip
        self._left, self._right, across = (part[::-1] if crop.flip else part for part in columns)
        self._rows = slice(upper[0], lower[-1] + 1)
        self._upper, self._lower = upper - upper[0], lower - upper[0]
        # Of both channels of a pixel.
        self._across = np.repeat(across, 2)

    def __call__(self, field: np.ndarray) -> np.ndarray:
        """Return uint8 `[size, size, 2]` of a contiguous field uint8 `[h, w, 2]`."""
        # Both channels of a pixel as one item.
        pixels = field.view(np.uint16)[self._rows, :, 0]
        left, right = _floats(pixels, self._left), _floats(pixels, self._right)
        rows = _between(left, right, self._across)
        if self._down.any():
            rows = _between(rows[self._upper], rows[self._lower], self._down[:, None])
        else:  # As in the canonical form, whose height is that of the test view's square.
            rows = rows[self._upper]
        result = np.rint(rows, out=rows).astype(np.uint8).reshape(len(rows), -1, 2)
        return flip_sign(result) if self._flip else result


def ten_crops(resized: np.ndarray, size: int) -> np.ndarray:
    """Take the corners and the middle of squares, uint8 `[S, side, side, 2]`, and the same flipped.

    Returns uint8 `[10, S, size, size, 2]`: upper left, upper right, lower left, lower right,
    middle, then the same five flipped, with the sign of x turned.
    """
    end = resized.shape[1] - size
    middle = end // 2
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    five = np.stack([resized[:, top : top + size, left : left + size] for top, left in corners])
    return np.concatenate([five, flip_sign(five[..., ::-1, :])])


def flip_sign(fields: np.ndarray) -> np.ndarray:
    """Turn the sign of x as near as bytes allow: 255 - v, so that 128 becomes 127."""
    return fields ^ np.array([255, 0], np.uint8)


@functools.lru_cache(maxsize=64)
def _all_taps(side: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # In float32 and in this order of operations, as TensorFlow's kernel computes them.
    scale = np.float32(length) / np.float32(side)
    place = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    floor = np.floor(place)
    lower = np.maximum(floor, 0).astype(np.intp)
    upper = np.minimum(np.ceil(place), length - 1).astype(np.intp)
    return lower, upper, place - floor


def bilinear_taps(
    side: int, length: int, first: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return between which pixels a bilinear resize with half-pixel centres interpolates.

    An axis of `length` pixels is resized to `side`, of which `count` from `first` on are wanted.
    Returns the lower and the upper pixel, int64, and the weight of the upper, float32; each
    `[count]`.
    """
    lower, upper, weight = _all_taps(side, length)
    taken = slice(first, first + count)
    return lower[taken], upper[taken], weight[taken]


def _floats(pixels: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return some columns' bytes as float32: uint16 `[n, w]` -> `[n, 2 * len(columns)]`."""
    return np.take(pixels, columns, axis=1).view(np.uint8).astype(np.float32)


def _between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return `low + (high - low) * weight`, each operation rounded, in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high
