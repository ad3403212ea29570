"""Cut the frames of a stream into overlapping windows, each a clip of its own."""

import bisect
import collections
import dataclasses
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from moclip_jax.input_pipeline.video.block_motion import FrameBlocks, join_blocks
from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec, frame_jpeg

# A stream without I-frames (some refresh their frames bit by bit) must not fill the memory.
_MAX_LEAD = 600
# Frames whose time stamps do not rise follow one another at this distance.
MIN_STEP_S = 1e-3
# Times are compared to the microsecond: a frame at 1.2 s belongs to a window from 3 * 0.4 s on.
_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a stream.

    Attributes:
      start_s: Start in seconds since the first frame of the recording.
      end_s: End in the same seconds; a frame at this very time is not in the window. In the last
        window of a recording it may be earlier than `length_s` after the start: it is the end of
        the last frame.
      video: The window's frames, at least one, and in `lead` those that their motion needs.
    """

    start_s: float
    end_s: float
    video: Clip


class WindowCutter:
    """Cuts the frames of one recording into windows.

    RGB frames are kept at the centers of `spec.clip_frames` equal parts of a window, and at its own
    center: each time the frame that is shown then.
    """

    def __init__(self, spec: VideoSpec, length_s: float, hop_s: float, source: str):
        """Start a recording.

        Args:
          spec: The canonical form of clips.
          length_s: Length of a window in seconds.
          hop_s: Seconds from the start of one window to that of the next.
          source: Where the motion comes from, 'native' or 'reencode'.
        """
        self._spec, self._source = spec, source
        self._length, self._hop = float(length_s), float(hop_s)
        parts = (np.arange(spec.clip_frames) + 0.5) / spec.clip_frames
        self._wanted = np.unique(np.append(parts, 0.5)) * length_s
        self._first: float | None = None
        self._next = 0  # Number of the next window.
        # Time and motion of each frame since the I-frame before that window.
        self._times: collections.deque[float] = collections.deque()
        self._blocks: collections.deque[FrameBlocks] = collections.deque()
        # The newest frame, its JPEG once that was encoded, and the end of the frame.
        self._shown: tuple[float, av.VideoFrame, Fraction] | None = None
        self._jpeg: bytes | None = None
        self._shown_until = 0.0
        self._jpegs: dict[int, list[tuple[float, bytes]]] = {}

    def add_picture(
        self,
        time_s: float,
        picture: av.VideoFrame,
        duration_s: float = 0.0,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        """Take a frame's RGB, before its motion.

        Args:
          time_s: Its time stamp in seconds; rises from frame to frame.
          picture: The frame, upright.
          duration_s: Seconds that it is shown, if no other frame follows.
          pixel_aspect: Width of its pixels over their height.
        """
        if self._first is None:
            self._first = time_s
        time = rounded(time_s - self._first)
        self._keep_wanted(time)
        self._shown, self._jpeg = (time, picture, pixel_aspect), None
        self._shown_until = rounded(time + duration_s)

    def _keep_wanted(self, until: float) -> None:
        """Keep the newest frame for the windows that want it, given when the next one is shown."""
        if self._shown is None:
            return
        shown = self._shown[0]
        # Windows that were open while it was shown.
        number = max(self._next, int((shown - self._length) // self._hop))
        while number * self._hop <= until:
            at = np.round(self._wanted + number * self._hop, _DIGITS)
            if ((at >= shown) & (at < until)).any():
                self._keep(number)
            number += 1

    def _keep(self, number: int) -> None:
        assert self._shown is not None
        if self._jpeg is None:
            self._jpeg = frame_jpeg(self._shown[1], self._spec, pixel_aspect=self._shown[2])
        self._jpegs.setdefault(number, []).append((self._shown[0], self._jpeg))

    def add_motion(self, time_s: float, blocks: FrameBlocks) -> Iterator[Window]:
        """Take the motion of the next frame; yield the windows that are complete with it.

        Args:
          time_s: The frame's time stamp, as given to `add_picture`.
          blocks: Its motion.
        """
        assert self._first is not None
        time = rounded(time_s - self._first)
        self._times.append(time)
        self._blocks.append(blocks)
        if blocks.picture_type == "I":
            self._forget()
        if blocks.picture_type == "B":
            return  # Whatever it is the end of also needs the next reference.
        while self._end(self._next) <= time:
            yield from self._cut(self._end(self._next))

    def end(self) -> Iterator[Window]:
        """Yield the last windows, so that every frame was in one (but for gaps between windows).

        The last one ends with the last frame, and is shorter than the others if it ends early.
        """
        if self._shown is None:
            return
        last, until = self._shown[0], max(self._shown_until, self._shown[0] + MIN_STEP_S)
        self._keep_wanted(until)
        # Only frames after the end of the window before are in no window yet.
        while self._start(self._next) <= last and (
            not self._next or self._end(self._next - 1) <= last
        ):
            # The frames may have ended before the times of the RGB frames that the window wants.
            if not self._jpegs.get(self._next):
                self._keep(self._next)
            yield from self._cut(min(self._end(self._next), rounded(until)))

    def _start(self, number: int) -> float:
        return rounded(number * self._hop)

    def _end(self, number: int) -> float:
        return rounded(number * self._hop + self._length)

    def _cut(self, end: float) -> Iterator[Window]:
        """Yield the next window, unless no frame is in it."""
        number = self._next
        self._next += 1
        start = self._start(number)
        times = list(self._times)
        lead, stop = bisect.bisect_left(times, start), bisect.bisect_left(times, end)
        jpegs = self._jpegs.pop(number, [])
        if stop > lead and jpegs:
            motion = join_blocks(list(self._blocks))
            # The first RGB frame may have been shown since before the window.
            indices = [bisect.bisect_left(times, time, lead, stop) - lead for time, _ in jpegs]
            video = Clip(
                **vars(motion),
                frames=[jpeg for _, jpeg in jpegs],
                frame_indices=np.array(indices, np.int32),
                num_frames=stop - lead,
                fps=0.0,
                times=np.array(times[lead:stop]) - times[lead],
                source=self._source,
                lead=lead,
            )
            yield Window(start, end, video)
        self._forget()

    def _forget(self) -> None:
        """Drop the frames that no later window needs."""
        kinds = [blocks.picture_type for blocks in self._blocks]
        needed = bisect.bisect_right(list(self._times), rounded(self._next * self._hop))
        begin = max((i for i in range(min(needed, len(kinds))) if kinds[i] == "I"), default=0)
        begin = max(begin, needed - _MAX_LEAD)
        for _ in range(begin):
            self._times.popleft()
            self._blocks.popleft()


def rounded(seconds: float) -> float:
    """Round seconds to the microsecond."""
    return round(seconds, _DIGITS)
