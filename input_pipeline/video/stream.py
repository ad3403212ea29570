"""Read windows of a stream that may still grow: a camera, a network address, a pipe, a file.

Every window is a clip that also holds the frames before it which its motion is accumulated through.
Only those are kept, so memory does not grow with the stream.
"""

import collections
import contextlib
import os
import stat
from collections.abc import Iterator
from fractions import Fraction

import av

from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.decode import VideoError, pixel_aspect, short_reason
from moclip_jax.input_pipeline.video.motion_vectors import (
    CODECS_WITH_VECTORS,
    EXPORT_VECTORS,
    NoVectorsError,
    frame_blocks,
)
from moclip_jax.input_pipeline.video.orientation import Uprighter, shown_aspect
from moclip_jax.input_pipeline.video.reencode import CanonicalStream
from moclip_jax.input_pipeline.video.times import lacks_presentation_times
from moclip_jax.input_pipeline.video.window_cutter import MIN_STEP_S, Window, WindowCutter

# Time stamps that jump by more than this forwards or backwards belong to another recording.
_MAX_GAP_S, _MAX_STEP_BACK_S = 10.0, 1.0
# Packets in a row that cannot be decoded before the connection is given up.
_MAX_DAMAGED_PACKETS = 100


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

    A local file is followed while it grows. Every frame that FFmpeg decodes is in a window, in
    exactly one if `hop_s` equals `length_s`; the last window is shorter if the stream ends in it.
    The times are the stream's time stamps; where there are none, the declared frame rate gives
    them. Time stamps that jump (by 10 s, or back by 1 s) start a new recording, whose times start
    at 0.

    Args:
      address: A file, a FIFO, '-' for standard input, a device (/dev/video0), or an address such as
        rtsp://, http://, udp://.
      spec: The canonical form of clips; `spec.source` says where the motion comes from. Of its
        limits only `max_pixels` applies to a stream, which may have no end.
      length_s: Length of a window in seconds.
      hop_s: Seconds from the start of one window to that of the next.
      timeout_s: Seconds to wait for data: at the start and in between. A file that has not grown
        for so long is at its end.
      container_format: FFmpeg's name of the format, where it cannot be detected (devices: guessed).

    Yields:
      The windows, each as soon as it is complete.

    Raises:
      VideoError: It cannot be opened, times out, holds no video, or no motion of the kind that
        `spec.source` requires; the message names the address and the reason.
    """
    with _open_stream(address, spec, timeout_s, container_format) as (container, stream):
        native = _native_wanted(address, spec, stream.codec_context.name)
        aspect = pixel_aspect(address, stream)
        recording: _Recording | None = None
        clock = _FrameClock(stream, lacks_presentation_times(container, stream))
        try:
            for frame in _frames(address, container, stream, clock):
                time, continuous = clock.time(frame)
                if recording is None or not continuous or not recording.continues(frame):
                    if recording is not None:
                        yield from recording.end()
                    recording = _Recording(spec, length_s, hop_s, native, aspect)
                yield from recording.add(time, frame, clock.duration(frame))
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
    address: str,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    clock: "_FrameClock",
) -> Iterator[av.VideoFrame]:
    """Decode to the end; a few packets that cannot be decoded are skipped."""
    damaged = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except EOFError:
            packet = None
        except av.FFmpegError as error:
            # A timeout is the end of a file, but an error of an address.
            if not (_is_growing_file(address) and _is_timeout(error)):
                raise
            packet = None
        if packet is None or not packet.size:
            yield from stream.codec_context.decode(None)
            return
        try:
            frames = stream.codec_context.decode(packet)
            damaged = 0
            clock.note_packet(packet)
        except av.FFmpegError:
            # Streams lose packets; decoding resumes with the next intact one.
            damaged += 1
            if damaged > _MAX_DAMAGED_PACKETS:
                raise
            continue
        yield from frames


class _Recording:
    """Brings frames of one size and one clock into windows."""

    def __init__(
        self, spec: VideoSpec, length_s: float, hop_s: float, native: bool, aspect: Fraction
    ):
        source = "native" if native else "reencode"
        self._cutter = WindowCutter(spec, length_s, hop_s, source)
        self._upright, self._aspect = Uprighter(), aspect
        self._canonical = None if native else CanonicalStream(spec)
        self._size: tuple[int, int] | None = None
        self._waiting: collections.deque[float] = collections.deque()

    def continues(self, frame: av.VideoFrame) -> bool:
        """Return whether a frame can follow: another size cannot, in the stream's own motion."""
        return self._canonical is not None or self._size in (None, (frame.height, frame.width))

    def add(self, time: float, frame: av.VideoFrame, duration: float) -> Iterator[Window]:
        self._size = frame.height, frame.width
        picture = self._upright(frame)
        aspect = shown_aspect(frame, self._aspect)
        self._cutter.add_picture(time, picture, duration, aspect)
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
    """Gives the times of frames in seconds, and checks whether they follow one another."""

    def __init__(self, stream: av.VideoStream, by_decoding_time: bool):
        """Start with the first frame.

        Args:
          stream: The stream.
          by_decoding_time: Whether frames are shown at the times at which packets are decoded.
        """
        self._decoding_times: collections.deque[int | None] | None = (
            collections.deque() if by_decoding_time else None
        )
        self._time_base = float(stream.time_base or 0)
        self._declared_step = self._step = 1 / float(stream.guessed_rate or 25)
        self._last: float | None = None

    def note_packet(self, packet: av.Packet) -> None:
        """Take the next packet that is decoded."""
        if self._decoding_times is not None:
            self._decoding_times.append(packet.dts)

    def time(self, frame: av.VideoFrame) -> tuple[float, bool]:
        """Return a frame's time, which rises, and whether the frame continues the recording."""
        last = self._last
        following = 0.0 if last is None else last + self._declared_step
        # Not `frame.time`, which is NaN for the frames that the decoder gives at the end.
        stamp = frame.pts
        if self._decoding_times is not None:
            stamp = self._decoding_times.popleft() if self._decoding_times else None
        time = following if stamp is None else stamp * self._time_base
        continuous = last is None or -_MAX_STEP_BACK_S < time - last < _MAX_GAP_S
        if last is not None and continuous:
            time = max(time, last + MIN_STEP_S)
            self._step = time - last
        self._last = time
        return time, continuous

    def duration(self, frame: av.VideoFrame) -> float:
        """Return how long a frame is shown: as it declares, or as long as the frame before."""
        return (frame.duration or 0) * self._time_base or self._step


@contextlib.contextmanager
def _open_stream(
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
