"""Motion accumulated back to the I-frame, by maps of where each pixel came from.

Accumulation follows CoViAR (Wu et al., "Compressed Video Action Recognition", CVPR 2018), extended
to B-frames. Each frame gathers once from its reference, a block at a time: the very result of the
per-pixel definition, in a fraction of a millisecond a frame.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from moclip_jax.input_pipeline.video.block_grid import BLOCK


def accumulate(
    displacements: np.ndarray,
    is_intra: np.ndarray,
    height: int,
    width: int,
    frame_indices: Sequence[int] | np.ndarray | None = None,
    *,
    is_bidirectional: np.ndarray | None = None,
    future: np.ndarray | None = None,
) -> np.ndarray:
    """Accumulate block displacements back to the I-frame of each GOP.

    At an I-frame every pixel is its own origin. In every later frame a pixel takes the origin that
    its source had in the frame's reference, if the source lies inside the frame, and otherwise
    keeps the origin that its own place had there.

    The reference is the latest I- or P-frame shown before. Under a B-frame's block whose vector
    points to the future it is the next I- or P-frame shown after; where there is none, the pixel
    keeps the origin of its own place in the frame before. No frame refers to a B-frame.

    Args:
      displacements: int16 `[n, gh, gw, 2]` as `rasterize_vectors` gives.
      is_intra: bool `[n]`.
      frame_indices: Frames wanted, in any order; None for all.
      is_bidirectional: bool `[n]`, the B-frames; None for none.
      future: bool `[n, gh, gw]` as `rasterize_vectors` gives; None for none.

    Returns:
      int32 `[len(frame_indices), height, width, 2]`, (x, y) of `position - origin` in pixels.

    Raises:
      IndexError: A frame index outside the video.
    """
    wanted = np.arange(len(displacements)) if frame_indices is None else np.asarray(frame_indices)
    fields = np.empty((len(wanted), height, width, 2), np.int32)  # Each is written below.
    made = accumulated_fields(
        displacements,
        is_intra,
        height,
        width,
        wanted,
        is_bidirectional=is_bidirectional,
        future=future,
    )
    for rows, field in made:
        fields[rows] = field
    return fields


def accumulated_fields(
    displacements: np.ndarray,
    is_intra: np.ndarray,
    height: int,
    width: int,
    frame_indices: Sequence[int] | np.ndarray,
    *,
    is_bidirectional: np.ndarray | None = None,
    future: np.ndarray | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Accumulate as `accumulate` does, and hold one field at a time.

    Yields the places in `frame_indices` that request a frame, and its field, int16
    `[height, width, 2]`, whose memory the next one takes.

    Raises:
      IndexError: A frame index outside the video.
    """
    num_frames = len(displacements)
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(checked_frames(frame_indices, num_frames).tolist()):
        rows.setdefault(index, []).append(row)
    if is_bidirectional is None or future is None:
        is_bidirectional, future = (
            np.zeros(num_frames, bool),
            np.zeros(displacements.shape[:3], bool),
        )
    accumulator = Accumulator(height, width)
    for index in np.flatnonzero(needed_frames(rows, is_intra, is_bidirectional)).tolist():
        kind = "I" if is_intra[index] else "B" if is_bidirectional[index] else "P"
        made = accumulator.add(index, displacements[index], future[index], kind, index in rows)
        yield from ((rows[made_index], field) for made_index, field in made)
    yield from ((rows[index], field) for index, field in accumulator.end())


class Accumulator:
    """Accumulates frame by frame, so that a GOP may be of any length."""

    def __init__(self, height: int, width: int):
        """Start before the first frame of a video.

        Args:
          height: Of the picture in pixels.
          width: Of the picture in pixels.
        """
        self._grid = _OriginGrid(height, width)
        self._origin = self._grid.identity
        # B-frames wanted since the last reference.
        self._waiting: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(
        self, index: int, cells: np.ndarray, future: np.ndarray, kind: str, wanted: bool = True
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next frame that any field depends on.

        Args:
          index: Its number.
          cells: Its displacements, int16 `[gh, gw, 2]`.
          future: bool `[gh, gw]`, where they point to the next reference.
          kind: 'I', 'B', or any other for a frame that refers to the past.
          wanted: Whether its field is asked for.

        Yields:
          Numbers and fields of wanted frames, in order, as `accumulated_fields`: B-frames as soon
          as the reference after them is there.
        """
        if kind == "B":
            if wanted:
                self._waiting.append((index, cells, future))
            return
        reference = self._grid.identity
        if kind != "I":
            reference = self._grid.follow(self._origin, self._origin, _moves(cells), cells)
        yield from self._bidirectional(reference)
        self._origin = reference
        if wanted:
            yield index, self._grid.motion(reference)

    def end(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the fields of the B-frames at the end of the video."""
        yield from self._bidirectional(None)

    def _bidirectional(self, coming: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
        origin = self._origin
        for index, cells, future in self._waiting:
            held = self._grid.follow(origin, origin, _moves(cells) & ~future, cells)
            if coming is not None:
                held = self._grid.follow(held, coming, future, cells)
            yield index, self._grid.motion(held)
        self._waiting.clear()


def checked_frames(frame_indices: Sequence[int] | np.ndarray, num_frames: int) -> np.ndarray:
    """Return frame indices as int64.

    Raises:
      IndexError: One lies outside the video.
    """
    wanted = np.asarray(frame_indices, np.int64)
    outside = wanted[(wanted < 0) | (wanted >= num_frames)]
    if outside.size:
        raise IndexError(f"frame {outside[0]} is outside a video of {num_frames} frames")
    return wanted


def _moves(cells: np.ndarray) -> np.ndarray:
    """Return bool `[gh, gw]`, True where a displacement is not zero."""
    return np.ascontiguousarray(cells).view(np.int32)[..., 0] != 0


def needed_frames(
    wanted: Iterable[int], is_intra: np.ndarray, is_bidirectional: np.ndarray
) -> np.ndarray:
    """Return bool `[n]`: the wanted frames, and all that they are accumulated along."""
    needed = np.zeros(len(is_intra), bool)
    starts = np.append(0, np.flatnonzero(is_intra))
    references = np.flatnonzero(~is_bidirectional)
    for index in wanted:
        end = index
        if is_bidirectional[index]:
            end = (*references[references > index][:1].tolist(), index)[0]
        needed[starts[starts <= index][-1] : end + 1] = True
    return needed


class _OriginGrid:
    """Maps of origins: for each pixel of whole cells, y and x in the halves of an int32."""

    def __init__(self, height: int, width: int):
        self._height, self._width = height, width
        # An even number of columns of cells, so that they can be taken in twos.
        ys = np.arange(-(-height // BLOCK) * BLOCK, dtype=np.int32)
        xs = np.arange(-(-width // (2 * BLOCK)) * 2 * BLOCK, dtype=np.int32)
        self.identity = ((ys[:, None] << 16) + xs).astype("<i4")
        self._single = _Cells(height, width, BLOCK, self.identity.shape)
        self._double = _Cells(height, width, 2 * BLOCK, self.identity.shape)
        self._motion = np.empty((*self.identity.shape, 2), "<i2")

    def follow(
        self, held: np.ndarray, source: np.ndarray, chosen: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Replace some cells of a map by what lies at their displacements in another.

        A pixel of `held` whose source lies outside the frame keeps its value. `chosen` is bool
        `[gh, gw]`, `cells` int16 `[gh, gw, 2]`. Returns a new map, or `held` itself where no cell
        is chosen.
        """
        pairs = np.ascontiguousarray(cells).view(np.int32)[..., 0]
        if pairs.shape[1] % 2:
            # One more column, behind the frame; it is never read.
            pairs, chosen = (np.concatenate([x, x[:, -1:]], 1) for x in (pairs, chosen))
        if (pairs[:, ::2] == pairs[:, 1::2]).all() and (chosen[:, ::2] == chosen[:, 1::2]).all():
            # Blocks of 16 pixels everywhere, as most codecs have: half as many cells.
            return self._double.follow(held, source, chosen[:, ::2], pairs[:, ::2])
        return self._single.follow(held, source, chosen, pairs)

    def motion(self, origin: np.ndarray) -> np.ndarray:
        """Return `position - origin`, int16 `[height, width, 2]` (x, y), until the next call."""
        np.subtract(_coordinates(self.identity), _coordinates(origin), out=self._motion)
        return self._motion[: self._height, : self._width]


class _Cells:
    """A map's cells of one width, and what happens to them."""

    def __init__(self, height: int, width: int, cell_width: int, shape: tuple[int, int]):
        self._height, self._width, self._cell_width = height, width, cell_width
        self._in_row = shape[1]
        # Pixels that follow one another in a row of a cell are one item of an array.
        self._piece = np.dtype((np.void, cell_width * 4))
        tops, lefts = np.arange(0, shape[0], BLOCK), np.arange(0, shape[1], cell_width)
        self._grid = len(tops), len(lefts)
        # Of each cell its sides, and its first pixel in the row of all pixels.
        self._top, self._left = np.repeat(tops, len(lefts)), np.tile(lefts, len(tops))
        self._start = self._top * self._in_row + self._left
        # Where its source may begin at most. What a cell itself has outside the frame may come
        # from outside: it is never read.
        self._last_top = np.maximum(height - BLOCK, self._top).astype(np.uintp)
        self._last_left = np.maximum(width - cell_width, self._left).astype(np.uintp)
        self._down, self._across = np.arange(BLOCK), np.arange(cell_width)
        self._rows = self._down * self._in_row

    def follow(
        self, held: np.ndarray, source: np.ndarray, chosen: np.ndarray, pairs: np.ndarray
    ) -> np.ndarray:
        """Do as `_OriginGrid.follow`, with displacements (x, y) as the halves of an int32."""
        cell = np.flatnonzero(chosen)
        if not cell.size:
            return held
        shift = pairs.reshape(-1)[cell].view("<i2").reshape(-1, 2)
        top, left = self._top[cell] + shift[:, 1], self._left[cell] + shift[:, 0]
        own, start = self._start[cell], top * self._in_row + left
        # As unsigned numbers, those below zero are large ones.
        crossing = top.view(np.uintp) > self._last_top[cell]
        crossing |= left.view(np.uintp) > self._last_left[cell]
        edge = np.flatnonzero(crossing)
        # From any pixel on, so that a row of a cell is found at once.
        pieces = np.ndarray(
            (source.size - self._cell_width + 1,), self._piece, source, strides=(source.itemsize,)
        )
        if held is source and 2 * cell.size > chosen.size:
            # Where most cells move, the others are found at their own place just as fast.
            everywhere = self._start.copy()
            everywhere[cell] = np.where(crossing, own, start)
            rows = everywhere.reshape(self._grid)[:, None] + self._rows[:, None]
            result = pieces[rows].view(np.int32).reshape(held.shape)
        else:
            result = held.copy()
            whole = np.flatnonzero(~crossing)
            at = (own[whole, None] + self._rows) // self._cell_width
            result.reshape(-1).view(self._piece)[at] = pieces[start[whole, None] + self._rows]
        if edge.size:
            # What crosses the frame's edge holds its own pixels by now, and some are replaced.
            y, x = top[edge, None] + self._down, left[edge, None] + self._across
            inside_y, inside_x = y.view(np.uintp) < self._height, x.view(np.uintp) < self._width
            inside = np.flatnonzero(inside_y[:, :, None] & inside_x[:, None, :])
            here = (own[edge, None, None] + self._rows[:, None] + self._across).reshape(-1)[inside]
            there = here + np.repeat(start[edge] - own[edge], BLOCK * self._cell_width)[inside]
            result.reshape(-1)[here] = source.reshape(-1)[there]
        return result


def _coordinates(pixels: np.ndarray) -> np.ndarray:
    """Return int16 `[..., 2]`, x and y of a map, which the machine stores so."""
    return pixels.view("<i2").reshape(*pixels.shape, 2)
