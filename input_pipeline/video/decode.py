"""Open a video file, check that it is whole, and decode it frame by frame (PyAV).

Everything that can be wrong with a file becomes a `VideoError` that names the file and the reason.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import av.container
import av.logging
from av.video.frame import PictureType

# FFmpeg's own messages name neither the file nor what they mean for it; `VideoError` does.
av.logging.set_level(None)

# What FFmpeg can open as "video" although it is text, a picture or a list of other files.
_NOT_VIDEO_FORMATS = frozenset(
    {"tty", "image2", "concat", "hls", "dash", "imf", "webm_dash_manifest", "bin", "idf", "xbin"}
    | {"ico", "adf"}
)
# Brands of HEIF files (HEIC, AVIF), which FFmpeg demuxes like MP4.
_IMAGE_BRANDS = frozenset({"avif", "avis", "heic", "heix", "heim", "heis", "mif1", "msf1"})
# Containers whose header states how long the video is, so that a cut file can be told from a whole
# one. FFmpeg estimates the duration of the others, and an estimate must not refuse a good file.
_DECLARING_FORMATS = ("mov", "matroska", "flv")

_PICTURE_TYPES = {PictureType.I: "I", PictureType.P: "P", PictureType.B: "B"}


class VideoError(ValueError):
    """A video file that cannot be used; the message names the file and the reason."""

    def __init__(self, path: str | os.PathLike, reason: str):
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self):
        # Exceptions pickle by their message alone, which is not how this one is made; it has to
        # travel back from worker processes.
        return type(self), (self.path, self.reason)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file may cost; more is a `VideoError`. None stands for no limit.

    Attributes:
      max_bytes: Size of the file.
      max_frames: Frames of the video.
      max_pixels: Width times height of the picture.
      max_seconds: Seconds that one pass over the file may take, the caller's own work on the
        frames included. Looked at between two packets: a single picture that never ends needs
        `moclip_jax.input_pipeline.video.subprocess_pool`.
    """

    max_bytes: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    max_seconds: float | None = None


NO_LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class CheckedVideo:
    """What a file's container says about its video stream.

    Attributes:
      num_packets: Packets that the container does not mark as hidden, at least 1. For nearly every
        file this is the number of frames; the decoder has the last word.
      fps: Average frames a second, 0 where the container does not say.
      codec: FFmpeg's name of the decoder.
    """

    num_packets: int
    fps: float
    codec: str = ""


def picture_type(frame: av.VideoFrame) -> str:
    """Return 'I', 'P', 'B', or '?' for any other type FFmpeg knows."""
    return _PICTURE_TYPES.get(PictureType(frame.pict_type), "?")


@contextlib.contextmanager
def open_video(
    path: str | os.PathLike, limits: Limits = NO_LIMITS
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file's first video stream for one-thread decoding.

    One thread, because frame-threaded decoding does not export the same motion vectors in every
    frame. Where a file has several video streams it is the first that is not a cover picture, nor
    a single frame if another is not.

    Args:
      path: A local video file.
      limits: What the file may cost.

    Yields:
      The open container and the stream.

    Raises:
      VideoError: The file is absent, empty, not a video, a still image (also HEIC, AVIF, ICO and
        GIF of one frame), has no video stream, or its size or its picture's size is beyond the
        limits.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise VideoError(name, "no such file")
    if not os.path.isfile(name):
        raise VideoError(name, "not a file")
    size = os.path.getsize(name)
    if not size:
        raise VideoError(name, "the file is empty")
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise VideoError(name, f"has {size} bytes, more than max_bytes={limits.max_bytes}")
    # FFmpeg decodes a little while it opens a file; a huge picture must not be allocated there.
    options = _decoder_limits(limits)
    try:
        # The `file:` protocol, because FFmpeg would take a name such as "a:b.avi" for an address.
        container = av.open(f"file:{name}", metadata_errors="replace", options=options)
    except PermissionError as error:
        raise VideoError(name, "no permission to read it") from error
    except (av.FFmpegError, OSError, EOFError) as error:
        raise VideoError(
            name,
            f"not a video that FFmpeg can open, or cut before its header ({short_reason(error)})",
        ) from error
    with container:
        format_name = container.format.name
        if format_name in _NOT_VIDEO_FORMATS or format_name.endswith("_pipe"):
            raise VideoError(name, f"not a video file (FFmpeg reads it as '{format_name}')")
        streams = [s for s in container.streams.video if not _is_cover_picture(s)]
        if not streams:
            raise VideoError(name, "has no video stream")
        # The first stream of an animated AVIF is a still image.
        stream = next((s for s in streams if s.frames != 1), streams[0])
        if stream.frames == 1 and _is_image_file(container):
            raise VideoError(name, "a still image, not a video")
        if stream.codec_context is None:
            raise VideoError(name, "its video codec is unknown to FFmpeg")
        _check_size(name, stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.thread_count = 1
        yield container, stream


def check_video(path: str | os.PathLike, limits: Limits = NO_LIMITS) -> CheckedVideo:
    """Read a file through without decoding, and check that it is whole.

    A file counts as cut when FFmpeg marks a packet as incomplete, or when the packets end more than
    one and a half frames before the end its header declares (AVI, MP4/MOV, Matroska/WebM, FLV).
    Streams without such a declaration (MPEG-TS, MPEG-PS, raw) can be cut between two packets
    without anybody being able to tell.

    Args:
      path: A local video file.
      limits: What the file may cost.

    Returns:
      What was found.

    Raises:
      VideoError: As `open_video`, or the file is cut, damaged, without packets, or beyond the
        limits.
    """
    count = shown = 0
    first: int | None = None
    last_end: int | None = None
    with open_video(path, limits) as (container, stream):
        rate, codec = stream.average_rate, stream.codec_context.name
        for packet in demux(path, container, stream, limits):
            count += 1
            shown += not packet.is_discard
            check_count(path, shown, limits)
            start = packet.pts if packet.pts is not None else packet.dts
            if start is not None:
                first = start if first is None else min(first, start)
                end = start + (packet.duration or 0)
                last_end = end if last_end is None else max(last_end, end)
        if not shown:
            raise VideoError(path, "its video stream holds no packets; is it cut?")
        declared = _declared_end(container, stream)
        time_base = stream.time_base
        if declared and rate and time_base and last_end is not None and first is not None:
            seconds = last_end * time_base
            if stream.duration is not None and stream.frames:
                seconds = max(seconds, (last_end - first) * time_base)
            if count < (stream.frames or count + 1) and seconds + 3 / (2 * rate) < declared:
                raise VideoError(
                    path,
                    f"cut: it holds {float(seconds):.2f} s ({count} frames) of the "
                    f"{float(declared):.2f} s that its header declares",
                )
    return CheckedVideo(shown, float(rate) if rate else 0.0, codec)


def demux(
    path: str | os.PathLike,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits = NO_LIMITS,
) -> Iterator[av.Packet]:
    """Read a stream's packets that hold anything, in decoding order.

    Args:
      path: The file, for messages.
      container: From `open_video`.
      stream: From `open_video`.
      limits: What the file may cost.

    Yields:
      The packets.

    Raises:
      VideoError: A packet is cut or damaged, the file cannot be read to its end, or it takes too
        long.
    """
    number = 0
    clock = _Clock(path, limits)
    try:
        for packet in container.demux(stream):
            clock.check()
            if not packet.size:
                continue
            number += 1
            if packet.is_corrupt:
                raise VideoError(path, f"cut or damaged at packet {number} of the video stream")
            yield packet
    except (av.FFmpegError, EOFError) as error:
        raise VideoError(path, f"cannot be read to its end ({short_reason(error)})") from error


def decode_frames(
    path: str | os.PathLike,
    options: dict[str, str] | None = None,
    limits: Limits = NO_LIMITS,
) -> Iterator[av.VideoFrame]:
    """Decode a file's first video stream in display order.

    Args:
      path: A local video file.
      options: Options for FFmpeg's decoder, for example `{'flags2': '+export_mvs'}`.
      limits: What the file may cost.

    Yields:
      Every frame, at least one.

    Raises:
      VideoError: As `open_video`, or a packet is cut or damaged, no frame could be decoded, or the
        file is beyond the limits.
    """
    frames = 0
    with open_video(path, limits) as (container, stream):
        packets = demux(path, container, stream, limits)
        for frame in decode_packets(path, stream, packets, options, limits):
            frames += 1
            yield frame
        if not frames:
            raise VideoError(path, "no frame could be decoded")


def decode_packets(
    path: str | os.PathLike,
    stream: av.VideoStream,
    packets: Iterable[av.Packet],
    options: dict[str, str] | None = None,
    limits: Limits = NO_LIMITS,
) -> Iterator[av.VideoFrame]:
    """Decode packets that follow one another, to the last frame.

    To decode others afterwards, call `stream.codec_context.flush_buffers()` first.

    Args:
      path: The file, for messages.
      stream: From `open_video`.
      packets: Packets of the stream, in decoding order.
      options: Options for FFmpeg's decoder; only those of a stream's first call count.
      limits: What the file may cost.

    Yields:
      Every frame, in display order.

    Raises:
      VideoError: A packet is damaged, or the file is beyond the limits.
    """
    context = stream.codec_context
    if not context.is_open:
        context.options = (options or {}) | _decoder_limits(limits)
    clock = _Clock(path, limits)
    number = frames = 0
    try:
        for packet in _ended(packets):
            number += packet is not None
            for frame in context.decode(packet):
                clock.check()
                frames += 1
                _check_size(path, frame.width, frame.height, limits)
                check_count(path, frames, limits)
                yield frame
    except (av.FFmpegError, EOFError) as error:
        raise VideoError(path, f"damaged at packet {number} ({short_reason(error)})") from error


class _Clock:
    """Says when a file has taken too long."""

    def __init__(self, path: str | os.PathLike, limits: Limits):
        self._path = path
        self._seconds = limits.max_seconds
        self._start = time.monotonic()

    def check(self) -> None:
        if self._seconds is not None and time.monotonic() - self._start > self._seconds:
            raise VideoError(self._path, f"takes longer than max_seconds={self._seconds:g}")


def _ended(packets: Iterable[av.Packet]) -> Iterator[av.Packet | None]:
    """Add the None that makes a decoder give its last frames."""
    yield from packets
    yield None


def _decoder_limits(limits: Limits) -> dict[str, str]:
    # Somewhat looser, so that what is only a little too large is refused by `_check_size`, whose
    # message says more than "invalid argument".
    return {} if limits.max_pixels is None else {"max_pixels": str(4 * limits.max_pixels)}


def check_count(path: str | os.PathLike, num_frames: int, limits: Limits) -> None:
    """Check a number of frames against the limits.

    Raises:
      VideoError: It is beyond them.
    """
    if limits.max_frames is not None and num_frames > limits.max_frames:
        raise VideoError(path, f"has more than {limits.max_frames} frames (max_frames); cut it")


def _check_size(path: str | os.PathLike, width: int, height: int, limits: Limits) -> None:
    if limits.max_pixels is not None and width * height > limits.max_pixels:
        raise VideoError(
            path, f"its picture of {width}x{height} has more than max_pixels={limits.max_pixels}"
        )


def _declared_end(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Fraction | None:
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


def _is_image_file(container: av.container.InputContainer) -> bool:
    """Return whether a file is of a format for images, which may hold several."""
    brands = container.metadata.get("major_brand", "")
    brands += container.metadata.get("compatible_brands", "")
    parts = {brands[i : i + 4] for i in range(0, len(brands), 4)}
    return container.format.name == "gif" or bool(parts & _IMAGE_BRANDS)


def _is_cover_picture(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def short_reason(error: BaseException) -> str:
    """Return what FFmpeg or the system says, in a few words."""
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__
