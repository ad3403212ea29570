"""Read windows of a stream that may still grow: a camera, a network address, a pipe, a file.

Every window is a clip that also holds the frames before it which its motion is accumulated through.
Only those are kept, so memory does not grow with the stream.
"""

import collections
import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator
from fractions import Fraction

import av

from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.coded_frames import CodedFrame, FrameCoder
from moclip_jax.input_pipeline.video.decode import (
    pixel_aspect,
    short_reason,
)
from moclip_jax.input_pipeline.video.limits import VideoError, check_corrupt, check_encrypted
from moclip_jax.input_pipeline.video.motion_vectors import (
    CODECS_WITH_VECTORS,
    EXPORT_VECTORS,
    NoVectorsError,
)
from moclip_jax.input_pipeline.video.orientation import shown_aspect
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
    damage = _Damage(address)
    cutter, recording = None, -1
    for frame in _read_frames(address, spec, timeout_s, container_format, damage):
        with named_errors(address):
            if frame.recording != recording:
                if cutter is not None:
                    yield from damage.checked(cutter.end())
                cutter = WindowCutter(spec, length_s, hop_s, frame.source)
                recording = frame.recording
            assert cutter is not None
            yield from damage.checked(
                cutter.add(frame.coded, frame.time_s, frame.duration_s, frame.pixel_aspect)
            )
    assert cutter is not None
    with named_errors(address):
        yield from damage.checked(cutter.end())


@dataclasses.dataclass(frozen=True)
class StreamFrame:
    """A frame of a stream.

    Attributes:
      recording: Number of the recording, from 0.
      coded: The frame and its motion.
      time_s: Its time stamp in seconds; rises within a recording.
      duration_s: Seconds that it is shown, if no other frame follows.
      pixel_aspect: Width of its upright pixels over their height.
      source: Where the motion comes from, 'native' or 'reencode'.
    """

    recording: int
    coded: CodedFrame
    time_s: float
    duration_s: float
    pixel_aspect: Fraction
    source: str


def read_stream_frames(
    address: str,
    spec: VideoSpec,
    *,
    timeout_s: float = 10.0,
    container_format: str | None = None,
    motion: bool = True,
) -> Iterator[StreamFrame]:
    """Read a stream from one connection to its end, frame by frame.

    Arguments and errors are those of `read_stream`; `motion` is that of `FrameCoder`. Damage is
    looked at after every frame.
    """
    damage = _Damage(address)
    for frame in _read_frames(address, spec, timeout_s, container_format, damage, motion):
        damage.check()
        yield frame


def _read_frames(
    address: str,
    spec: VideoSpec,
    timeout_s: float,
    container_format: str | None,
    damage: "_Damage",
    motion: bool = True,
) -> Iterator[StreamFrame]:
    with (
        _open_stream(address, spec, timeout_s, container_format) as (container, stream),
        named_errors(address),
    ):
        native = native_wanted(address, spec, stream.codec_context.name)
        aspect = pixel_aspect(address, stream)
        recording: _Recording | None = None
        clock = _FrameClock(stream, lacks_presentation_times(container, stream))
        for frame in _frames(address, container, stream, clock, damage):
            time, continuous = clock.time(frame)
            if recording is None or not continuous or not recording.continues(frame):
                if recording is not None:
                    yield from recording.end()
                number = 0 if recording is None else recording.number + 1
                recording = _Recording(spec, native, aspect, number, motion)
            yield from recording.add(time, frame, clock.duration(frame))
        if recording is None:
            raise VideoError(address, "ended without a frame")
        yield from recording.end()


@contextlib.contextmanager
def named_errors(address: str | os.PathLike) -> Iterator[None]:
    """Name a file or an address in the errors of FFmpeg and of frames."""
    try:
        yield
    except av.FFmpegError as error:
        raise VideoError(address, f"broke off ({short_reason(error)})") from error
    except ValueError as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(address, str(error)) from error


class _Damage:
    """Counts what is damaged, and ends a stream of which that is the most, as it would a file."""

    def __init__(self, address: str):
        self._address = address
        self._corrupt = self._frames = 0

    def count(self, corrupt: bool) -> None:
        """Take a frame, or a packet that gave none."""
        self._frames += 1
        self._corrupt += corrupt

    def checked(self, windows: Iterator[Window]) -> Iterator[Window]:
        """Pass windows on as long as no more than half of all frames are damaged."""
        for window in windows:
            self.check()
            yield window

    def check(self) -> None:
        """Raise a `VideoError` if more than half of all frames are damaged."""
        check_corrupt(self._address, self._corrupt, self._frames)


def _frames(
    address: str,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    clock: "_FrameClock",
    damage: _Damage,
) -> Iterator[av.VideoFrame]:
    """Decode to the end; a few packets that cannot be decoded are skipped."""
    damaged = number = 0
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
            for frame in stream.codec_context.decode(None):
                damage.count(frame.is_corrupt)
                yield frame
            return
        number += 1
        check_encrypted(address, packet, number)
        try:
            frames = stream.codec_context.decode(packet)
            damaged = 0
            clock.note_packet(packet)
        except av.FFmpegError:
            # Streams lose packets; decoding resumes with the next intact one.
            damaged += 1
            damage.count(True)
            if damaged > _MAX_DAMAGED_PACKETS:
                raise
            continue
        for frame in frames:
            damage.count(frame.is_corrupt)
            yield frame


class _Recording:
    """Gives frames of one size and one clock their motion."""

    def __init__(self, spec: VideoSpec, native: bool, aspect: Fraction, number: int, motion: bool):
        self.number = number
        self._source = "native" if native else "reencode"
        self._coder = FrameCoder(spec, self._source, motion=motion)
        self._native, self._aspect = native, aspect
        self._size: tuple[int, int] | None = None
        # When frames are shown and how long, until their motion is there.
        self._times: collections.deque[tuple[float, float]] = collections.deque()

    def continues(self, frame: av.VideoFrame) -> bool:
        """Return whether a frame can follow: another size cannot, in the stream's own motion."""
        return not self._native or self._size in (None, (frame.height, frame.width))

    def add(self, time: float, frame: av.VideoFrame, duration: float) -> Iterator[StreamFrame]:
        self._size = frame.height, frame.width
        self._times.append((time, duration))
        yield from self._timed(self._coder.add(frame))

    def _timed(self, frames: Iterator[CodedFrame]) -> Iterator[StreamFrame]:
        for coded in frames:
            aspect = shown_aspect(coded.frame, self._aspect)
            yield StreamFrame(self.number, coded, *self._times.popleft(), aspect, self._source)

    def end(self) -> Iterator[StreamFrame]:
        yield from self._timed(self._coder.end())


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

    def connect() -> av.container.InputContainer:
        return av.open(
            target,
            format=container_format,
            options=options,
            metadata_errors="replace",
            timeout=(timeout_s, timeout_s),
        )

    try:
        try:
            container = connect()
        except av.FFmpegError as error:
            if not (options.pop("follow", None) and _is_timeout(error)):
                raise
            # It has not grown, and is too short to tell what it is without its end.
            container = connect()
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


def native_wanted(address: str | os.PathLike, spec: VideoSpec, codec: str) -> bool:
    """Return whether the motion of a codec is to be the stream's own.

    Raises:
      NoVectorsError: It must be, and the codec has none.
    """
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
