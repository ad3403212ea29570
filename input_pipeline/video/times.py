"""When frames are shown: by time stamps, or what is declared where there are none."""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import av.container
import numpy as np

# Containers whose header states how long the video is, so that cut files are found.
# FFmpeg estimates the duration of the others, and an estimate must not reject a good file.
_DECLARING_FORMATS = ("mov", "matroska", "flv")
# Codecs whose frames are reordered and whose parser does not say how: in AVI, which stores no
# presentation times, FFmpeg then gives every packet a time that belongs to another frame.
_WITHOUT_TIMES_IN_AVI = frozenset({"h264", "hevc"})
DEFAULT_RATE = 25.0
"""Frames a second that FFmpeg assumes where a stream declares none."""


def frame_times(
    stamps: Sequence[float], time_base: Fraction | None, declared_rate: float
) -> tuple[np.ndarray, float]:
    """Return when frames are shown, and how many there are in a second.

    Args:
      stamps: Time stamps of all frames of a video in display order, at least one; whole numbers,
        or NaN.
      time_base: Seconds of one unit of the stamps.
      declared_rate: Frames a second to assume where stamps are missing or run backwards; 0 where
        none is declared.

    Returns:
      float64 `[n]` seconds since the first frame, and the rate: `(n - 1) / (last - first)`, or
      `declared_rate` where that is unknown.
    """
    times = np.array(stamps, np.float64)
    times -= times[0]
    if time_base is None or not (np.diff(times) >= 0).all() or np.isnan(times).any():
        return np.arange(len(times)) / (declared_rate or DEFAULT_RATE), declared_rate
    if times[-1] > 0:
        declared_rate = float((len(times) - 1) / (int(times[-1]) * time_base))
    return times * float(time_base), declared_rate


def lacks_presentation_times(
    container: av.container.InputContainer, stream: av.VideoStream
) -> bool:
    """Return whether packets have no times but those of decoding, although frames are reordered."""
    return container.format.name == "avi" and stream.codec_context.name in _WITHOUT_TIMES_IN_AVI


def note_decoding_times(
    packets: Iterable[av.Packet], stamps: collections.deque[int | None]
) -> Iterator[av.Packet]:
    """Pass packets on, and append their decoding times to `stamps`."""
    for packet in packets:
        stamps.append(packet.dts)
        yield packet


def declared_end(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    """Return the end of the video in seconds as its header states it, or None."""
    if container.format.name == "avi":
        # FFmpeg shortens `duration` of a cut AVI; the frame count in the header stays. Time stamps
        # are frame numbers and so also count dropped (empty) frames, which are no packets.
        return stream.frames / stream.average_rate if stream.average_rate else None
    if not container.format.name.startswith(_DECLARING_FORMATS):
        return None
    if stream.frames and stream.duration is not None and stream.time_base is not None:
        return stream.duration * stream.time_base
    tag = stream.metadata.get("DURATION", "")
    # Matroska's "00:00:01.040000000"; anything else is no declaration.
    if re.fullmatch(r"\d+:\d+:\d+(\.\d+)?", tag, re.ASCII):
        hours, minutes, seconds = tag.split(":")
        return Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)
    # The container's duration is that of its longest stream, so it binds the video only if alone.
    if container.duration is not None and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None
