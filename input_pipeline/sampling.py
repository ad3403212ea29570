"""Which frames of a video the networks see (NumPy).

The rules for motion are those of TSN (Wang et al., 2016) as CoViAR applies them to motion vectors:
frame 0 never carries any, so it is never drawn. Rounding is half to even, as NumPy and Python do.
"""

from typing import NamedTuple

import numpy as np


class Draws(NamedTuple):
    """The random numbers that a training view is made from.

    Attributes:
      segments: float64 `[S]`, uniform in [0, 1): which frame of each segment.
      crop: uint32 `[3]`, uniform: which of the scales, and the crop's first row and column.
      flip: float32 scalar, uniform in [0, 1).
    """

    segments: np.ndarray
    crop: np.ndarray
    flip: np.ndarray


def training_segments(num_frames: int, num_segments: int, uniform: np.ndarray) -> np.ndarray:
    """Return one frame of each of `num_segments` equal parts of a video.

    With `size = (num_frames - 2) / num_segments`, part `s` runs from `begin = round(size * s)` to
    `end = round(size * (s + 1))`, at least `begin + 1`, and its frame is uniform in
    `[begin + 1, end]`.

    Args:
      uniform: float64 `[num_segments]`, uniform random numbers in [0, 1).

    Returns:
      int64 `[num_segments]`, clipped to the video.
    """
    size = (num_frames - 2) / num_segments
    bounds = np.rint(size * np.arange(num_segments + 1)).astype(np.int64)
    length = np.maximum(np.diff(bounds), 1)
    offset = np.minimum((uniform * length).astype(np.int64), length - 1)
    return np.clip(bounds[:-1] + 1 + offset, 0, num_frames - 1)


def test_segments(num_frames: int, num_segments: int) -> np.ndarray:
    """Return the middle frame of each of `num_segments` equal parts of a video, int64.

    With `size = (num_frames - 1) / num_segments`, the frame of part `s` is
    `round(size * (s + 0.5)) + 1`, clipped to the video.
    """
    size = (num_frames - 1) / num_segments
    centres = np.rint(size * (np.arange(num_segments) + 0.5)).astype(np.int64)
    return np.clip(centres + 1, 0, num_frames - 1)


# pytest would take the names for tests wherever they are imported.
test_segments.__test__ = False  # type: ignore[attr-defined]


def test_windows(num_frames: int, num_windows: int, window: int) -> np.ndarray:
    """Return the frames of evenly spaced windows of consecutive frames.

    Frame 0 carries no motion. The last frame is repeated where a video is shorter than a window.

    Args:
      num_frames: Frames of the video.
      num_windows: Number of windows, the first at the start and the last at the end of the video.
      window: Frames of a window.

    Returns:
      int64 `[num_windows, window]`.
    """
    room = max(num_frames - 1 - window, 0)
    return _window_frames(np.rint(np.linspace(0, room, num_windows)), num_frames, window)


test_windows.__test__ = False  # type: ignore[attr-defined]


def _window_frames(starts: np.ndarray, num_frames: int, window: int) -> np.ndarray:
    frames = 1 + starts.astype(np.int64)[:, None] + np.arange(window)
    return np.minimum(frames, num_frames - 1)


def frame_before_intra(indices: np.ndarray, is_intra: np.ndarray) -> np.ndarray:
    """Replace an I-frame, which carries no motion vectors, by the frame before it.

    That is the last frame of the GOP before, whose accumulated field is the longest. Takes int
    `[S]` and bool `[n]`, returns int64 `[S]`, clipped to the video.
    """
    return np.maximum(indices - is_intra[indices], 0)


def num_images(frames: str) -> int:
    """Return how many RGB frames a choice of frames gives.

    Raises:
      ValueError: The choice is not 'middle', 'random' or 'uniform_<k>'.
    """
    if frames in ("middle", "random"):
        return 1
    kind, _, count = frames.partition("_")
    if kind == "uniform" and count.isdigit() and int(count):
        return int(count)
    raise ValueError(f"frames is {frames!r}, must be 'middle', 'random' or 'uniform_<k>'")


def stored_frames(frames: str, frame_indices: np.ndarray, num_frames: int, draw: int) -> np.ndarray:
    """Return which of the stored RGB frames are chosen.

    Args:
      frame_indices: int `[stored]`, rising, the place of each stored frame in the video.
      draw: A random number, uniform in [0, 2**32).

    Returns:
      int64 `[k]`, positions in `frame_indices`.

    Raises:
      ValueError: As `num_images`.
    """
    count = num_images(frames)
    if frames == "random":
        return np.array([draw % len(frame_indices)])
    centres = (np.arange(count) + 0.5) / count * num_frames
    wanted = centres.astype(np.int64)
    return np.abs(frame_indices[None] - wanted[:, None]).argmin(1)
