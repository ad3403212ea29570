"""Read the codec's motion vectors and accumulate them back to the I-frame.

Accumulation follows CoViAR (Wu et al., "Compressed Video Action Recognition", CVPR 2018). Vectors
are painted on an 8-pixel grid, the smallest block FFmpeg exports, and each frame gathers once from
the frame before: the very result of the per-pixel definition, at about a millisecond a frame.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np

from input_pipeline.decoding import VideoError, decode_frames, picture_type

BLOCK = 8
"""Side in pixels of the grid on which displacements are painted."""

# Pixels are not wanted, only vectors: the inverse transform and the loop filter can be left out.
# Neither changes a vector (tested).
VECTORS_ONLY = {"flags2": "+export_mvs", "skip_idct": "all", "skip_loop_filter": "all"}
"""Decoder options that export motion vectors and compute no more of the picture than they need."""

VECTOR_DTYPE = np.dtype(
    {
        "names": [
            "source",
            "w",
            "h",
            "src_x",
            "src_y",
            "dst_x",
            "dst_y",
            "flags",
            "motion_x",
            "motion_y",
            "motion_scale",
        ],
        "formats": ["<i4", "u1", "u1", "<i2", "<i2", "<i2", "<i2", "<u8", "<i4", "<i4", "<u2"],
        "offsets": [0, 4, 5, 6, 8, 10, 12, 16, 24, 28, 32],
        "itemsize": 40,
        "aligned": True,
    }
)
"""FFmpeg's `AVMotionVector`, field by field."""


@dataclasses.dataclass(frozen=True)
class MotionFrame:
    """The motion vectors of one frame.

    Attributes:
      index: Position in display order, from 0.
      time_s: Presentation time in seconds; NaN where the stream carries no time stamps.
      picture_type: 'I', 'P', 'B' or '?'.
      vectors: Structured array of `VECTOR_DTYPE`, empty where the frame has none.
      height: Height of the picture in pixels.
      width: Width of the picture in pixels.
    """

    index: int
    time_s: float
    picture_type: str
    vectors: np.ndarray
    height: int
    width: int


def frame_vectors(frame: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame's vectors as an array of `VECTOR_DTYPE`, empty if it has none."""
    side_data = frame.side_data.get("MOTION_VECTORS")
    return np.empty(0, VECTOR_DTYPE) if side_data is None else side_data.to_ndarray()


def read_motion_vectors(path: str | os.PathLike) -> Iterator[MotionFrame]:
    """Read the motion vectors that a video file carries.

    FFmpeg exports them for the MPEG-1/2/4, H.263, MS-MPEG4 and H.264 families. Other codecs give
    frames without vectors; `input_pipeline.video.prepare_video` re-encodes and so reads those too.

    Args:
      path: A local video file.

    Yields:
      One `MotionFrame` a frame, in display order.

    Raises:
      VideoError: The file is absent, empty, not a video, cut or damaged.
    """
    for index, frame in enumerate(decode_frames(path, VECTORS_ONLY)):
        yield MotionFrame(
            index=index,
            time_s=float("nan") if frame.time is None else frame.time,
            picture_type=picture_type(frame),
            vectors=frame_vectors(frame),
            height=frame.height,
            width=frame.width,
        )


def paint_displacements(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """Paint the vectors that point to the past on the 8-pixel grid.

    Args:
      vectors: Structured array of `VECTOR_DTYPE`. Those with `source > 0` (from a future frame, in
        B-frames) are not painted.
      height: Height of the picture in pixels.
      width: Width of the picture in pixels.

    Returns:
      int16 `[ceil(height / 8), ceil(width / 8), 2]`, (x, y) of `src - dst` in pixels; zero where
      there is no vector.

    Raises:
      ValueError: A block does not lie on the 8-pixel grid.
    """
    grid_h, grid_w = -(-height // BLOCK), -(-width // BLOCK)
    grid = np.zeros((grid_h, grid_w, 2), np.int16)
    if not len(vectors):
        return grid
    shift_x = vectors["src_x"] - vectors["dst_x"]
    shift_y = vectors["src_y"] - vectors["dst_y"]
    moving = np.flatnonzero(((shift_x != 0) | (shift_y != 0)) & (vectors["source"] < 0))
    if not moving.size:
        return grid
    blocks = vectors[moving]
    shift = np.stack([shift_x[moving], shift_y[moving]], axis=-1)
    w, h = blocks["w"], blocks["h"]
    left, top = blocks["dst_x"] - w // 2, blocks["dst_y"] - h // 2
    if ((left | top | w | h) % BLOCK).any() or left.min() < 0 or top.min() < 0:
        raise ValueError("a motion vector's block does not lie on the picture's 8-pixel grid")
    column, row = left // BLOCK, top // BLOCK
    # The last blocks may reach over the picture's edge, so paint on a grid with a margin.
    margin = int(max(w.max(), h.max())) // BLOCK
    canvas = np.zeros((grid_h + margin, grid_w + margin, 2), np.int16)
    for j in range(int(h.max()) // BLOCK):
        for i in range(int(w.max()) // BLOCK):
            covered = (h > j * BLOCK) & (w > i * BLOCK) & (row < grid_h) & (column < grid_w)
            canvas[row[covered] + j, column[covered] + i] = shift[covered]
    return np.ascontiguousarray(canvas[:grid_h, :grid_w])


def accumulate_motion(
    path: str | os.PathLike, frame_indices: Sequence[int] | None = None
) -> np.ndarray:
    """Accumulate the motion vectors that a video file carries back to the I-frame of each GOP.

    Vectors from a future frame (`source > 0`, in B-frames) are not followed: under such a block a
    pixel keeps its own old value, as it does under an intra block.

    Args:
      path: A local video file.
      frame_indices: Frames wanted, in display order from 0; None for all.

    Returns:
      int32 `[n, height, width, 2]`, (x, y) of `position - origin` in pixels of the stream's own
      resolution; zero in I-frames.

    Raises:
      VideoError: As `read_motion_vectors`, or the codec carries no motion vectors that FFmpeg
        exports, or the picture changes its size on the way.
      IndexError: A frame index outside the video.
    """
    displacements: list[np.ndarray] = []
    is_intra: list[bool] = []
    size: tuple[int, int] | None = None
    found = False
    for frame in read_motion_vectors(path):
        if size is None:
            size = frame.height, frame.width
        elif size != (frame.height, frame.width):
            raise VideoError(path, f"the picture changes its size at frame {frame.index}")
        found = found or len(frame.vectors) > 0
        try:
            displacements.append(paint_displacements(frame.vectors, *size))
        except ValueError as error:
            raise VideoError(path, f"frame {frame.index}: {error}") from error
        is_intra.append(frame.picture_type == "I")
    if not found and not all(is_intra):
        raise VideoError(
            path,
            "its codec carries no motion vectors that FFmpeg exports; re-encode it, or use "
            "input_pipeline.video.prepare_video, which does",
        )
    assert size is not None
    return accumulate(np.stack(displacements), np.array(is_intra), *size, frame_indices)


def accumulate(
    displacements: np.ndarray,
    is_intra: np.ndarray,
    height: int,
    width: int,
    frame_indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Accumulate block displacements back to the I-frame of each GOP.

    At an I-frame every pixel is its own origin. In every later frame a pixel takes the origin that
    its source had in the frame before, if the source lies inside the picture, and keeps its own old
    origin otherwise.

    Args:
      displacements: int16 `[n, gh, gw, 2]` as `paint_displacements` gives.
      is_intra: bool `[n]`.
      height: Height of the picture in pixels.
      width: Width of the picture in pixels.
      frame_indices: Frames wanted, in any order; None for all.

    Returns:
      int32 `[len(frame_indices), height, width, 2]`, (x, y) of `position - origin` in pixels.

    Raises:
      IndexError: A frame index outside the video.
    """
    num_frames = len(displacements)
    wanted = np.arange(num_frames) if frame_indices is None else np.asarray(frame_indices, np.int64)
    outside = wanted[(wanted < 0) | (wanted >= num_frames)]
    if outside.size:
        raise IndexError(f"frame {outside[0]} is outside a video of {num_frames} frames")
    fields = np.zeros((len(wanted), height, width, 2), np.int32)
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(wanted.tolist()):
        rows.setdefault(index, []).append(row)
    gop = np.cumsum(is_intra)
    needed = np.isin(gop, gop[wanted])
    xs, ys = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    identity = ys * np.int32(width) + xs
    origin = identity
    for index in range(max(rows, default=-1) + 1):
        if not needed[index]:
            continue
        if is_intra[index]:
            origin = identity
        elif displacements[index].any():
            shift = displacements[index].repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
            shift = shift[:height, :width].astype(np.int32)
            x, y = xs + shift[..., 0], ys + shift[..., 1]
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            origin = origin.ravel()[np.where(inside, y * np.int32(width) + x, identity)]
        for row in rows.get(index, ()):
            origin_y, origin_x = np.divmod(origin, np.int32(width))
            fields[row, ..., 0] = xs - origin_x
            fields[row, ..., 1] = ys - origin_y
    return fields
