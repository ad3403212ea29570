"""Read the codec's motion vectors, and have them accumulated back to the I-frame.

Vectors are painted on an 8-pixel grid, the smallest block FFmpeg exports; `origin_maps` accumulates
them. `docs/video.md` has the definition with a picture.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np
from moclip_jax.input_pipeline.video.accumulate import (
    accumulate,
    accumulated_fields,
    checked_frames,
)
from moclip_jax.input_pipeline.video.block_grid import (
    BLOCK,
    VECTOR_DTYPE,
    paint_blocks,
    paint_displacements,
    paint_frames,
)
from moclip_jax.input_pipeline.video.decode import (
    NO_LIMITS,
    Limits,
    VideoError,
    decode_frames,
    picture_type,
)
from moclip_jax.input_pipeline.video.orientation import (
    frame_orientation,
    orient_field,
    oriented_size,
)
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed
from moclip_jax.input_pipeline.video.side_data import frame_side_data

CODECS_WITH_VECTORS = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2"}
    | {"h261", "h263", "h263i", "flv", "rv10", "rv20", "h264"}
)
"""FFmpeg's decoders that export motion vectors."""

EXPORT_VECTORS = {"flags2": "+export_mvs"}
"""Decoder options that export motion vectors beside the whole picture."""

# Pixels are not wanted, only vectors: the inverse transform and the loop filter can be left out.
# Neither changes a vector (tested).
VECTORS_ONLY = EXPORT_VECTORS | {"skip_idct": "all", "skip_loop_filter": "all"}
"""Decoder options that export motion vectors and compute no more of the picture than they need."""

# Frames whose vectors wait to be painted together: numpy's cost a call is shared by them.
_PAINT_AT_ONCE = 16


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
    return np.frombuffer(_vector_bytes(frame) or b"", VECTOR_DTYPE)


def _vector_bytes(frame: av.VideoFrame) -> bytes | None:
    """Return a frame's vectors, copied: they are the frame's own memory, and keep its picture."""
    vectors = frame_side_data(frame, "MOTION_VECTORS")
    return None if vectors is None else bytes(memoryview(vectors))


def read_motion_vectors(
    path: str | os.PathLike, limits: Limits = NO_LIMITS
) -> Iterator[MotionFrame]:
    """Read the motion vectors that a video file carries, as they are coded.

    FFmpeg exports them for the codecs in `CODECS_WITH_VECTORS`. Other codecs give frames without
    vectors; `moclip_jax.input_pipeline.video.clip.read_clip` re-encodes and so reads those too.

    Args:
      path: A local video file.
      limits: What the file may cost.

    Yields:
      One `MotionFrame` a frame, in display order.

    Raises:
      VideoError: The file is absent, empty, not a video, cut or damaged.
    """
    for index, frame in enumerate(decode_frames(path, VECTORS_ONLY, limits)):
        yield MotionFrame(
            index=index,
            time_s=float("nan") if frame.time is None else frame.time,
            picture_type=picture_type(frame),
            vectors=frame_vectors(frame),
            height=frame.height,
            width=frame.width,
        )


@dataclasses.dataclass(frozen=True)
class BlockMotion:
    """Motion of consecutive frames on the 8-pixel grid, and what it is accumulated along.

    Attributes:
      displacements: int16 `[n, gh, gw, 2]`, (x, y) of `src - dst` in pixels.
      is_intra: bool `[n]`, True for I-frames.
      is_bidirectional: bool `[n]`, True for B-frames; all others are references.
      future: bool `[n, gh, gw]`, True where a B-frame's displacement points to the next reference.
      height: Height of the coded picture in pixels.
      width: Width of the coded picture in pixels.
      orientation: How the coded picture is turned to be shown, see
        `moclip_jax.input_pipeline.video.orientation`.
    """

    displacements: np.ndarray
    is_intra: np.ndarray
    is_bidirectional: np.ndarray
    future: np.ndarray
    height: int
    width: int
    orientation: int

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the picture as it is shown."""
        return oriented_size(self.height, self.width, self.orientation)

    def accumulate(self, frame_indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return the accumulated motion of the picture as it is shown.

        Args:
          frame_indices: Frames wanted, in any order; None for all.

        Returns:
          int32 `[len(frame_indices), h, w, 2]` as `accumulate`, turned upright.

        Raises:
          IndexError: A frame index outside the video.
        """
        wanted = np.arange(len(self.is_intra)) if frame_indices is None else frame_indices
        fields = np.empty((len(wanted), *self.shown_size, 2), np.int32)
        for rows, field in self.accumulated_fields(wanted):
            fields[rows] = field
        return fields

    def accumulated_fields(
        self, frame_indices: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield what `accumulate` returns field by field, as `origin_maps.accumulated_fields`.

        Args:
          frame_indices: Frames wanted, in any order.

        Yields:
          Places in `frame_indices`, and their field int16 `[h, w, 2]`, turned upright.
        """
        for rows, field in accumulated_fields(
            self.displacements,
            self.is_intra,
            self.height,
            self.width,
            frame_indices,
            is_bidirectional=self.is_bidirectional,
            future=self.future,
        ):
            yield rows, orient_field(field, self.orientation)

    def each_alone(self, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the motion of frames against the reference that each block has, turned upright.

        Args:
          frame_indices: Frames wanted, in any order.

        Returns:
          int32 `[len(frame_indices), h, w, 2]`, (x, y) in pixels, forward in time either way: where
          a block refers to the next reference, it is the motion from the block to there.

        Raises:
          IndexError: A frame index outside the video.
        """
        index = checked_frames(frame_indices, len(self.is_intra))
        references = np.append(-1, np.flatnonzero(~self.is_bidirectional))
        has_next = index < references[-1]
        # Of each frame a video of three: it lies between two that are at rest.
        kinds = np.zeros((len(index), 3), bool)
        displacements = np.zeros((len(index), 3, *self.displacements.shape[1:]), np.int16)
        future = np.zeros(displacements.shape[:-1], bool)
        future[:, 1] = self.future[index]
        displacements[:, 1] = self.displacements[index]
        displacements[:, 1][future[:, 1] & ~has_next[:, None, None]] = 0
        is_intra, is_bidirectional = kinds.copy(), kinds.copy()
        is_intra[:, [0, 2]] = True
        is_intra[:, 1], is_bidirectional[:, 1] = self.is_intra[index], self.is_bidirectional[index]
        fields = accumulate(
            displacements.reshape(-1, *displacements.shape[2:]),
            is_intra.ravel(),
            self.height,
            self.width,
            np.arange(len(index)) * 3 + 1,
            is_bidirectional=is_bidirectional.ravel(),
            future=future.reshape(-1, *future.shape[2:]),
        )
        ahead = future[:, 1].repeat(BLOCK, 1).repeat(BLOCK, 2)[:, : self.height, : self.width]
        np.negative(fields, out=fields, where=ahead[..., None])
        return orient_field(fields, self.orientation)


@dataclasses.dataclass(frozen=True)
class FrameBlocks:
    """One frame of a `BlockMotion`.

    Attributes:
      displacements: int16 `[gh, gw, 2]`.
      future: bool `[gh, gw]`.
      picture_type: 'I', 'P', 'B' or '?'.
      height: Height of the coded picture in pixels.
      width: Width of the coded picture in pixels.
      orientation: How the coded picture is turned to be shown.
    """

    displacements: np.ndarray
    future: np.ndarray
    picture_type: str
    height: int
    width: int
    orientation: int

    @property
    def picture(self) -> tuple[int, int, int]:
        """What all frames of a video share."""
        return self.height, self.width, self.orientation


def frame_blocks(frame: av.VideoFrame, wanted: bool = True) -> FrameBlocks:
    """Return the motion of a decoded frame.

    Args:
      frame: From the decoder.
      wanted: False gives a B-frame no motion, which takes less time.

    Raises:
      ValueError: A vector's block does not lie on the 8-pixel grid, or the frame is to be shown at
        an angle that is no multiple of 90 degrees.
    """
    kind, size = picture_type(frame), (frame.height, frame.width)
    if kind == "B":
        vectors = frame_vectors(frame) if wanted else np.empty(0, VECTOR_DTYPE)
        displacements, future = paint_blocks(vectors, *size)
    else:
        # Only a B-frame has a next reference.
        displacements = paint_displacements(frame_vectors(frame), *size)
        future = np.zeros(displacements.shape[:2], bool)
    return FrameBlocks(displacements, future, kind, *size, frame_orientation(frame))


def join_blocks(frames: Sequence[FrameBlocks]) -> BlockMotion:
    """Return the motion of consecutive frames, at least one, of the same picture size."""
    height, width, orientation = frames[0].picture
    types = np.array([frame.picture_type for frame in frames])
    return BlockMotion(
        displacements=np.stack([frame.displacements for frame in frames]),
        is_intra=types == "I",
        is_bidirectional=types == "B",
        future=np.stack([frame.future for frame in frames]),
        height=height,
        width=width,
        orientation=orientation,
    )


class BlockMotionReader:
    """Collects the motion of one frame of a file after another.

    Attributes:
      has_vectors: Whether any frame had some.
      num_bytes: Size of the motion.
    """

    def __init__(self, path: str | os.PathLike):
        """Start with no frame.

        Args:
          path: The file, for messages.
        """
        self._path = path
        self._picture: tuple[int, int, int] | None = None
        self._types: list[str] = []
        self._waiting: list[bytes] = []
        self._painted: list[tuple[np.ndarray, np.ndarray]] = []
        self.has_vectors = False
        self.num_bytes = 0

    def add(self, frame: av.VideoFrame, wanted: bool = True) -> None:
        """Read a frame's vectors.

        Args:
          frame: From the decoder.
          wanted: False leaves out a B-frame's motion, on which no other frame depends.

        Raises:
          VideoError: The picture changes its size or orientation, is to be shown at an angle that
            is no multiple of 90 degrees, or a vector's block does not lie on the 8-pixel grid.
        """
        index = len(self._types)
        try:
            picture = frame.height, frame.width, frame_orientation(frame)
        except ValueError as error:
            raise VideoError(self._path, f"frame {index}: {error}") from error
        if self._picture is None:
            self._picture = picture
        elif picture != self._picture:
            raise VideoError(
                self._path, f"the picture changes its size or orientation at frame {index}"
            )
        kind = picture_type(frame)
        self._types.append(kind)
        vectors = _vector_bytes(frame)
        self.has_vectors = self.has_vectors or vectors is not None
        self._waiting.append(b"" if vectors is None or (kind == "B" and not wanted) else vectors)
        # Of each cell two int16 and a bool.
        self.num_bytes += -(-frame.height // BLOCK) * -(-frame.width // BLOCK) * 5
        if len(self._waiting) == _PAINT_AT_ONCE:
            self._paint()

    def _paint(self) -> None:
        assert self._picture is not None
        size = self._picture[:2]
        first = len(self._types) - len(self._waiting)
        both_ways = [kind == "B" for kind in self._types[first:]]
        try:
            painted = paint_frames(self._waiting, both_ways, *size)
        except ValueError:
            # One by one, to say which it was.
            for index, vectors in enumerate(self._waiting):
                try:
                    paint_frames([vectors], both_ways[index : index + 1], *size)
                except ValueError as error:
                    raise VideoError(self._path, f"frame {first + index}: {error}") from error
            raise
        self._painted.append(painted)
        self._waiting = []

    @property
    def num_frames(self) -> int:
        """Number of frames that were added."""
        return len(self._types)

    def result(self) -> BlockMotion:
        """Return the motion of all frames that were added, at least one.

        Raises:
          VideoError: A vector's block does not lie on the 8-pixel grid.
          NoVectorsError: Not a single vector came, and not all frames are I-frames.
        """
        if self._waiting:
            self._paint()
        height, width, orientation = self._picture or (0, 0, 0)
        grid = -(-height // BLOCK), -(-width // BLOCK)
        nothing = np.zeros((0, *grid, 2), np.int16), np.zeros((0, *grid), bool)
        displacements, future = zip(nothing, *self._painted, strict=True)
        types = np.array(self._types, "<U1")
        motion = BlockMotion(
            displacements=np.concatenate(displacements),
            is_intra=types == "I",
            is_bidirectional=types == "B",
            future=np.concatenate(future),
            height=height,
            width=width,
            orientation=orientation,
        )
        if not self.has_vectors and not motion.is_intra.all():
            raise NoVectorsError(
                self._path,
                "its codec carries no motion vectors that FFmpeg exports; use the canonical form "
                "(moclip_jax.input_pipeline.video.clip.read_clip with "
                "VideoSpec.source='reencode' or 'auto')",
            )
        return motion


def accumulate_motion(
    path: str | os.PathLike,
    frame_indices: Sequence[int] | None = None,
    limits: Limits = NO_LIMITS,
) -> np.ndarray:
    """Accumulate the motion vectors that a video file carries back to the I-frame of each GOP.

    A few frames of a long file come from their own GOPs alone, where the file makes sure that this
    gives the same; otherwise everything is decoded. See `accumulate` for the definition.

    Args:
      path: A local video file.
      frame_indices: Frames wanted, in display order from 0; None for all.
      limits: What the file may cost.

    Returns:
      int32 `[n, height, width, 2]`, (x, y) of `position - origin` in pixels of the stream's own
      resolution, of the picture as it is shown (turned where the file says so); zero in I-frames.

    Raises:
      VideoError: As `read_motion_vectors`, or the codec carries no motion vectors that FFmpeg
        exports, or the picture changes its size on the way, or the file is beyond the limits.
        Damage in GOPs that are not needed is not noticed.
      IndexError: A frame index outside the video.
    """
    if frame_indices is not None and len(frame_indices):
        try:
            return _accumulate_needed(path, frame_indices, limits)
        except UncertainOrderError:
            pass  # Only a saving: what follows gives the same for any file.
    reader = BlockMotionReader(path)
    wanted = None if frame_indices is None else set(frame_indices)
    for index, frame in enumerate(decode_frames(path, VECTORS_ONLY, limits)):
        reader.add(frame, wanted is None or index in wanted)
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
