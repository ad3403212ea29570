"""Read the codec's motion vectors, and have them accumulated back to the I-frame.

Vectors are rasterized on an 8-pixel grid, the smallest block FFmpeg exports. `docs/video.md`
has the definition with a figure.
"""

import bisect
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np

from moclip_jax.input_pipeline.video.block_grid import BLOCK, VECTOR_DTYPE, rasterize_vectors
from moclip_jax.input_pipeline.video.block_motion import BlockMotion, FrameBlocks
from moclip_jax.input_pipeline.video.decode import decode_frames, frame_side_data, picture_type
from moclip_jax.input_pipeline.video.limits import NO_LIMITS, Limits, VideoError
from moclip_jax.input_pipeline.video.orientation import frame_orientation
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed

CODECS_WITH_VECTORS = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2"}
    | {"h261", "h263", "h263i", "flv", "rv10", "rv20", "h264"}
)
"""FFmpeg's decoders that export motion vectors."""

EXPORT_VECTORS = {"flags2": "+export_mvs"}
"""Decoder options that export motion vectors beside the whole frame."""

# Pixels are not wanted, only vectors: the inverse transform and the loop filter can be left out.
# Neither changes a vector (tested).
VECTORS_ONLY = EXPORT_VECTORS | {"skip_idct": "all", "skip_loop_filter": "all"}
"""Decoder options that export motion vectors and compute no more of the frame than they need."""

# Frames whose vectors wait to be rasterized together: numpy's cost a call is shared by them.
_RASTERIZED_AT_ONCE = 16


class NoVectorsError(VideoError):
    """A video without motion vectors that FFmpeg exports."""


@dataclasses.dataclass(frozen=True)
class MotionFrame:
    """The motion vectors of one frame.

    Attributes:
      index: Position in display order, from 0.
      time_s: Presentation time in seconds; NaN where the stream carries no time stamps.
      picture_type: 'I', 'P', 'B' or '?'.
      vectors: Structured array of `VECTOR_DTYPE`, empty where the frame has none.
      height: Height of the frame in pixels.
      width: Width of the frame in pixels.
    """

    index: int
    time_s: float
    picture_type: str
    vectors: np.ndarray
    height: int
    width: int


def frame_vectors(frame: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame's vectors as an array of `VECTOR_DTYPE`, empty if it has none."""
    return np.frombuffer(_vector_bytes(frame) or b"", VECTOR_DTYPE)


def _vector_bytes(frame: av.VideoFrame) -> bytes | None:
    """Return a frame's vectors, copied: a view would keep the whole frame in memory."""
    vectors = frame_side_data(frame, "MOTION_VECTORS")
    return None if vectors is None else bytes(memoryview(vectors))


def read_motion_vectors(
    path: str | os.PathLike, limits: Limits = NO_LIMITS
) -> Iterator[MotionFrame]:
    """Read the motion vectors that a video file carries, as they are coded.

    FFmpeg exports them for the codecs in `CODECS_WITH_VECTORS`. Other codecs give frames without
    vectors; `moclip_jax.input_pipeline.video.clip.read_clip` re-encodes and so reads those too.

    Yields:
      One `MotionFrame` a frame, in display order.

    Raises:
      VideoError: The file is absent, empty, not a video, cut or damaged.
    """
    for index, frame in enumerate(decode_frames(path, VECTORS_ONLY, limits)):
        try:
            vectors = frame_vectors(frame)
        except ValueError as error:
            raise VideoError(path, f"frame {index}: {error}") from error
        yield MotionFrame(
            index=index,
            time_s=float("nan") if frame.time is None else frame.time,
            picture_type=picture_type(frame),
            vectors=vectors,
            height=frame.height,
            width=frame.width,
        )


def frame_blocks(frame: av.VideoFrame) -> FrameBlocks:
    """Return the motion of a decoded frame.

    Raises:
      ValueError: A vector's block does not lie on the 8-pixel grid, or the frame is to be shown at
        an angle that is no multiple of 90 degrees.
    """
    kind, size = picture_type(frame), (frame.height, frame.width)
    # Only a B-frame has a next reference.
    grids = rasterize_vectors([_vector_bytes(frame) or b""], [kind == "B"], *size)
    return FrameBlocks(grids[0][0], grids[1][0], kind, *size, frame_orientation(frame))


class BlockMotionReader:
    """Collects the motion of one frame of a file after another.

    Attributes:
      has_vectors: Whether any frame had some.
    """

    def __init__(self, path: str | os.PathLike, wanted: Iterable[int] | None = None):
        """Start with no frame.

        Args:
          wanted: Frames whose motion will be requested; None for all. That of the others is dropped
            as soon as none of them depends on it, so that memory does not grow with the video.
        """
        self._path = path
        self._wanted = None if wanted is None else sorted(set(wanted))
        self._shape: tuple[int, int, int] | None = None
        self._types: list[str] = []
        self._waiting: list[bytes] = []
        self._rasterized: list[tuple[np.ndarray, np.ndarray]] = []
        self._gop = _OpenGop()
        self._kept: list[int] = []
        self.has_vectors = False

    def add(self, frame: av.VideoFrame, wanted: bool = True) -> None:
        """Read a frame's vectors; `wanted=False` leaves out a B-frame's, on which no frame depends.

        Raises:
          VideoError: The size or orientation changes, the display rotation is no multiple of 90
            degrees, a block does not lie on the 8-pixel grid, or side data cannot be read.
        """
        index = len(self._types)
        try:
            shape = frame.height, frame.width, frame_orientation(frame)
            vectors = _vector_bytes(frame)
        except ValueError as error:
            raise VideoError(self._path, f"frame {index}: {error}") from error
        if self._shape is None:
            self._shape = shape
        elif shape != self._shape:
            raise VideoError(self._path, f"the size or orientation changes at frame {index}")
        kind = picture_type(frame)
        self._types.append(kind)
        self.has_vectors = self.has_vectors or vectors is not None
        self._waiting.append(b"" if vectors is None or (kind == "B" and not wanted) else vectors)
        if len(self._waiting) == _RASTERIZED_AT_ONCE:
            self._rasterize()

    def _rasterize(self) -> None:
        assert self._shape is not None
        size = self._shape[:2]
        first = len(self._types) - len(self._waiting)
        both_ways = [kind == "B" for kind in self._types[first:]]
        try:
            rasterized = rasterize_vectors(self._waiting, both_ways, *size)
        except ValueError:
            # One by one, to say which it was.
            for index, vectors in enumerate(self._waiting):
                try:
                    rasterize_vectors([vectors], both_ways[index : index + 1], *size)
                except ValueError as error:
                    raise VideoError(self._path, f"frame {first + index}: {error}") from error
            raise
        self._waiting = []
        if self._wanted is None:
            self._rasterized.append(rasterized)
            return
        for index, (displacements, future) in enumerate(zip(*rasterized, strict=True), first):
            if self._types[index] == "I":
                self._close_gop(index)
            if self._types[index] != "B" or _holds(self._wanted, index, index + 1):
                self._gop.rows[index] = displacements, future

    def _close_gop(self, end: int) -> None:
        """Keep or drop the frames since the last I-frame, before `end`."""
        gop = self._gop
        is_wanted = _holds(self._wanted or (), gop.begin, end)
        if gop.rows and (is_wanted or gop.ends_another):
            self._kept += gop.rows
            displacements, future = zip(*gop.rows.values(), strict=True)
            self._rasterized.append((np.stack(displacements), np.stack(future)))
        # A B-frame at its end also depends on the I-frame that comes next.
        self._gop = _OpenGop(end, ends_another=is_wanted and self._types[end - 1] == "B")

    @property
    def num_frames(self) -> int:
        """Number of frames that were added."""
        return len(self._types)

    @property
    def num_bytes(self) -> int:
        """Size of the motion that is held."""
        height, width, _ = self._shape or (0, 0, 0)
        rows = self.num_frames
        if self._wanted is not None:
            rows = len(self._kept) + len(self._gop.rows) + len(self._waiting)
        # Of each cell two int16 and a bool.
        return rows * -(-height // BLOCK) * -(-width // BLOCK) * 5

    def result(self) -> BlockMotion:
        """Return the motion of all frames that were added, at least one.

        Raises:
          VideoError: A vector's block does not lie on the 8-pixel grid.
          NoVectorsError: Not a single vector came, and not all frames are I-frames.
        """
        if self._waiting:
            self._rasterize()
        self._close_gop(self.num_frames)
        height, width, orientation = self._shape or (0, 0, 0)
        grid = -(-height // BLOCK), -(-width // BLOCK)
        nothing = np.zeros((0, *grid, 2), np.int16), np.zeros((0, *grid), bool)
        displacements, future = zip(nothing, *self._rasterized, strict=True)
        types = np.array(self._types, "<U1")
        motion = BlockMotion(
            displacements=np.concatenate(displacements),
            is_intra=types == "I",
            is_bidirectional=types == "B",
            future=np.concatenate(future),
            height=height,
            width=width,
            orientation=orientation,
            kept=None if self._wanted is None else np.array(self._kept, np.int64),
        )
        if not self.has_vectors and not motion.is_intra.all():
            raise NoVectorsError(
                self._path,
                "its codec carries no motion vectors that FFmpeg exports; use the canonical form "
                "(moclip_jax.input_pipeline.video.clip.read_clip with VideoSpec.source='reencode' "
                "or 'auto')",
            )
        return motion


@dataclasses.dataclass
class _OpenGop:
    """The frames since the last I-frame, of which it is not known yet whether they are needed.

    Attributes:
      begin: The I-frame, or the first frame of the video.
      ends_another: Whether a wanted B-frame of the GOP before depends on the I-frame.
      rows: Of each frame its displacements and where they point to the future.
    """

    begin: int = 0
    ends_another: bool = False
    rows: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


def _holds(numbers: Sequence[int], begin: int, end: int) -> bool:
    """Return whether sorted numbers hold one from `begin` up to but not including `end`."""
    return bisect.bisect_left(numbers, begin) < bisect.bisect_left(numbers, end)


def accumulate_motion(
    path: str | os.PathLike, frame_indices: Sequence[int] | None = None, limits: Limits = NO_LIMITS
) -> np.ndarray:
    """Accumulate the motion vectors that a video file carries back to the I-frame of each GOP.

    A few frames of a long file come from their own GOPs alone, where the file makes sure that this
    gives the same; otherwise everything is decoded. See `accumulate` for the definition.

    Args:
      frame_indices: Frames wanted, in display order from 0; None for all.

    Returns:
      int32 `[n, height, width, 2]`, (x, y) of `position - origin` in pixels of the stream's own
      resolution, of the frame as it is shown (turned where the file says so); zero in I-frames.

    Raises:
      VideoError: As `read_motion_vectors`, or the codec carries no motion vectors that FFmpeg
        exports, or the frame changes its size on the way, or the file is beyond the limits.
        Damage in GOPs that are not needed is not noticed.
      IndexError: A frame index outside the video.
    """
    if frame_indices is not None and len(frame_indices):
        try:
            return _accumulate_needed(path, frame_indices, limits)
        except UncertainOrderError:
            pass  # Only a saving: what follows gives the same for any file.
    reader = BlockMotionReader(path, frame_indices)
    for frame in decode_frames(path, VECTORS_ONLY, limits):
        reader.add(frame)
    return reader.result().accumulate(frame_indices)


def _accumulate_needed(
    path: str | os.PathLike, frame_indices: Sequence[int], limits: Limits
) -> np.ndarray:
    reader = BlockMotionReader(path)
    wanted = set(frame_indices)
    place: dict[int, int] = {}
    for index, frame in decode_needed(path, frame_indices, VECTORS_ONLY, limits):
        place[index] = len(place)
        reader.add(frame, index in wanted)
    if not reader.has_vectors:
        raise UncertainOrderError  # Whether the codec has none shows only in the whole file.
    return reader.result().accumulate([place[index] for index in frame_indices])
