"""How a coded frame is turned to be shown, and turning frames and motion fields that way.

Phones film upright by writing the turn into the file (FFmpeg: the display matrix). Decoders leave
the frame as it was coded, so a player has to turn it.

An orientation is a number of three bits, read in this order: `TRANSPOSED` exchanges x and y, then
`FLIPPED_X` and `FLIPPED_Y` mirror. All eight are covered; a quarter turn clockwise is
`TRANSPOSED | FLIPPED_X`.
"""

from fractions import Fraction

import av
import av.filter
import numpy as np

from moclip_jax.input_pipeline.video.decode import frame_side_data

UPRIGHT = 0
FLIPPED_X = 1
FLIPPED_Y = 2
TRANSPOSED = 4

# The filters need one; raw streams have none, and turning does not depend on it.
_TIME_BASE = Fraction(1, 1000)


def frame_orientation(frame: av.VideoFrame) -> int:
    """Return the orientation, 0 to 7, that a decoded frame is to be shown in.

    Raises:
      ValueError: The angle is no multiple of 90 degrees.
    """
    data = frame_side_data(frame, "DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(memoryview(data), "<i4").reshape(3, 3)[:2, :2]
    # A position (x, y) goes to (x, y) @ matrix, and a translation; players ignore its scale.
    scaled = matrix / np.maximum(np.hypot(*matrix), 1)
    turn = np.round(scaled).astype(int)
    if np.abs(scaled - turn).max() > 0.01 or not np.array_equal(np.abs(turn @ turn.T), np.eye(2)):
        raise ValueError("its display rotation is no multiple of 90 degrees")
    transposed = turn[0, 0] == 0
    sign_x, sign_y = (turn[1, 0], turn[0, 1]) if transposed else (turn[0, 0], turn[1, 1])
    return TRANSPOSED * transposed + FLIPPED_X * (sign_x < 0) + FLIPPED_Y * (sign_y < 0)


def orient_field(fields: np.ndarray, orientation: int) -> np.ndarray:
    """Turn motion fields `[..., h, w, 2]`, their places and their directions.

    Returns `[..., w, h, 2]` where `orientation` exchanges x and y.
    """
    if orientation & TRANSPOSED:
        fields = fields.swapaxes(-3, -2)[..., ::-1]
    signs = np.ones(2, fields.dtype)
    if orientation & FLIPPED_X:
        fields, signs[0] = fields[..., :, ::-1, :], -1
    if orientation & FLIPPED_Y:
        fields, signs[1] = fields[..., ::-1, :, :], -1
    return fields if orientation == UPRIGHT else fields * signs


def orient_map(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a map `[h, w]` of values without a direction; returns a view."""
    if orientation & TRANSPOSED:
        values = values.T
    if orientation & FLIPPED_X:
        values = values[:, ::-1]
    return values[::-1] if orientation & FLIPPED_Y else values


def oriented_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return height and width of the frame as it is shown."""
    return (width, height) if orientation & TRANSPOSED else (height, width)


def shown_aspect(frame: av.VideoFrame, pixel_aspect: Fraction) -> Fraction:
    """Return width over height of a decoded frame's pixels after the frame is turned upright."""
    return 1 / pixel_aspect if frame_orientation(frame) & TRANSPOSED else pixel_aspect


class Uprighter:
    """Turns decoded frames by FFmpeg's filters, as the command `ffmpeg` does by itself."""

    def __init__(self):
        self._key: tuple[object, ...] = ()
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return the frame as it is to be shown; the same frame if it is upright.

        Raises:
          ValueError: As `frame_orientation`.
        """
        orientation = frame_orientation(frame)
        if orientation == UPRIGHT:
            return frame
        key = (frame.width, frame.height, frame.format.name, orientation)
        if self._graph is None or key != self._key:
            self._graph, self._key = _graph(frame, orientation), key
        self._graph.vpush(frame)
        return self._graph.vpull()


def _graph(frame: av.VideoFrame, orientation: int) -> av.filter.Graph:
    graph = av.filter.Graph()
    chain = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=_TIME_BASE
        )
    ]
    if orientation & TRANSPOSED:
        chain.append(graph.add("transpose", "cclock_flip"))
    if orientation & FLIPPED_X:
        chain.append(graph.add("hflip"))
    if orientation & FLIPPED_Y:
        chain.append(graph.add("vflip"))
    graph.link_nodes(*chain, graph.add("buffersink")).configure()
    return graph
