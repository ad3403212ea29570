"""Open a video file, check that it is whole, and decode it frame by frame (PyAV).

Everything that can be wrong with a file becomes a `VideoError` that names the file and the reason.
"""

import array
import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.container
import numpy as np
from av.sidedata.sidedata import SideData, SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import PictureType

from moclip_jax.input_pipeline.video.limits import (
    NO_LIMITS,
    Clock,
    Limits,
    VideoError,
    check_corrupt,
    check_count,
    check_encrypted,
    check_size,
    decoder_limits,
)
from moclip_jax.input_pipeline.video.times import (
    declared_end,
    lacks_presentation_times,
    note_decoding_times,
)

# What FFmpeg can open as "video" although it is text, a still image or a list of other files.
_NOT_VIDEO_FORMATS = frozenset(
    {"tty", "image2", "concat", "hls", "dash", "imf", "webm_dash_manifest", "bin", "idf", "xbin"}
    | {"ico", "adf"}
)
# Brands of HEIF files (HEIC, AVIF), which FFmpeg demuxes like MP4.
_IMAGE_BRANDS = frozenset({"avif", "avis", "heic", "heix", "heim", "heis", "mif1", "msf1"})
# Pixels that are stretched more than this are no format, but damage.
_LARGEST_PIXEL_ASPECT = 16

_PICTURE_TYPES = {PictureType.I: "I", PictureType.P: "P", PictureType.B: "B"}


@dataclasses.dataclass(frozen=True)
class CheckedVideo:
    """What a file's container says about its video stream.

    Attributes:
      num_packets: Packets that the container does not mark as hidden, at least 1. For nearly every
        file this is the number of frames; the decoder has the last word.
      fps: Average frames a second by the packets' time stamps, `(n - 1) / (last - first)`; what the
        container declares where that is unknown (a single packet), and 0 where it does not.
      codec: FFmpeg's name of the decoder.
      pixel_aspect: Width of a pixel over its height, as it is to be shown.
    """

    num_packets: int
    fps: float
    codec: str = ""
    pixel_aspect: Fraction = Fraction(1)


def picture_type(frame: av.VideoFrame) -> str:
    """Return 'I', 'P', 'B', or '?' for any other type FFmpeg knows."""
    return _PICTURE_TYPES.get(PictureType(frame.pict_type), "?")


def frame_side_data(frame: av.VideoFrame, name: str) -> SideData | None:
    """Return one kind of a frame's side data.

    Not by `frame.side_data`: the frame keeps what that gives, which keeps the frame, so that its
    pixels stay in memory until Python's garbage collector runs, about a hundred frames later. Each
    new frame is then written to new memory, which takes longer than reading its vectors.

    Args:
      name: FFmpeg's name, for example 'MOTION_VECTORS'.

    Returns:
      A buffer in the frame's memory, which it keeps; None if the frame has none of this kind.
    """
    try:
        container = SideDataContainer(frame)  # type: ignore[call-arg]
    except ValueError:
        # FFmpeg knows more types (EXIF, views of spatial video) than PyAV has names for.
        SideDataType._missing_ = classmethod(_unnamed_type)  # type: ignore[assignment]
        container = SideDataContainer(frame)  # type: ignore[call-arg]
    return container.get(name)


def _unnamed_type(types: type[SideDataType], value: object) -> SideDataType:
    """Return a member of PyAV's enumeration for a type that it does not list."""
    unnamed: Any = object.__new__(types)
    unnamed._name_, unnamed._value_ = f"UNNAMED_{value}", value
    return unnamed


@contextlib.contextmanager
def open_video(
    path: str | os.PathLike, limits: Limits = NO_LIMITS
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file's first video stream for one-thread decoding.

    One thread, because frame-threaded decoding does not export the same motion vectors in every
    frame. Where a file has several video streams it is the first that is not a cover picture, nor
    a single frame if another is not.

    Raises:
      VideoError: The file is absent, empty, not a video, a still image (also HEIC, AVIF, ICO and
        GIF of one frame), has no video stream, or its size or its frame's size is beyond the
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
    # FFmpeg decodes a little while it opens a file; a huge frame must not be allocated there.
    options = decoder_limits(limits)
    try:
        # The `file:` protocol, because FFmpeg would take a name such as "a:b.avi" for an address.
        container = av.open(f"file:{name}", metadata_errors="replace", options=options)
    except PermissionError as error:
        raise VideoError(name, "no permission to read it") from error
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
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
        check_size(name, stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.thread_count = 1
        yield container, stream


def check_video(path: str | os.PathLike, limits: Limits = NO_LIMITS) -> CheckedVideo:
    """Read a file through without decoding, and check that it is whole.

    A file counts as cut when FFmpeg marks a packet as incomplete, or when the packets end before
    the end its header declares (AVI, MP4/MOV, Matroska/WebM, FLV) by more than one and a half times
    the longest time between two of them. Streams without such a declaration (MPEG-TS, MPEG-PS, raw)
    can be cut between two packets undetected.

    Raises:
      VideoError: As `open_video`, or the file is cut, damaged, without packets, or beyond the
        limits.
    """
    count = 0
    last_end: int | None = None
    starts = array.array("q")  # Of the packets that are shown.
    with open_video(path, limits) as (container, stream):
        rate, codec, time_base = stream.average_rate, stream.codec_context.name, stream.time_base
        without_times = lacks_presentation_times(container, stream)
        shown, last_dts, runs_backwards = 0, None, False
        for packet in demux(path, container, stream, limits):
            count += 1
            if packet.dts is not None:
                runs_backwards |= last_dts is not None and packet.dts < last_dts
                last_dts = packet.dts
            shown += not packet.is_discard
            check_count(path, shown, limits)
            start = packet.dts if packet.pts is None or without_times else packet.pts
            if start is not None:
                starts.extend([] if packet.is_discard else [start])
                end = start + (packet.duration or 0)
                last_end = end if last_end is None else max(last_end, end)
        if not shown:
            raise VideoError(path, "its video stream holds no packets; is it cut?")
        ordered = np.sort(np.frombuffer(starts, np.int64)) if starts else np.zeros(1, np.int64)
        longest = Fraction(0) if rate is None else 1 / rate
        known = len(starts) == shown > 1 and not runs_backwards
        if known and time_base and ordered[-1] > ordered[0]:
            rate = (shown - 1) / (int(ordered[-1] - ordered[0]) * time_base)
            longest = int(np.diff(ordered).max()) * time_base
        declared = declared_end(container, stream)
        if declared and longest and time_base and last_end is not None:
            seconds = last_end * time_base
            if stream.duration is not None and stream.frames:
                seconds = max(seconds, (last_end - int(ordered[0])) * time_base)
            if count < (stream.frames or count + 1) and seconds + longest * 3 / 2 < declared:
                raise VideoError(
                    path,
                    f"cut: it holds {float(seconds):.2f} s ({count} frames) of the "
                    f"{float(declared):.2f} s that its header declares",
                )
        return CheckedVideo(shown, float(rate or 0), codec, pixel_aspect(path, stream))


def pixel_aspect(path: str | os.PathLike, stream: av.VideoStream) -> Fraction:
    """Return the width of a stream's pixels over their height, 1 where it does not say.

    Raises:
      VideoError: The pixels are stretched beyond reason.
    """
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if not 1 <= max(aspect, 1 / aspect) <= _LARGEST_PIXEL_ASPECT:
        raise VideoError(
            path,
            f"its pixels are {aspect.numerator}:{aspect.denominator}; at most "
            f"{_LARGEST_PIXEL_ASPECT}:1 is read",
        )
    return aspect


def demux(
    path: str | os.PathLike,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits = NO_LIMITS,
) -> Iterator[av.Packet]:
    """Read a stream's packets that hold anything, in decoding order.

    Raises:
      VideoError: A packet is cut, damaged or encrypted, the file cannot be read to its end, or it
        takes too long.
    """
    number = 0
    clock = Clock(path, limits)
    try:
        for packet in container.demux(stream):
            clock.check()
            if not packet.size:
                continue
            number += 1
            if packet.is_corrupt:
                raise VideoError(path, f"cut or damaged at packet {number} of the video stream")
            check_encrypted(path, packet, number)
            yield packet
    except VideoError:
        raise
    except (av.FFmpegError, EOFError, ValueError) as error:
        raise VideoError(path, f"cannot be read to its end ({short_reason(error)})") from error


def decode_frames(
    path: str | os.PathLike, options: dict[str, str] | None = None, limits: Limits = NO_LIMITS
) -> Iterator[av.VideoFrame]:
    """Decode a file's first video stream in display order.

    Yields:
      Every frame, at least one; `frame.time` is its presentation time in seconds, None where the
      stream carries no time stamps.

    Raises:
      VideoError: As `open_video`, or a packet is cut or damaged, no frame could be decoded, most of
        them are damaged, or the file is beyond the limits.
    """
    frames = corrupt = 0
    with open_video(path, limits) as (container, stream):
        packets = demux(path, container, stream, limits)
        stamps: collections.deque[int | None] = collections.deque()
        if lacks_presentation_times(container, stream):
            packets = note_decoding_times(packets, stamps)
        for frame in decode_packets(path, stream, packets, options, limits):
            frames += 1
            corrupt += frame.is_corrupt
            if stamps:
                # Frames are shown at the times that packets are decoded at, in order.
                frame.pts = stamps.popleft()
            yield frame
        if not frames:
            raise VideoError(path, "no frame could be decoded")
        check_corrupt(path, corrupt, frames)


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
      options: Options for FFmpeg's decoder; only those of a stream's first call count.

    Raises:
      VideoError: A packet is damaged, or the file is beyond the limits.
    """
    context = stream.codec_context
    if not context.is_open:
        context.options = (options or {}) | decoder_limits(limits)
    clock = Clock(path, limits)
    number = frames = 0
    try:
        for packet in _ended(packets):
            number += packet is not None
            for frame in context.decode(packet):
                clock.check()
                frames += 1
                # PyAV leaves it out of the frames that are decoded at the end.
                frame.time_base = stream.time_base
                check_size(path, frame.width, frame.height, limits)
                check_count(path, frames, limits)
                yield frame
    except VideoError:
        raise
    except (av.FFmpegError, EOFError, ValueError) as error:
        raise VideoError(path, f"damaged at packet {number} ({short_reason(error)})") from error


def _ended(packets: Iterable[av.Packet]) -> Iterator[av.Packet | None]:
    """Add the None that makes a decoder give its last frames."""
    yield from packets
    yield None


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
