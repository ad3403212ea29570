"""Read what the codec says of frames: of all, one after the other, or of some."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np

from moclip_jax.codec.frame import Frame, field_map
from moclip_jax.input_pipeline.video.accumulate import Accumulator, checked_frames
from moclip_jax.input_pipeline.video.coded_frames import coded_frames
from moclip_jax.input_pipeline.video.decode import decode_frames, open_video
from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.motion_vectors import CODECS_WITH_VECTORS, VECTORS_ONLY
from moclip_jax.input_pipeline.video.orientation import orient_field, oriented_size
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed
from moclip_jax.input_pipeline.video.spec import SOURCES, VideoSpec
from moclip_jax.input_pipeline.video.times import DEFAULT_RATE, frame_times

# Vectors of all frames, and of I-frames the picture too.
_VECTORS_AND_INTRA = VECTORS_ONLY | {"skip_idct": "nokey"}


def frames(
    path: str | os.PathLike,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    times: Sequence[float] | np.ndarray | None = None,
    accumulated: bool = True,
    source: str = "auto",
) -> Iterator[Frame]:
    """Read frame types and motion.

    All frames come one after the other, and memory does not grow with the file. Of chosen frames,
    only the groups of pictures that hold them are decoded where the file allows it, and all of them
    are held at once.

    Args:
      path: A local video file, anything that FFmpeg reads.
      indices: Frames wanted, in display order from 0; None for all.
      times: Seconds since the first frame, in place of `indices`: the frames that are shown then.
      accumulated: Whether to accumulate motion back to the I-frame (`Frame.accumulated`); it takes
        about as long as decoding.
      source: 'native', the stream's own vectors; 'reencode', those of the frames re-encoded as
        MPEG-4 in their own size, with an I-frame every 12; 'auto', the stream's own if FFmpeg
        exports any for its codec, else re-encoded.

    Yields:
      The frames, in the order asked for. Re-encoded, their types are those of the new stream.

    Raises:
      VideoError: The file is absent, no video, cut or damaged, or changes its frame size.
      IndexError: A frame index outside the video.
      ValueError: A time outside the video, both `indices` and `times`, or an unknown source.
    """
    if indices is not None and times is not None:
        raise ValueError("frames takes indices or times, not both")
    choice = None if indices is None and times is None else _Choice(indices, times)
    return _frames(path, choice, accumulated, _is_native(path, source))


class _Choice:
    """The frames that are wanted, once the times of all are known."""

    def __init__(
        self,
        indices: Sequence[int] | np.ndarray | None,
        times: Sequence[float] | np.ndarray | None,
    ):
        self._indices, self._times = indices, times
        self.chosen: list[int] | None = None if indices is None else np.asarray(indices).tolist()
        self.frame_times: np.ndarray | None = None

    def __call__(self, frame_times: np.ndarray) -> list[int]:
        """Return the chosen frames, in the order asked for."""
        self.frame_times = frame_times
        if self._indices is not None:
            self.chosen = checked_frames(self._indices, len(frame_times)).tolist()
            return self.chosen
        wanted = np.asarray(self._times, np.float64)
        step = frame_times[-1] / max(len(frame_times) - 1, 1)
        end = frame_times[-1] + step
        outside = wanted[~((wanted >= 0) & (wanted <= end))]
        if outside.size:
            raise ValueError(f"time {outside[0]:g} s is outside a video of {end:g} s")
        # To the microsecond, so that a frame at 1.2 s is shown at 3 * 0.4 s.
        found = np.searchsorted(frame_times, wanted + 1e-6, side="right") - 1
        self.chosen = np.maximum(found, 0).tolist()
        return self.chosen


def _frames(
    path: str | os.PathLike, choice: _Choice | None, accumulated: bool, native: bool
) -> Iterator[Frame]:
    if choice is None:
        yield from _with_motion(path, _vectors(path, native), accumulated, None)
        return
    found = None
    if native:
        try:
            found = {
                frame.index: frame
                for frame in _with_motion(path, _needed(path, choice), accumulated, choice)
            }
        except UncertainOrderError:
            found = None  # Only a saving: what follows gives the same for any file.
    if found is None:
        if choice.chosen is None:
            choice(_all_times(path))
        last = max(choice.chosen or (), default=-1)
        found = {}
        for frame in _with_motion(path, _vectors(path, native), accumulated, choice):
            found[frame.index] = frame
            if frame.index >= last:
                break
    absent = [index for index in choice.chosen or () if index not in found]
    if absent:
        raise IndexError(f"frame {absent[0]} is outside the video")
    yield from (found[index] for index in choice.chosen or ())


def decoded_frames(
    path: str | os.PathLike, source: str = "auto"
) -> Iterator[tuple[Frame, av.VideoFrame]]:
    """Read all frames and, of I-frames, their picture.

    Yields:
      What the codec says of each frame, and the decoded frame, of which only I-frames are whole.

    Raises:
      VideoError: As `frames`.
    """
    native = _is_native(path, source)
    for index, time_s, shown, coded in _whole(path, native, _VECTORS_AND_INTRA):
        yield _described(path, coded, index, time_s), shown


def _is_native(path: str | os.PathLike, source: str) -> bool:
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}, must be one of {', '.join(SOURCES)}")
    if source != "auto":
        return source == "native"
    with open_video(path) as (_, stream):
        return stream.codec_context.name in CODECS_WITH_VECTORS


def _described(path: str | os.PathLike, coded: av.VideoFrame, index: int, time_s: float) -> Frame:
    try:
        return Frame.of(coded, index, time_s)
    except ValueError as error:
        raise VideoError(path, f"frame {index}: {error}") from error


def _whole(
    path: str | os.PathLike, native: bool, options: dict[str, str] = VECTORS_ONLY
) -> Iterator[tuple[int, float, av.VideoFrame, av.VideoFrame]]:
    """Yield number, time, decoded frame and the frame whose vectors count, of all frames."""
    with open_video(path) as (_, stream):
        clock = FrameClock(float(stream.average_rate or 0))
    if native:
        pairs = ((frame, frame) for frame in decode_frames(path, options))
    else:
        pairs = (
            (frame.frame, frame.coded) for frame in coded_frames(path, _own_size(path), "reencode")
        )
    for index, (shown, coded) in enumerate(pairs):
        yield index, clock.time_s(shown), shown, coded


class FrameClock:
    """Gives frames times that rise, in seconds since the first.

    They are the time stamps; a frame without one, or with one that runs backwards, follows the
    frame before at the declared rate.
    """

    def __init__(self, rate: float):
        """Start before the first frame.

        Args:
          rate: Declared frames a second, 0 where none is.
        """
        self._step = 1 / (rate or DEFAULT_RATE)
        self._first, self._last = math.nan, math.nan

    def time_s(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame."""
        stamp = math.nan
        if frame.pts is not None and frame.time_base is not None:
            stamp = float(frame.pts * frame.time_base)
        if math.isnan(self._last):
            self._first, self._last = stamp, 0.0
            return 0.0
        time = stamp - self._first
        self._last = time if time > self._last else self._last + self._step
        return self._last

    def end_s(self) -> float:
        """Return when the last frame ends."""
        return self._last + self._step


def _vectors(path: str | os.PathLike, native: bool) -> Iterator[tuple[int, float, av.VideoFrame]]:
    for index, time_s, _, coded in _whole(path, native):
        yield index, time_s, coded


def _needed(path: str | os.PathLike, choice: _Choice) -> Iterator[tuple[int, float, av.VideoFrame]]:
    for index, frame in decode_needed(path, choice, VECTORS_ONLY):
        assert choice.frame_times is not None
        yield index, float(choice.frame_times[index]), frame


def _with_motion(
    path: str | os.PathLike,
    coded: Iterable[tuple[int, float, av.VideoFrame]],
    accumulated: bool,
    choice: _Choice | None,
) -> Iterator[Frame]:
    """Yield the chosen frames, in rising order, with their accumulated motion."""
    shape: tuple[tuple[int, int], int] | None = None
    accumulator: Accumulator | None = None
    waiting: dict[int, Frame] = {}

    def finished(made: Iterable[tuple[int, np.ndarray]]) -> Iterator[Frame]:
        for index, field in made:
            frame = waiting.pop(index)
            frame.accumulated = field_map(orient_field(field, frame.orientation))
            yield frame

    chosen: frozenset[int] | None = None
    for index, time_s, decoded in coded:
        if choice is not None and chosen is None:
            chosen = frozenset(choice.chosen or ())
        frame = _described(path, decoded, index, time_s)
        if shape not in (None, (frame.coded_size, frame.orientation)):
            raise VideoError(path, f"the size or orientation changes at frame {index}")
        shape = frame.coded_size, frame.orientation
        wanted = chosen is None or index in chosen
        if not accumulated:
            if wanted:
                yield frame
            continue
        if accumulator is None:
            accumulator = Accumulator(*frame.coded_size)
        try:
            blocks = frame.blocks
        except ValueError as error:
            raise VideoError(path, f"frame {index}: {error}") from error
        if wanted:
            waiting[index] = frame
        yield from finished(
            accumulator.add(index, blocks.displacements, blocks.future, frame.picture_type, wanted)
        )
    if accumulator is not None:
        yield from finished(accumulator.end())


def _own_size(path: str | os.PathLike) -> VideoSpec:
    """Return the canonical form in the size of a file's frames, even and upright."""
    frame = next(decode_frames(path))
    shown = Frame.of(frame, 0, 0.0)
    height, width = oriented_size(*shown.coded_size, shown.orientation)
    return VideoSpec(
        width=max(width + width % 2, 16),
        height=max(height + height % 2, 16),
        max_frames=None,
        max_seconds=None,
    )


def frame_numbers(path: str | os.PathLike, times: Sequence[float] | np.ndarray) -> list[int]:
    """Return which frames are shown at some times, without decoding where the packets tell.

    Raises:
      VideoError: As `frames`.
      ValueError: A time outside the video.
    """
    choice = _Choice(None, times)
    with contextlib.suppress(UncertainOrderError):
        next(decode_needed(path, choice, VECTORS_ONLY), None)
    return choice(_all_times(path)) if choice.chosen is None else choice.chosen


def _all_times(path: str | os.PathLike) -> np.ndarray:
    """Return the times of all frames by decoding them, float64 `[n]` seconds since the first."""
    with open_video(path) as (_, stream):
        rate = float(stream.average_rate or 0)
    stamps, time_base = [], None
    for frame in decode_frames(path, VECTORS_ONLY):
        stamps.append(math.nan if frame.pts is None else frame.pts)
        time_base = frame.time_base
    return frame_times(stamps, time_base, rate)[0]
