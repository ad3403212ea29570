"""Windows of a stream that is still growing: a camera, a network address, a pipe, a file.

Every window is a prepared video, and holds the frames before it that its motion is accumulated
through. Only those are kept, so memory does not grow with the stream.
"""

import bisect
import collections
import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator

import av
import numpy as np
from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec, frame_jpeg
from moclip_jax.input_pipeline.video.decode import VideoError, short_reason
from moclip_jax.input_pipeline.video.motion_vectors import (
    CODECS_WITH_VECTORS,
    EXPORT_VECTORS,
    FrameBlocks,
    NoVectorsError,
    frame_blocks,
    join_blocks,
)
from moclip_jax.input_pipeline.video.orientation import Uprighter
from moclip_jax.input_pipeline.video.reencode import CanonicalStream

# A stream without I-frames (some only refresh their pictures bit by bit) must not fill the memory.
_LONGEST_LEAD = 600
# Time stamps that jump by more than this, or back, belong to another recording.
_LARGEST_GAP_S = 10.0
# Times are compared to the microsecond: a frame at 1.2 s belongs to a window from 3 * 0.4 s on.
_DIGITS = 6
# Packets that cannot be decoded, one after the other, before the connection is given up.
_MOST_DAMAGED = 100


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of a stream.

    Attributes:
      start_s: Its beginning in seconds since the first frame of the connection.
      end_s: Its end; frames at this very time belong to the next.
      video: Its frames, at least one, and in `lead` those that their motion needs.
    """

    start_s: float
    end_s: float
    video: Clip


class WindowCutter:
    """Cuts the frames of one recording into windows.

    Pictures are wanted at the middles of `spec.clip_frames` equal parts of a window, and at its own
    middle: each time the frame that is shown then.
    """

    def __init__(self, spec: VideoSpec, length_s: float, hop_s: float, source: str):
        """Start a recording.

        Args:
          spec: The form of videos.
          length_s: Length of a window in seconds.
          hop_s: Seconds from the beginning of one to that of the next.
          source: Where its motion comes from, 'native' or 'reencode'.
        """
        self._spec, self._source = spec, source
        self._length, self._hop = float(length_s), float(hop_s)
        parts = (np.arange(spec.clip_frames) + 0.5) / spec.clip_frames
        self._wanted = np.unique(np.append(parts, 0.5)) * length_s
        self._first: float | None = None
        self._next = 0  # number of the next window to be given
        # Of each frame since the I-frame before that window: time, motion.
        self._times: collections.deque[float] = collections.deque()
        self._blocks: collections.deque[FrameBlocks] = collections.deque()
        # The frame before the present one, and its JPEG once that was made.
        self._shown: tuple[float, av.VideoFrame] | None = None
        self._jpeg: bytes | None = None
        self._jpegs: dict[int, list[tuple[float, bytes]]] = {}

    def add_picture(self, time_s: float, picture: av.VideoFrame) -> None:
        """Take a frame's picture, before its motion.

        Args:
          time_s: Its time stamp in seconds; rises from frame to frame.
          picture: The frame, upright.
        """
        if self._first is None:
            self._first = time_s
        time = _rounded(time_s - self._first)
        if self._shown is not None:
            shown = self._shown[0]
            # Windows that were open while it was shown.
            number = max(self._next, int((shown - self._length) // self._hop))
            while number * self._hop <= time:
                at = np.round(self._wanted + number * self._hop, _DIGITS)
                if ((at >= shown) & (at < time)).any():
                    self._keep(number)
                number += 1
        self._shown, self._jpeg = (time, picture), None

    def _keep(self, number: int) -> None:
        assert self._shown is not None
        if self._jpeg is None:
            self._jpeg = frame_jpeg(self._shown[1], self._spec)
        self._jpegs.setdefault(number, []).append((self._shown[0], self._jpeg))

    def add_motion(self, time_s: float, blocks: FrameBlocks) -> Iterator[Window]:
        """Take the motion of the next frame; yield the windows that are complete with it.

        Args:
          time_s: The frame's time stamp, as given with its picture.
          blocks: Its motion.
        """
        assert self._first is not None
        time = _rounded(time_s - self._first)
        self._times.append(time)
        self._blocks.append(blocks)
        if blocks.picture_type == "I":
            self._forget()
        if blocks.picture_type == "B":
            return  # Whatever it is the end of also needs the next reference.
        while self._end(self._next) <= time:
            yield from self._cut()

    def end(self) -> Iterator[Window]:
        """Yield the only window of a recording that was shorter than one."""
        if not self._next and self._shown is not None and self._times:
            if not self._jpegs:
                self._keep(0)
            yield from self._cut()

    def _end(self, number: int) -> float:
        return _rounded(number * self._hop + self._length)

    def _cut(self) -> Iterator[Window]:
        number = self._next
        self._next += 1
        start, end = _rounded(number * self._hop), self._end(number)
        times = list(self._times)
        lead, stop = bisect.bisect_left(times, start), bisect.bisect_left(times, end)
        jpegs = self._jpegs.pop(number, [])
        if stop > lead and jpegs:
            motion = join_blocks(list(self._blocks))
            # A picture may have been shown since before the window.
            indices = [bisect.bisect_left(times, time, lead, stop) - lead for time, _ in jpegs]
            video = Clip(
                **vars(motion),
                frames=[jpeg for _, jpeg in jpegs],
                frame_indices=np.array(indices, np.int32),
                num_frames=stop - lead,
                fps=0.0,
                source=self._source,
                lead=lead,
            )
            yield Window(start, end, video)
        self._forget()

    def _forget(self) -> None:
        """Drop the frames that no later window needs."""
        kinds = [blocks.picture_type for blocks in self._blocks]
        needed = bisect.bisect_right(list(self._times), _rounded(self._next * self._hop))
        begin = max((i for i in range(min(needed, len(kinds))) if kinds[i] == "I"), default=0)
        begin = max(begin, needed - _LONGEST_LEAD)
        for _ in range(begin):
            self._times.popleft()
            self._blocks.popleft()


def read_stream(
    address: str,
    spec: VideoSpec,
    *,
    length_s: float,
    hop_s: float,
    timeout_s: float = 10.0,
    container_format: str | None = None,
) -> Iterator[Window]:
    """Read a stream from one connection to its end.

    A local file is followed while it grows; of one that stops, the last frame may be missing,
    because some formats end a frame by the next one. The time stamps are the stream's; where there
    are none, frames are taken to come at the rate that the stream declares.

    Args:
      address: A file, a FIFO, '-' for standard input, a device (/dev/video0), or an address such as
        rtsp://, http://, udp://.
      spec: The form of videos; motion comes from where `spec.source` says. Of its limits only
        `max_pixels` means anything for a stream without an end.
      length_s: Length of a window in seconds.
      hop_s: Seconds from the beginning of one to that of the next.
      timeout_s: Seconds to wait for data: at the beginning and in between. A file that has not
        grown for so long is at its end.
      container_format: FFmpeg's name of the format, where it cannot be told (devices: guessed).

    Yields:
      The windows, each as soon as it is complete.

    Raises:
      VideoError: It cannot be opened, gives no data for too long, holds no video, or no motion of
        the kind that `spec.source` wants; the message names the address and the reason.
    """
    with _open_live(address, spec, timeout_s, container_format) as (container, stream):
        native = _native_wanted(address, spec, stream.codec_context.name)
        recording: _Recording | None = None
        clock = _FrameClock(float(stream.guessed_rate or 25))
        try:
            for frame in _frames(address, container, stream):
                time, goes_on = clock.time(frame)
                if recording is None or not goes_on or not recording.continues(frame):
                    if recording is not None:
                        yield from recording.end()
                    recording = _Recording(spec, length_s, hop_s, native)
                yield from recording.add(time, frame)
        except av.FFmpegError as error:
            raise VideoError(address, f"broke off ({short_reason(error)})") from error
        except ValueError as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(address, str(error)) from error
        if recording is None:
            raise VideoError(address, "ended without a frame")
        yield from recording.end()


def _frames(
    address: str, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Decode to the end; a few packets that cannot be decoded are left out."""
    damaged = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except EOFError:
            packet = None
        except av.FFmpegError as error:
            # A file that stopped growing is at its end; an address that fell silent is not.
            if not (_is_growing_file(address) and _is_timeout(error)):
                raise
            packet = None
        if packet is None or not packet.size:
            yield from stream.codec_context.decode(None)
            return
        try:
            frames = stream.codec_context.decode(packet)
            damaged = 0
        except av.FFmpegError:
            # Streams lose packets; decoding goes on with the next that makes sense.
            damaged += 1
            if damaged > _MOST_DAMAGED:
                raise
            continue
        yield from frames


class _Recording:
    """Frames of one size and one clock, on their way into windows."""

    def __init__(self, spec: VideoSpec, length_s: float, hop_s: float, native: bool):
        source = "native" if native else "reencode"
        self._cutter = WindowCutter(spec, length_s, hop_s, source)
        self._upright = Uprighter()
        self._canonical = None if native else CanonicalStream(spec)
        self._size: tuple[int, int] | None = None
        self._waiting: collections.deque[float] = collections.deque()

    def continues(self, frame: av.VideoFrame) -> bool:
        """Say whether a frame can follow: another size cannot, in the stream's own motion."""
        return self._canonical is not None or self._size in (None, (frame.height, frame.width))

    def add(self, time: float, frame: av.VideoFrame) -> Iterator[Window]:
        self._size = frame.height, frame.width
        picture = self._upright(frame)
        self._cutter.add_picture(time, picture)
        if self._canonical is None:
            yield from self._cutter.add_motion(time, frame_blocks(frame))
            return
        self._waiting.append(time)
        for encoded in self._canonical.add(picture):
            yield from self._cutter.add_motion(self._waiting.popleft(), frame_blocks(encoded))

    def end(self) -> Iterator[Window]:
        if self._canonical is not None:
            for encoded in self._canonical.end():
                yield from self._cutter.add_motion(self._waiting.popleft(), frame_blocks(encoded))
        yield from self._cutter.end()


class _FrameClock:
    """Times of frames in seconds, and whether they follow one another."""

    def __init__(self, rate: float):
        self._rate = rate
        self._last: float | None = None

    def time(self, frame: av.VideoFrame) -> tuple[float, bool]:
        last = self._last
        if frame.time is None:
            self._last = 0.0 if last is None else last + 1 / self._rate
            return self._last, True
        self._last = frame.time
        return frame.time, last is None or 0 < frame.time - last < _LARGEST_GAP_S


@contextlib.contextmanager
def _open_live(
    address: str, spec: VideoSpec, timeout_s: float, container_format: str | None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    options = {"max_pixels": str(spec.max_pixels)}
    target = address
    if address == "-":
        target = "pipe:0"
    elif "://" not in address:
        if not os.path.exists(address):
            raise VideoError(address, "no such file or device; addresses look like rtsp://HOST/...")
        if _is_growing_file(address):
            options["follow"] = "1"
        if stat.S_ISCHR(os.stat(address).st_mode):
            container_format = container_format or "v4l2"
        else:
            target = f"file:{address}"
    elif address.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # Lost packets would be lost motion.
    try:
        container = av.open(
            target,
            format=container_format,
            options=options,
            metadata_errors="replace",
            timeout=(timeout_s, timeout_s),
        )
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
        raise VideoError(address, f"cannot be opened ({short_reason(error)})") from error
    with container:
        if not container.streams.video:
            raise VideoError(address, "has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError(address, "its video codec is unknown to FFmpeg")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = EXPORT_VECTORS | {"max_pixels": str(spec.max_pixels)}
        yield container, stream


def _rounded(seconds: float) -> float:
    return round(seconds, _DIGITS)


def _native_wanted(address: str, spec: VideoSpec, codec: str) -> bool:
    if spec.source == "native" and codec not in CODECS_WITH_VECTORS:
        raise NoVectorsError(
            address,
            f"its codec, {codec}, carries no motion vectors that FFmpeg exports, and the model was "
            "trained on such (motion.source='native')",
        )
    return spec.source != "reencode" and codec in CODECS_WITH_VECTORS


def _is_growing_file(address: str) -> bool:
    return "://" not in address and os.path.isfile(address)


def _is_timeout(error: av.FFmpegError) -> bool:
    return isinstance(error, (av.error.ExitError, TimeoutError))
