"""How canonical displacements lie in the records: packed, each group of pictures by itself.

A training sample needs the motion of a few groups. Each is compressed alone, so that the others
stay packed. A value `v` is stored as the two bytes of `v + 128`, of each frame all low bytes before
all high ones: motion of less than 128 pixels has no high bytes but zeros, which cost next to
nothing.
"""

import zlib

import numpy as np

# Loaded when first used: worker processes pack, and need no TensorFlow.
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

_OFFSET = 128


def pack_displacements(displacements: np.ndarray, is_intra: np.ndarray) -> list[bytes]:
    """Pack the displacements of a video.

    Args:
      displacements: int16 `[n, gh, gw, 2]`.
      is_intra: bool `[n]`, True where a group begins; one begins at frame 0 in any case.

    Returns:
      Compressed bytes of each group.
    """
    frames = len(displacements)
    shifted = (displacements.reshape(frames, -1).astype(np.int32) + _OFFSET).astype(np.uint16)
    planes = np.stack([shifted & 0xFF, shifted >> 8], 1).astype(np.uint8)
    starts = np.unique(np.append(0, np.flatnonzero(is_intra))).tolist()
    return [
        zlib.compress(planes[begin:end].tobytes())
        for begin, end in zip(starts, [*starts[1:], frames], strict=True)
    ]


def unpack_displacements(packed: "tf.Tensor", grid: tuple[int, int]) -> "tf.Tensor":
    """Return all displacements of a video.

    Args:
      packed: string `[groups]`, from `pack_displacements`.
      grid: Height and width of the grid, in cells.

    Returns:
      int16 `[n, gh, gw, 2]`.
    """
    raw = tf.io.decode_raw(tf.strings.reduce_join(_inflated(packed)), tf.uint8)
    return join_bytes(tf.reshape(raw, [-1, 2, *grid, 2]))


def unpack_groups(packed: "tf.Tensor", grid: tuple[int, int], num_frames: int) -> "tf.Tensor":
    """Return the stored bytes of some groups.

    Args:
      packed: string `[S]`, some of those from `pack_displacements`.
      grid: Height and width of the grid, in cells.
      num_frames: Frames of the longest group at least.

    Returns:
      uint8 `[S, num_frames, 2, gh, gw, 2]`, low and high bytes; zeros follow a shorter group.
    """
    size = num_frames * 2 * grid[0] * grid[1] * 2
    raw = tf.io.decode_raw(_inflated(packed), tf.uint8, fixed_length=size)
    return tf.reshape(raw, [-1, num_frames, 2, *grid, 2])


def join_bytes(planes: "tf.Tensor") -> "tf.Tensor":
    """Join low and high bytes: uint8 `[..., 2, gh, gw, 2]` -> int16 `[..., gh, gw, 2]`."""
    low, high = (tf.cast(planes[..., i, :, :, :], tf.int32) for i in range(2))
    return tf.cast(low + 256 * high - _OFFSET, tf.int16)


def _inflated(packed: "tf.Tensor") -> "tf.Tensor":
    return tf.io.decode_compressed(packed, "ZLIB")
