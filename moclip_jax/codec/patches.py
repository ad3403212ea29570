"""Which patches of a frame changed: what a vision transformer need look at again."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from moclip_jax.codec.activity import moving_share
from moclip_jax.codec.frame import Frame, aligned_empty
from moclip_jax.codec.reading import frame_numbers, frames
from moclip_jax.input_pipeline.video.block_grid import BLOCK
from moclip_jax.input_pipeline.video.orientation import FLIPPED_X, FLIPPED_Y, TRANSPOSED


def patch_mask(
    path: str | os.PathLike,
    patch: int = 14,
    keep: float = 0.25,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    times: Sequence[float] | np.ndarray | None = None,
    source: str = "auto",
) -> np.ndarray:
    """Choose the patches of each frame that changed most, by motion vectors and intra blocks.

    A block changed if it moves against the camera, if it is coded intra in a P- or B-frame, or if
    something moved away from it; those around it come next. A frame is compared with the row before
    it (the first row with the frame before it), along all frames in between. An I-frame says
    nothing of change, and takes that of the frame before; the first frame of a video that of the
    next.

    Args:
      path: A local video file.
      patch: Side of a patch in pixels; the grid begins at the upper left corner, and what is left
        over at the right and below is in no patch.
      keep: Share of the patches to keep, in (0, 1].
      indices: Frames wanted, in display order from 0; None for all.
      times: Seconds since the first frame, in place of `indices`.
      source: As `frames`.

    Returns:
      bool `[n, H // patch, W // patch]`, in each row `round(keep * patches)` True, at least one.

    Raises:
      VideoError: As `frames`.
      IndexError: A frame index outside the video.
      ValueError: `patch` is larger than the frame, `keep` not in (0, 1], or as `frames`.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, must be above 0 and at most 1")
    if patch < 1:
        raise ValueError(f"patch is {patch}, must be at least 1")
    if indices is not None and times is not None:
        raise ValueError("patch_mask takes indices or times, not both")
    wanted = frame_numbers(path, times) if times is not None else indices
    asked = None if wanted is None else np.asarray(wanted, np.int64).tolist()
    masks = {index: _largest(score, keep) for index, score in _scores(path, patch, asked, source)}
    chosen = list(masks) if asked is None else asked
    absent = [index for index in chosen if index not in masks]
    if absent or not chosen:
        raise IndexError(f"frame {absent[0]} is outside the video" if absent else "no frame chosen")
    result = aligned_empty((len(chosen), *masks[chosen[0]].shape), np.bool_)
    for row, index in enumerate(chosen):
        result[row] = masks[index]
    return result


def _scores(
    path: str | os.PathLike, patch: int, asked: Sequence[int] | None, source: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the chosen frames and their changed pixels in each patch, float32 `[rows, columns]`."""
    wanted = None if asked is None else frozenset(asked)
    stop = None if wanted is None else max(wanted, default=-1)
    grid: _PatchGrid | None = None
    last: np.ndarray | None = None
    total: np.ndarray | None = None  # Change since the row before.
    started = False
    waiting: list[int] = []  # Rows before the first frame with vectors.
    for frame in frames(path, accumulated=False, source=source):
        grid = grid or _PatchGrid(frame, patch)
        if frame.picture_type != "I":
            last = cell_change(frame)
        if last is not None:
            total = last if total is None or not started else total + last
            yield from ((index, grid.sums(last)) for index in waiting)
            waiting = []
        if wanted is None or frame.index in wanted:
            started = True
            if total is None:
                waiting.append(frame.index)
            else:
                yield frame.index, grid.sums(np.minimum(total, 1))
            total = None
        if stop is not None and frame.index >= stop and not waiting:
            return
    if grid is not None:  # There are none.
        yield from ((index, np.zeros(grid.shape, np.float32)) for index in waiting)


def cell_change(frame: Frame) -> np.ndarray:
    """Return how much of each 8x8 block of a coded P- or B-frame changed, 0 to 1.

    Returns:
      float32 `[gh, gw]`: 1 for intra blocks; `v / (v + 1)` for blocks that move by v pixels against
      the camera, and for what they moved away from; at least a quarter of the largest of the eight
      cells around, and a tenth of that of the 24 around.
    """
    speed = frame.cell_speed
    moving = moving_share(speed)
    rows, columns = speed.shape
    y, x = np.nonzero(moving)
    left_behind = np.zeros(rows * columns)
    if len(y):
        shift = frame.blocks.displacements[y, x] / BLOCK
        top, left = np.floor(y + shift[:, 1]), np.floor(x + shift[:, 0])
        down, right = y + shift[:, 1] - top, x + shift[:, 0] - left
        for dy, share_y in ((0, 1 - down), (1, down)):
            for dx, share_x in ((0, 1 - right), (1, right)):
                at_y, at_x = (top + dy).astype(int), (left + dx).astype(int)
                inside = (at_y >= 0) & (at_y < rows) & (at_x >= 0) & (at_x < columns)
                weight = (share_y * share_x * moving[y, x])[inside]
                cells = (at_y * columns + at_x)[inside]
                left_behind += np.bincount(cells, weight, minlength=rows * columns)
    change = np.minimum(moving + left_behind.reshape(rows, columns), 1).astype(np.float32)
    change[frame.uncovered] = 1
    # A macroblock has one vector, so the edge of what moves may lie in a block that is predicted at
    # rest, and corrected: the cells next to a change count too, those 16 pixels away less.
    near = _largest_around(change)
    return np.maximum(change, np.maximum(near / 4, _largest_around(near) / 10))


def _largest_around(cells: np.ndarray) -> np.ndarray:
    """Return the largest value of each cell and its eight neighbours."""
    padded = np.pad(cells, 1)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


class _PatchGrid:
    """Adds up what cells of the coded frame's grid hold of each patch of the shown frame."""

    def __init__(self, frame: Frame, patch: int):
        height, width = frame.height, frame.width
        if patch > min(height, width):
            raise ValueError(f"patch is {patch}, larger than the frame of {width}x{height}")
        self._transposed = bool(frame.orientation & TRANSPOSED)
        self._down = _overlap(height, patch, bool(frame.orientation & FLIPPED_Y))
        self._across = _overlap(width, patch, bool(frame.orientation & FLIPPED_X))
        self.shape = len(self._down), len(self._across)

    def sums(self, cells: np.ndarray) -> np.ndarray:
        """Return `[rows, columns]`, the values of cells times their pixels in each patch."""
        return self._down @ (cells.T if self._transposed else cells) @ self._across.T


def _overlap(size: int, patch: int, flipped: bool) -> np.ndarray:
    """Return float32 `[patches, cells]`, pixels along one axis that a patch and a cell share."""
    first = np.arange(size // patch)[:, None] * patch
    if flipped:
        first = size - first - patch
    cell = np.arange(-(-size // BLOCK))[None] * BLOCK
    shared = np.minimum(first + patch, np.minimum(cell + BLOCK, size)) - np.maximum(first, cell)
    return np.maximum(shared, 0).astype(np.float32)


def _largest(score: np.ndarray, keep: float) -> np.ndarray:
    """Return a mask of the largest values, the first where they are equal."""
    mask = np.zeros(score.size, bool)
    count = max(1, round(keep * score.size))
    mask[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return mask.reshape(score.shape)
