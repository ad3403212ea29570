"""How much happens in each frame, and where a video is cut into chunks of equal activity."""

import collections
import dataclasses
import math
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from moclip_jax.codec.frame import Frame

# A P-frame that is coded intra to this share shows another scene.
_CUT_SHARE = 0.7
# Sides of the small picture by which I-frames are compared, and the mean difference of grey levels
# (of 255) from which on they show different scenes.
_THUMBNAIL = 16, 9
_CUT_GREYS = 20.0
# Activity that is nothing, as a share of the picture: what noise gives.
_FLOOR = 0.004
RATIO = 2.5
"""Activity on one side of a border over that on the other, at least."""
_STEP = 0.1


def moving_share(speed: np.ndarray) -> np.ndarray:
    """Return how much of a block counts as changed that moves by some pixels: 0 to 1, 1/2 for 1."""
    return speed / (speed + 1)


@dataclasses.dataclass(frozen=True)
class Activity:
    """How much happens in a frame.

    Attributes:
      index: The frame, an I- or P-frame; at a cut, the first of the B-frames before it that show
        the new scene already.
      time_s: Its time in seconds.
      change: Share of the picture that changed since the reference before, by a frame: 0 to 1.
      is_cut: Whether it is the first frame of another scene.
    """

    index: int
    time_s: float
    change: float
    is_cut: bool


class ActivityMeter:
    """Measures I- and P-frames one after the other; B-frames lie between and add nothing."""

    def __init__(self):
        self._reference: int | None = None
        self._between: list[Frame] = []  # B-frames since then.
        self._thumbnail: np.ndarray | None = None
        self._to_grey = VideoReformatter()
        self._change = 0.0

    def add(self, frame: Frame, picture: av.VideoFrame) -> Activity | None:
        """Take the next frame in display order.

        Args:
          frame: Its type and vectors.
          picture: The decoded frame; only that of an I-frame is looked at.

        Returns:
          Its activity; None for B-frames. An I-frame has no vectors and takes the change of the
          frame before it.
        """
        if frame.picture_type == "B":
            self._between.append(frame)
            return None
        is_cut = False
        if frame.picture_type == "I":
            before, self._thumbnail = self._thumbnail, self._small(picture)
            if before is not None:
                is_cut = float(np.abs(self._thumbnail - before).mean()) > _CUT_GREYS
        else:
            distance = frame.index - (
                frame.index - 1 if self._reference is None else self._reference
            )
            speed = frame.cell_speed / distance
            intra = frame.intra_share
            is_cut = intra > _CUT_SHARE
            if is_cut:
                self._thumbnail = None  # The next I-frame shows what was seen by then.
            else:
                self._change = float(moving_share(speed).mean()) + intra / distance
        ahead = (b for b in self._between if float(b.blocks.future.mean()) > _CUT_SHARE)
        first = next(ahead, frame) if is_cut else frame
        self._reference, self._between = frame.index, []
        return Activity(first.index, first.time_s, min(self._change, 1.0), is_cut)

    def _small(self, picture: av.VideoFrame) -> np.ndarray:
        small = self._to_grey.reformat(
            picture, *_THUMBNAIL, "gray", interpolation=Interpolation.AREA, threads=1
        )
        return small.to_ndarray().astype(np.float32)


def level(change: float) -> float:
    """Return activity on the scale on which chunks are told apart: a logarithm above the noise."""
    return math.log(change + _FLOOR)


class ChunkCutter:
    """Finds where activity rises or falls, scenes change, or a chunk has its largest length.

    The mean log activity of the `window_s` before and after each frame is compared; where the two
    differ most, by at least `ratio`, a chunk ends. The activity of a few windows is kept.
    """

    def __init__(self, longest_s: float = math.inf, window_s: float = 1.0, ratio: float = RATIO):
        """Start before the first frame.

        Args:
          longest_s: Largest length of a chunk in seconds, at least twice `window_s`.
          window_s: Seconds on each side of a border that are compared.
          ratio: Activity after a border over that before it, or the inverse, at least.
        """
        if not 0 < 2 * window_s <= longest_s:
            raise ValueError(f"longest_s is {longest_s}, must be at least 2 * {window_s} s")
        self._longest, self._window, self._least = longest_s, window_s, math.log(ratio)
        # Of the latest frames since the last border: time, frame, and the log of their activity.
        self._samples: collections.deque[tuple[float, int, float]] = collections.deque()
        self._start: float | None = None
        self._best: tuple[float, float, int] | None = None  # Difference, time, frame.

    def add(self, activity: Activity) -> Iterator[tuple[int, float]]:
        """Take the next frame.

        Yields:
          First frame and time of each chunk that is known to begin, in order. At most one and a
          half windows of time after the border, or the largest length.
        """
        time = activity.time_s
        if self._start is None:
            self._start = time
        if activity.is_cut:
            if self._best is not None:
                yield self._border(*self._best[1:])
            if self._samples:
                yield self._border(time, activity.index, drop_all=True)
        self._samples.append((time, activity.index, level(activity.change)))
        self._compare(time, self._start)
        if self._best is not None and time >= self._best[1] + 1.5 * self._window:
            yield self._border(*self._best[1:])
        if time - self._start >= self._longest - 1e-6:
            if self._best is not None:
                yield self._border(*self._best[1:])
            else:
                yield self._border(time, activity.index)

    def _compare(self, now: float, start: float) -> None:
        """Compare what lies on both sides of the frame that is one window old."""
        while self._samples[0][0] < now - 2 * self._window:
            self._samples.popleft()
        times = np.array([sample[0] for sample in self._samples])
        middle = int(np.searchsorted(times, now - self._window))
        at = float(times[middle])
        if at - start < self._window / 2 or now - at < self._window / 2:
            return
        levels = np.array([sample[2] for sample in self._samples])
        # The step at the border itself decides where several windows differ as much.
        step = abs(levels[middle] - levels[middle - 1]) * _STEP
        difference = abs(float(levels[middle:].mean() - levels[:middle].mean())) + float(step)
        if difference > max(self._least, self._best[0] if self._best else 0.0):
            self._best = difference, at, self._samples[middle][1]

    def _border(self, time: float, index: int, drop_all: bool = False) -> tuple[int, float]:
        while self._samples and (drop_all or self._samples[0][0] < time):
            self._samples.popleft()
        self._start, self._best = time, None
        return index, time
