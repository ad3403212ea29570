"""Motion of consecutive frames on the 8-pixel grid, and its accumulation."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from moclip_jax.input_pipeline.video.accumulate import (
    accumulate,
    accumulated_fields,
    checked_frames,
)
from moclip_jax.input_pipeline.video.block_grid import BLOCK
from moclip_jax.input_pipeline.video.orientation import orient_field, oriented_size


@dataclasses.dataclass(frozen=True)
class BlockMotion:
    """Motion of consecutive frames on the 8-pixel grid, and what it is accumulated along.

    Attributes:
      displacements: int16 `[m, gh, gw, 2]`, (x, y) of `src - dst` in pixels; `m` is `n`, or the
        number of frames in `kept`.
      is_intra: bool `[n]`, True for I-frames.
      is_bidirectional: bool `[n]`, True for B-frames; all others are references.
      future: bool `[m, gh, gw]`, True where a B-frame's displacement points to the next reference.
      height: Height of the coded frame in pixels.
      width: Width of the coded frame in pixels.
      orientation: How the coded frame is turned to be shown, see `orientation.py`.
      kept: int `[m]`, the frames whose displacements are there; None for all. A frame that is there
        can be accumulated: so are the frames that it depends on.
    """

    displacements: np.ndarray
    is_intra: np.ndarray
    is_bidirectional: np.ndarray
    future: np.ndarray
    height: int
    width: int
    orientation: int
    kept: np.ndarray | None = None

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the frame as it is shown."""
        return oriented_size(self.height, self.width, self.orientation)

    def accumulate(self, frame_indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return accumulated motion, turned upright: int32 `[len(frame_indices), h, w, 2]`.

        See `accumulate.accumulate`; `frame_indices=None` is all frames.

        Raises:
          IndexError: A frame index outside the video, or of a frame that was not kept.
        """
        wanted = np.arange(len(self.is_intra)) if frame_indices is None else frame_indices
        fields = np.empty((len(wanted), *self.shown_size, 2), np.int32)
        for rows, field in self.accumulated_fields(wanted):
            fields[rows] = field
        return fields

    def accumulated_fields(
        self, frame_indices: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield places in `frame_indices` and their upright field, int16 `[h, w, 2]`."""
        rows, is_intra, is_bidirectional = self._rows(frame_indices)
        for places, field in accumulated_fields(
            self.displacements,
            is_intra,
            self.height,
            self.width,
            rows,
            is_bidirectional=is_bidirectional,
            future=self.future,
        ):
            yield places, orient_field(field, self.orientation)

    def frame(self, index: int) -> "FrameBlocks":
        """Return one frame.

        Raises:
          IndexError: As `accumulate`.
        """
        row = int(self._rows([index])[0][0])
        kind = "I" if self.is_intra[index] else "B" if self.is_bidirectional[index] else "P"
        displacements, future = self.displacements[row], self.future[row]
        return FrameBlocks(displacements, future, kind, self.height, self.width, self.orientation)

    def _rows(
        self, frame_indices: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where in `displacements` frames are, and the types of the frames there."""
        index = checked_frames(frame_indices, len(self.is_intra))
        if self.kept is None:
            return index, self.is_intra, self.is_bidirectional
        rows = np.searchsorted(self.kept, index)
        absent = index[np.append(self.kept, -1)[rows] != index]
        if absent.size:
            raise IndexError(f"the motion of frame {absent[0]} was not kept")
        return rows, self.is_intra[self.kept], self.is_bidirectional[self.kept]

    def cells(self, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the displacements of frames, int16 `[len(frame_indices), gh, gw, 2]`.

        Raises:
          IndexError: As `accumulate`.
        """
        return self.displacements[self._rows(frame_indices)[0]]

    def each_alone(self, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return upright motion against the reference of each block: int32 `[n, h, w, 2]`.

        It points forward in time either way: where a block refers to the next reference, it is the
        motion from the block to there.

        Raises:
          IndexError: As `accumulate`.
        """
        index, all_intra, all_bidirectional = self._rows(frame_indices)
        references = np.append(-1, np.flatnonzero(~all_bidirectional))
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
        is_intra[:, 1], is_bidirectional[:, 1] = all_intra[index], all_bidirectional[index]
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
      height: Height of the coded frame in pixels.
      width: Width of the coded frame in pixels.
      orientation: How the coded frame is turned to be shown.
    """

    displacements: np.ndarray
    future: np.ndarray
    picture_type: str
    height: int
    width: int
    orientation: int


def join_blocks(frames: Sequence[FrameBlocks]) -> BlockMotion:
    """Return the motion of consecutive frames, at least one, of the same frame size."""
    first = frames[0]
    types = np.array([frame.picture_type for frame in frames])
    return BlockMotion(
        displacements=np.stack([frame.displacements for frame in frames]),
        is_intra=types == "I",
        is_bidirectional=types == "B",
        future=np.stack([frame.future for frame in frames]),
        height=first.height,
        width=first.width,
        orientation=first.orientation,
    )
