"""Paint the blocks that motion vectors move on an 8-pixel grid."""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 8
"""Side in pixels of the grid, the smallest block that FFmpeg exports."""

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


def rasterize_vectors(
    vectors: Sequence[bytes], both_ways: Sequence[bool], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write the vectors of frames of one size on the 8-pixel grid.

    Several frames at once cost little more than one. Where a block has a vector of each direction,
    the one from the past counts.

    Args:
      vectors: For each frame, the bytes of an array of `VECTOR_DTYPE`.
      both_ways: For each frame, whether vectors from future frames (`source > 0`) count too, as in
        B-frames.

    Returns:
      int16 `[n, ceil(height / 8), ceil(width / 8), 2]`, (x, y) of `src - dst` in pixels, zero where
      there is no vector; and bool `[n, gh, gw]`, True where they point to a future frame.

    Raises:
      ValueError: A block does not lie on the 8-pixel grid.
    """
    grid_h, grid_w = -(-height // BLOCK), -(-width // BLOCK)
    joined = np.frombuffer(b"".join(vectors), VECTOR_DTYPE)
    counts = [len(one) // VECTOR_DTYPE.itemsize for one in vectors]
    frame = np.repeat(np.arange(len(vectors)), counts)
    blocks, grid = _placed(joined, frame, grid_h, grid_w)
    shape = (len(vectors), *grid)
    shift = np.empty((len(joined), 2), np.int16)
    np.subtract(joined["src_x"], joined["dst_x"], out=shift[:, 0])
    np.subtract(joined["src_y"], joined["dst_y"], out=shift[:, 1])
    # Both halves at once: numpy copies whole int32 faster than pairs.
    pairs = shift.view(np.int32)[:, 0]
    moving = pairs != 0

    displacements = np.zeros(shape, np.int32)
    future = np.zeros(shape, bool)
    past = joined["source"] < 0
    blocks.fill(displacements, moving & past, pairs)
    if not past.all():
        both = np.asarray(both_ways)[frame]
        coming = both & (joined["source"] > 0)
        # A block with a zero vector has a reference too, so references are filled in separately.
        blocks.fill(future, coming, coming)
        blocks.fill(future, both & ~coming, coming)
        ahead = np.zeros(shape, np.int32)
        blocks.fill(ahead, moving & coming, pairs)
        np.copyto(displacements, ahead, where=future)
    inside = np.ascontiguousarray(displacements[:, :grid_h, :grid_w])
    return (
        inside.view(np.int16).reshape(len(vectors), grid_h, grid_w, 2),
        np.ascontiguousarray(future[:, :grid_h, :grid_w]),
    )


def covered_cells(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the cells of a frame's 8-pixel grid that have a vector, zero or not.

    Args:
      vectors: Of one frame, an array of `VECTOR_DTYPE`.

    Returns:
      bool `[ceil(height / 8), ceil(width / 8)]`; in P- and B-frames the others are coded intra.

    Raises:
      ValueError: A block does not lie on the 8-pixel grid.
    """
    grid_h, grid_w = -(-height // BLOCK), -(-width // BLOCK)
    blocks, grid = _placed(vectors, np.zeros(len(vectors), np.intp), grid_h, grid_w)
    covered, every = np.zeros(grid, bool), np.ones(len(vectors), bool)
    blocks.fill(covered, every, every)
    return np.ascontiguousarray(covered[:grid_h, :grid_w])


def _placed(
    vectors: np.ndarray, frame: np.ndarray, grid_h: int, grid_w: int
) -> tuple["_Blocks", tuple[int, int]]:
    """Return where blocks lie in a row of grids, and the rows and columns of such a grid.

    The grids are at least as large as the frame's, and hold blocks that reach over its edge whole.

    Args:
      vectors: An array of `VECTOR_DTYPE`.
      frame: Of each vector, the position of its frame.

    Raises:
      ValueError: A block does not lie on the 8-pixel grid.
    """
    w, h = vectors["w"].astype(np.intp), vectors["h"].astype(np.intp)
    left, top = vectors["dst_x"] - (w >> 1), vectors["dst_y"] - (h >> 1)
    # An or has the low bits of any, and the sign of any.
    together = int(np.bitwise_or.reduce(left | top | w | h))
    if together < 0 or together % BLOCK:
        raise ValueError("a motion vector's block does not lie on the frame's 8-pixel grid")
    rows = max(int((top + h).max(initial=0)) // BLOCK, grid_h)
    columns = max(int((left + w).max(initial=0)) // BLOCK, grid_w)
    first = (frame * rows + top // BLOCK) * columns + left // BLOCK
    return _Blocks(first, h // BLOCK, w // BLOCK, columns), (rows, columns)


class _Blocks:
    """Which cells of a row of grids each block covers.

    Args:
      first: int `[n]`, position of the upper left cell, in the row of all grids.
      rows: int `[n]`, cells from top to bottom.
      columns: int `[n]`, cells from left to right.
      grid_columns: Cells in a row of a grid.
    """

    def __init__(self, first: np.ndarray, rows: np.ndarray, columns: np.ndarray, grid_columns: int):
        self._first, self._rows, self._columns = first, rows, columns
        self._grid_columns = grid_columns

    def fill(self, grids: np.ndarray, chosen: np.ndarray, values: np.ndarray) -> None:
        """Write the values of the chosen blocks over their cells; the last block counts.

        Args:
          grids: What is filled in, of any shape.
          chosen: bool `[n]`.
          values: `[n]`, one for each block, chosen or not.
        """
        which = np.flatnonzero(chosen)
        if not which.size:
            return
        first, rows, columns = self._first[which], self._rows[which], self._columns[which]
        highest, widest = int(rows.max()), int(columns.max())
        row, column = _block_cells(highest, widest)
        cells = first[:, None] + (row * self._grid_columns + column)
        flat = grids.ravel()
        if int(rows.min()) == highest and int(columns.min()) == widest:
            flat[cells] = values[which][:, None]
        else:
            covered = np.flatnonzero((rows[:, None] > row) & (columns[:, None] > column))
            flat[cells.ravel()[covered]] = values[which][covered // row.size]


@functools.lru_cache
def _block_cells(rows: int, columns: int) -> np.ndarray:
    """Return int `[2, rows * columns]`: row and column of each cell of a block."""
    return np.mgrid[:rows, :columns].reshape(2, -1)
