"""One frame as its codec describes it."""

import dataclasses
import functools
from collections.abc import Sequence

import av
import numpy as np

from moclip_jax.codec.camera import fit_camera, remove_camera
from moclip_jax.input_pipeline.video.block_grid import BLOCK, covered_cells, rasterize_vectors
from moclip_jax.input_pipeline.video.block_motion import FrameBlocks
from moclip_jax.input_pipeline.video.decode import picture_type
from moclip_jax.input_pipeline.video.motion_vectors import frame_vectors
from moclip_jax.input_pipeline.video.orientation import (
    FLIPPED_X,
    FLIPPED_Y,
    TRANSPOSED,
    frame_orientation,
    orient_field,
    orient_map,
    oriented_size,
)

# XLA and torch take an array without a copy if it begins at a multiple of this.
_ALIGNMENT = 64


@dataclasses.dataclass(eq=False)
class Frame:
    """A frame's type and motion; what is not a field is computed when it is first asked for.

    Maps are of the frame as it is shown, upright. Motion points forward in time, in pixels: (2, 0)
    has moved 2 pixels to the right.

    Attributes:
      index: Position in display order, from 0.
      time_s: Seconds since the first frame; at the declared rate where there are no time stamps.
      picture_type: 'I', 'P', 'B' or '?'.
      vectors: Structured array of FFmpeg's `AVMotionVector`, read-only, as they are coded (not
        turned upright); empty where the frame has none.
      coded_size: Height and width of the coded frame in pixels.
      orientation: How the coded frame is turned to be shown, 0 for upright.
      accumulated: int16 `[2, H, W]`, motion since the last I-frame; None if not asked for.
    """

    index: int
    time_s: float
    picture_type: str
    vectors: np.ndarray
    coded_size: tuple[int, int]
    orientation: int = 0
    accumulated: np.ndarray | None = None

    @classmethod
    def of(cls, frame: av.VideoFrame, index: int, time_s: float) -> "Frame":
        """Describe a decoded frame whose vectors were exported.

        Raises:
          ValueError: It is to be shown at an angle that is no multiple of 90 degrees.
        """
        size, turned = (frame.height, frame.width), frame_orientation(frame)
        return cls(index, time_s, picture_type(frame), frame_vectors(frame), size, turned)

    @property
    def height(self) -> int:
        """Height in pixels of the frame as it is shown."""
        return oriented_size(*self.coded_size, self.orientation)[0]

    @property
    def width(self) -> int:
        """Width in pixels of the frame as it is shown."""
        return oriented_size(*self.coded_size, self.orientation)[1]

    @functools.cached_property
    def blocks(self) -> FrameBlocks:
        """The displacements on the 8-pixel grid, as coded.

        Raises:
          ValueError: A vector's block does not lie on that grid.
        """
        grids = rasterize_vectors(
            [self.vectors.tobytes()], [self.picture_type == "B"], *self.coded_size
        )
        return FrameBlocks(
            grids[0][0], grids[1][0], self.picture_type, *self.coded_size, self.orientation
        )

    @functools.cached_property
    def raw(self) -> np.ndarray:
        """int16 `[2, H, W]`, each block's motion between its reference and this frame.

        A block of a B-frame that is predicted from the next reference has its motion to there.
        Zero where there is no vector.
        """
        return field_map(orient_field(self._pixels(self._motion), self.orientation))

    @functools.cached_property
    def intra(self) -> np.ndarray:
        """Bool `[H, W]`, pixels without a vector: those of intra blocks, all of an I-frame."""
        result = aligned_empty((self.height, self.width), np.bool_)
        result[:] = orient_map(self._pixels(~self._predicted), self.orientation)
        return result

    @functools.cached_property
    def intra_share(self) -> float:
        """Share of the frame without a vector, 0 to 1; 1 in an I-frame."""
        return 1.0 - float(self._predicted.mean())

    @functools.cached_property
    def camera(self) -> np.ndarray:
        """float64 `[2, 3]`, the camera's motion in `raw`, see `camera_motion`."""
        turn = np.eye(2)[::-1] if self.orientation & TRANSPOSED else np.eye(2)
        signs = np.array([-1.0 if self.orientation & flip else 1.0 for flip in _FLIPS])
        turn = signs[:, None] * turn
        moved = np.where(signs < 0, (self.width - 1, self.height - 1), 0)
        linear = turn @ self._coded_camera[:, :2] @ turn.T
        return np.column_stack([linear, turn @ self._coded_camera[:, 2] - linear @ moved])

    @functools.cached_property
    def object_motion(self) -> np.ndarray:
        """float32 `[2, H, W]`, `raw` without the camera's motion; zero where there is no vector."""
        moving = remove_camera(self.raw, self.camera)
        moving[:, self.intra] = 0
        return moving

    @functools.cached_property
    def cell_speed(self) -> np.ndarray:
        """float32 `[gh, gw]`, length of the motion of each 8x8 block of the coded frame, in pixels.

        Without the camera's motion; 0 where there is no vector.
        """
        known, camera = self._predicted, self._coded_camera.astype(np.float32)
        moved, places = self._motion, self._positions
        x = moved[..., 0] - (camera[0, 0] * places[0] + (camera[0, 1] * places[1] + camera[0, 2]))
        y = moved[..., 1] - (camera[1, 0] * places[0] + (camera[1, 1] * places[1] + camera[1, 2]))
        return np.sqrt(x * x + y * y) * known

    @property
    def uncovered(self) -> np.ndarray:
        """Bool `[gh, gw]`, 8x8 blocks of the coded frame without a vector."""
        return ~self._predicted

    @property
    def energy(self) -> float:
        """Motion energy: the mean of `cell_speed`, in pixels."""
        return float(self.cell_speed.mean())

    @functools.cached_property
    def _predicted(self) -> np.ndarray:
        return covered_cells(self.vectors, *self.coded_size)

    @functools.cached_property
    def _motion(self) -> np.ndarray:
        """int16 `[gh, gw, 2]`, forward in time."""
        displacements, future = self.blocks.displacements, self.blocks.future
        return np.where(future[..., None], displacements, -displacements)

    @property
    def _positions(self) -> np.ndarray:
        """float32 `[2, gh, gw]`, x and y of the middle of each cell in pixels."""
        return _cell_centres(*self._predicted.shape)

    @functools.cached_property
    def _coded_camera(self) -> np.ndarray:
        known = self._predicted
        return fit_camera(self._positions[:, known].T, self._motion[known].astype(np.float64))

    def _pixels(self, cells: np.ndarray) -> np.ndarray:
        """Return `[gh, gw, ...]` as `[h, w, ...]`, a value for each pixel."""
        height, width = self.coded_size
        return cells.repeat(BLOCK, 0)[:height].repeat(BLOCK, 1)[:, :width]


_FLIPS = (FLIPPED_X, FLIPPED_Y)


@functools.lru_cache(maxsize=4)
def _cell_centres(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns] * BLOCK + (BLOCK - 1) / 2
    return np.stack([x, y]).astype(np.float32)


def field_map(field: np.ndarray) -> np.ndarray:
    """Return a field `[h, w, 2]` as a map int16 `[2, h, w]`, copied."""
    result = aligned_empty((2, *field.shape[:2]), np.int16)
    result[:] = field.transpose(2, 0, 1)
    return result


def aligned_empty(shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Return a new contiguous array that other libraries take over by DLPack without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)
