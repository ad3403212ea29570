"""Write and read the record of a prepared video: a `tf.train.Example` in a TFRecord file.

Every record has `name`, `label`, `num_frames`, `fps`, the JPEG `frames` and their `frame_indices`,
and the motion in one of two forms, by `VideoSpec.source`:

* 'reencode': `is_intra`, and `displacements` as a list of zlib strings, one for each group of
  pictures. A training sample reads the motion of a few groups only, so that each is compressed by
  itself. A value `v` is stored as the two bytes of `v + 128`; all low bytes of a frame come before
  all its high bytes. Motion below 128 pixels has high bytes of zero, which compress to almost
  nothing.
* otherwise: the stream's own vectors, whose size differs from video to video. `displacements` and
  `future` are one zlib string each, with the cells of all grids in a row; `is_bidirectional`,
  `height`, `width`, `orientation` and `source` describe them.

Worker processes write records with NumPy alone. TensorFlow and TFDS are imported by the functions
that read.
"""

import functools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec
from moclip_jax.input_pipeline.video.motion_vectors import BLOCK

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds

_OFFSET = 128
_NATIVE_FIELDS = ("height", "width", "orientation")


def encode_record(name: str, label: int | tuple[int, ...], clip: Clip, spec: VideoSpec) -> bytes:
    """Serialize a video as a `tf.train.Example`, to the same bytes in every process.

    `label` is that of `VideoEntry`; `spec.source` decides how the motion is stored.
    """
    features = {
        "name": _bytes_list([name.encode()]),
        "label": _int64_list(np.atleast_1d(label)),
        "num_frames": _int64_list([clip.num_frames]),
        "fps": _float_list([clip.fps]),
        "frames": _bytes_list(clip.frames),
        "frame_indices": _int64_list(clip.frame_indices),
        "is_intra": _int64_list(clip.is_intra),
    }
    if spec.source == "reencode":
        packed = pack_displacements(clip.displacements, clip.is_intra)
        features["displacements"] = _bytes_list(packed)
    else:
        features["displacements"] = _bytes_list([zlib.compress(clip.displacements.tobytes())])
        features["future"] = _bytes_list([zlib.compress(clip.future.tobytes())])
        features["is_bidirectional"] = _int64_list(clip.is_bidirectional)
        features["source"] = _bytes_list([clip.source.encode()])
        for field in _NATIVE_FIELDS:
            features[field] = _int64_list([getattr(clip, field)])
    # Maps have no order of their own; sorted, the bytes are those of protobuf's deterministic mode.
    entries = (
        _message(1, _message(1, key.encode()) + _message(2, value))
        for key, value in sorted(features.items())
    )
    return _message(1, b"".join(entries))


def pack_displacements(displacements: np.ndarray, is_intra: np.ndarray) -> list[bytes]:
    """Compress canonical displacements, int16 `[n, gh, gw, 2]`, to a zlib string for each GOP.

    A GOP begins where `is_intra` (bool `[n]`) is True, and at frame 0 in any case.
    """
    frames = len(displacements)
    shifted = (displacements.reshape(frames, -1).astype(np.int32) + _OFFSET).astype(np.uint16)
    planes = np.stack([shifted & 0xFF, shifted >> 8], 1).astype(np.uint8)
    starts = np.unique(np.append(0, np.flatnonzero(is_intra))).tolist()
    return [
        zlib.compress(planes[begin:end].tobytes())
        for begin, end in zip(starts, [*starts[1:], frames], strict=True)
    ]


def unpack_displacements(packed: Iterable[bytes], grid: tuple[int, int]) -> np.ndarray:
    """Decompress some GOPs from `pack_displacements` to int16 `[n, gh, gw, 2]`, with NumPy."""
    raw = np.frombuffer(b"".join(map(zlib.decompress, packed)), np.uint8)
    planes = raw.reshape(-1, 2, *grid, 2)
    # Addition in uint16 wraps around, so that the sum is right for negative values too.
    joined = planes[:, 1].astype(np.uint16) << 8
    joined += planes[:, 0]
    joined -= _OFFSET
    return joined.view(np.int16)


def clip_from_record(
    example: Mapping[str, np.ndarray], spec: VideoSpec, frame_indices: Iterable[int] = ()
) -> Clip:
    """Return the video of a record, or those parts of it that were parsed.

    Args:
      example: `num_frames`, and what else is wanted, as `parse_record` gives it, in NumPy.
      frame_indices: Frames whose motion is wanted. Of canonical motion only their GOPs,
        and those of the frames before them, are unpacked.

    Returns:
      The video. What was not parsed is empty; times are not stored, and zero.
    """
    native = "height" in example
    height, width, orientation = spec.height, spec.width, 0
    if native:
        height, width, orientation = (int(example[field]) for field in _NATIVE_FIELDS)
    num_frames, grid = int(example["num_frames"]), (-(-height // BLOCK), -(-width // BLOCK))
    is_intra = example.get("is_intra", np.zeros(0, bool))
    is_bidirectional, kept = np.zeros(len(is_intra), bool), None
    if native and len(is_intra):
        displacements = example["displacements"].reshape(-1, *grid, 2)
        future = example["future"].reshape(-1, *grid)
        is_bidirectional = example["is_bidirectional"]
    else:
        wanted = np.asarray(frame_indices, np.int64)
        group = np.cumsum(is_intra) - is_intra[:1]
        needed = np.unique(group[np.maximum([wanted, wanted - 1], 0)])
        kept = np.flatnonzero(np.isin(group, needed))
        displacements = unpack_displacements((example["displacements"][i] for i in needed), grid)
        future = np.zeros(displacements.shape[:3], bool)
    return Clip(
        displacements=displacements,
        is_intra=is_intra,
        frames=list(example.get("frames", [])),
        frame_indices=example.get("frame_indices", np.zeros(0, np.int32)),
        num_frames=num_frames,
        fps=0.0,
        source="native" if native else "reencode",
        height=height,
        width=width,
        orientation=orientation,
        is_bidirectional=is_bidirectional,
        future=future,
        times=np.zeros(num_frames),
        kept=kept,
    )


def motion_features(spec: VideoSpec) -> tuple[str, ...]:
    """Return the features of a record that describe its motion."""
    canonical = ("num_frames", "is_intra", "displacements")
    native = (*canonical, "future", "is_bidirectional", *_NATIVE_FIELDS)
    return canonical if spec.source == "reencode" else native


def grid_size(spec: VideoSpec) -> tuple[int, int]:
    """Return the height and width of the canonical displacement grid, in cells."""
    return -(-spec.height // BLOCK), -(-spec.width // BLOCK)


@functools.lru_cache(maxsize=4)
def record_features(spec: VideoSpec, multi_label: bool = False) -> "tfds.features.FeaturesDict":
    """Return the TFDS features of a record, with which TFDS reads a data set by itself."""
    import tensorflow_datasets as tfds

    stored: dict[str, Any] = {
        "name": tfds.features.Text(),
        "label": tfds.features.Sequence(np.int64) if multi_label else np.int64,
        "num_frames": np.int64,
        "fps": np.float32,
        "frames": tfds.features.Sequence(
            tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        ),
        "frame_indices": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "is_intra": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
    }
    if spec.source == "reencode":
        stored["displacements"] = tfds.features.Sequence(tfds.features.Text())
    else:
        stored["displacements"] = tfds.features.Tensor(
            shape=(None, 2), dtype=np.int16, encoding="zlib"
        )
        stored["future"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_, encoding="zlib")
        stored["is_bidirectional"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_)
        stored["source"] = tfds.features.Text()
        stored |= dict.fromkeys(_NATIVE_FIELDS, np.int32)
    return tfds.features.FeaturesDict(stored)


def parse_record(
    record: "tf.Tensor", features: Sequence[str], spec: VideoSpec
) -> dict[str, "tf.Tensor"]:
    """Parse some features of a serialized record in TensorFlow, and no others.

    Args:
      record: string scalar.
      features: Names of features; RGB `frames` stay JPEG.

    Returns:
      The features, in the dtypes of the fields of `Clip`; canonical `displacements` stay packed,
      string `[groups]`, for a caller that needs only some of the groups.
    """
    import tensorflow as tf

    stored = record_features(spec)
    example = tf.io.parse_single_example(
        record, {name: stored.tf_example_spec[name] for name in features}
    )
    for name in features:
        if name == "displacements" and spec.source == "reencode":
            continue
        if name in ("displacements", "future"):
            example[name] = stored[name].decode_example(example[name])
        elif name in ("is_intra", "is_bidirectional", "frame_indices", *_NATIVE_FIELDS):
            # A `tf.train.Example` has no integers but int64, and no booleans.
            example[name] = tf.cast(example[name], stored[name].tf_dtype)
    return example


def unpack_groups(packed: "tf.Tensor", grid: tuple[int, int], num_frames: int) -> "tf.Tensor":
    """Decompress some GOPs, string `[S]`, in TensorFlow, to arrays of one length.

    `num_frames` is at least the frames of the longest. Returns uint8
    `[S, num_frames, 2, gh, gw, 2]`, low and high bytes; zeros follow a shorter GOP.
    """
    import tensorflow as tf

    size = num_frames * 2 * grid[0] * grid[1] * 2
    inflated = tf.io.decode_compressed(packed, "ZLIB")
    raw = tf.io.decode_raw(inflated, tf.uint8, fixed_length=size)
    return tf.reshape(raw, [-1, num_frames, 2, *grid, 2])


def join_bytes(planes: "tf.Tensor") -> "tf.Tensor":
    """Join low and high bytes: uint8 `[..., 2, gh, gw, 2]` -> int16 `[..., gh, gw, 2]`."""
    import tensorflow as tf

    low, high = (tf.cast(planes[..., i, :, :, :], tf.int32) for i in range(2))
    return tf.cast(low + 256 * high - _OFFSET, tf.int16)


# The wire format of `tf.train.Example`: written here because its class comes with TensorFlow, which
# takes seconds to import. An `Example` (field 1: features) holds a map of names to a `Feature`,
# which is a list of bytes (field 1), of floats (field 2) or of int64 (field 3).


def _bytes_list(values: Iterable[bytes]) -> bytes:
    return _message(1, b"".join(_message(1, value) for value in values))


def _float_list(values: Iterable[float]) -> bytes:
    return _message(2, _message(1, np.asarray(values, "<f4").tobytes()))


def _int64_list(values: Iterable[Any]) -> bytes:
    # Negative numbers are stored as their two's complement of 64 bits.
    varints = b"".join(_varint(int(value) % 2**64) for value in values)
    return _message(3, _message(1, varints))


def _message(field: int, content: bytes) -> bytes:
    """Encode a field of bytes: its number and wire type 2, the length, the bytes."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encode a non-negative integer in groups of seven bits, the lowest first."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
