"""Decode only the groups of pictures that hold the frames one wants, up to the last of these.

The packets of a file are listed without decoding them; their time stamps say which frame of the
video each will be, and their key flags where decoding can start. The decoder sees the first packet
before any other. That is certain for many files and for many it is not: `UncertainOrderError` then
says so, and one has to decode from the start.
"""

import array
import bisect
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import av
import numpy as np

from moclip_jax.input_pipeline.video.decode import (
    decode_packets,
    demux,
    open_video,
    picture_type,
)
from moclip_jax.input_pipeline.video.limits import NO_LIMITS, Limits, check_count

# Containers that give every frame a time stamp. (Raw streams do not, and ASF's are coarse.)
_TIMED_FORMATS = ("mov", "matroska", "avi", "flv", "mpegts", "mpeg")
# Decoders of which one packet gives one frame, but for the exceptions that are looked for below.
_CODECS = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "h263", "flv"}
    | {"h264"}
)
# The two that can code the fields of a frame apart, which may then come as two packets.
_MAY_SPLIT_FIELDS = frozenset({"h264", "mpeg2video"})
_PROGRESSIVE = 1  # FFmpeg's AV_FIELD_PROGRESSIVE.
# MPEG-4 marks a frame that is left out by a packet of at most so many bytes; no frame comes.
_LARGEST_EMPTY_PACKET = 10
# Before the units of H.264, MPEG-1, MPEG-2 and MPEG-4; the first byte after it says what they are.
_START_CODE = b"\0\0\1"
_PARAMETER_SETS = frozenset({7, 8, 13})  # SPS, PPS, SPS extension.
# Of the sequence, of its display, and matrices (MPEG-2); others belong to a single frame.
_SEQUENCE_EXTENSIONS = frozenset({1, 2, 3})
# They come before the first slice.
_HEADER_BYTES = 2**14
# Packets are kept for decoding up to this size in all; a larger file is read twice.
_KEPT_BYTES = 64 * 2**20


class UncertainOrderError(Exception):
    """Which packet becomes which frame cannot be known without decoding all of them."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be decoded.

    Attributes:
      path: The file, for messages.
      times: int64 `[packets]`, time stamps in decoding order.
      first: The first packet.
      runs: Positions of the packets that are needed.
      wanted: Positions of the frames wanted, in display order.
    """

    path: str | os.PathLike
    times: np.ndarray
    first: av.Packet
    runs: Sequence[range]
    wanted: frozenset[int]


def decode_needed(
    path: str | os.PathLike,
    frame_indices: Sequence[int] | Callable[[np.ndarray], Sequence[int]],
    options: dict[str, str] | None = None,
    limits: Limits = NO_LIMITS,
    *,
    most: float = 1.0,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode the GOPs that hold some frames, as far as they are needed.

    The frames are those that decoding the whole file gives, in type, vectors and pixels. Runs of
    GOPs each start with an I-frame.

    Args:
      path: A local video file.
      frame_indices: Frames wanted, in display order from 0; or a function that chooses them by
        the times of all frames, float64 `[n]` seconds since the first.
      options: Options for FFmpeg's decoder.
      limits: What the file may cost.
      most: Share of the frames that it is worth to decode.

    Yields:
      Position in the video and frame, in rising order: all wanted frames and those that they depend
      on; and if frames are not coded in the order they are shown in, the next I- or P-frame after
      each of them.

    Raises:
      UncertainOrderError: The file does not allow it, or it would not save anything. It may come
        after some frames, which are then worth nothing.
      VideoError: As `decode_frames`; damage in what is not decoded is not noticed.
    """
    with open_video(path, limits) as (container, stream):
        context = stream.codec_context
        if not container.format.name.startswith(_TIMED_FORMATS) or context.name not in _CODECS:
            raise UncertainOrderError
        if context.name in _MAY_SPLIT_FIELDS and context.field_order != _PROGRESSIVE:
            raise UncertainOrderError
        times, keys = array.array("q"), array.array("q")
        kept: list[av.Packet] = []
        headers = _Headers(context)
        size = 0
        for packet in demux(path, container, stream, limits):
            if packet.pts is None or packet.is_discard or packet.size <= _LARGEST_EMPTY_PACKET:
                raise UncertainOrderError
            if headers.change(packet):
                raise UncertainOrderError
            if packet.is_keyframe:
                keys.append(len(times))
            times.append(packet.pts)
            size += packet.size
            if size <= _KEPT_BYTES or not kept:
                kept.append(packet)
        num_packets = len(times)
        check_count(path, num_packets, limits)
        stamps = np.frombuffer(times, np.int64)
        if callable(frame_indices):
            since_first = np.sort(stamps) - stamps.min()
            frame_indices = frame_indices(since_first * float(stream.time_base or 0))
        runs = _needed_runs(stamps, keys, frame_indices, context.has_b_frames)
        if sum(map(len, runs)) > most * num_packets:
            raise UncertainOrderError
        plan = _Plan(path, stamps, kept[0], runs, frozenset(frame_indices))
        if len(kept) == num_packets:
            yield from _decode_runs(plan, stream, kept, options, limits)
            return
    if sum(map(len, runs)) > 0.8 * num_packets:
        raise UncertainOrderError  # Not worth reading the file twice.
    with open_video(path, limits) as (container, stream):
        packets = demux(path, container, stream, limits)
        yield from _decode_runs(plan, stream, packets, options, limits)


def _needed_runs(
    times: np.ndarray, keys: Sequence[int], frame_indices: Sequence[int], has_b_frames: bool
) -> list[range]:
    """Return runs of packet positions, apart from each other and in order.

    Args:
      times: int64 `[packets]`, time stamps in decoding order.
      keys: Positions of the key packets.
      frame_indices: Frames wanted, in display order.
      has_b_frames: Whether the stream says that frames are reordered.
    """
    num_packets = len(times)
    order = np.argsort(times, kind="stable")
    if not keys or keys[0] or (np.diff(times[order]) == 0).any():
        raise UncertainOrderError
    in_order = bool((np.diff(times) > 0).all())
    if has_b_frames and in_order:
        # Either there are none after all, or the time stamps are those of decoding (H.264 in AVI).
        raise UncertainOrderError
    if any(not 0 <= index < num_packets for index in frame_indices):
        raise UncertainOrderError
    latest_until = np.maximum.accumulate(times)
    earliest_from = np.minimum.accumulate(times[::-1])[::-1]
    runs: list[range] = []
    for index in sorted(set(frame_indices)):
        position = int(order[index])
        time = times[position]
        before = bisect.bisect_right(keys, position) - 1
        # A frame that is shown before its key frame also depends on the GOP before.
        while times[keys[before]] > time:
            before -= 1
            if before < 0:
                raise UncertainOrderError
        start = keys[before]
        after = next((key for key in keys[before + 1 :] if times[key] > time), None)
        end = num_packets
        if in_order:
            end = position + 1  # It depends on nothing that comes later.
        elif after is not None:
            # With the frames that are decoded after the next key frame and shown before it.
            end = after + 1
            while end < num_packets and times[end] < times[after]:
                end += 1
            if end < num_packets and earliest_from[end] < times[after]:
                raise UncertainOrderError
        if start and latest_until[start - 1] > times[start]:
            raise UncertainOrderError
        if runs and start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(end, runs[-1].stop))
        else:
            runs.append(range(start, end))
    return runs


class _Headers:
    """Says whether what decoding depends on besides the frames is the same in the whole file.

    Sequence headers and parameter sets may lie in the first packet alone, in all key packets, or
    beside the packets. Where they change on the way, a frame needs those that came last before it.
    """

    def __init__(self, context: av.VideoCodecContext):
        """Start before the first packet.

        Args:
          context: Of the stream.
        """
        extradata = context.extradata or b""
        self._codec = context.name
        # The beginning of an `avcC` box: NAL units then have their length before them.
        self._length_size = extradata[4] % 4 + 1 if extradata[:1] == b"\1" else 0
        self._first: list[bytes] | None = None

    def change(self, packet: av.Packet) -> bool:
        """Return whether a packet, the next of the file, brings other headers than the first."""
        if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
            return True
        data = bytes(memoryview(packet)[:_HEADER_BYTES])
        headers: list[bytes] = []
        if self._codec == "h264":
            headers = _h264_headers(data, self._length_size)
        elif self._codec.startswith("mpeg"):
            headers = _mpeg_headers(data, self._codec == "mpeg4")
        if self._first is None:
            self._first = headers
        return bool(headers) and headers != self._first


def _h264_headers(data: bytes, length_size: int) -> list[bytes]:
    """Return the parameter sets of an H.264 packet, whose units begin with their length or 001."""
    units = []
    if length_size:
        while len(data) > length_size:
            size = int.from_bytes(data[:length_size], "big")
            units.append(data[length_size : length_size + size])
            data = data[length_size + size :]
    else:
        units = [unit.rstrip(b"\0") for unit in data.split(_START_CODE)[1:]]
    return [unit for unit in units if unit and unit[0] & 31 in _PARAMETER_SETS]


def _mpeg_headers(data: bytes, is_part_2: bool) -> list[bytes]:
    """Return the sequence headers of an MPEG-4 Part 2 packet, or of one of MPEG-1 and MPEG-2."""

    def is_header(code: int, extension: int) -> bool:
        if is_part_2:
            return code in (0xB0, 0xB5) or 0x20 <= code < 0x30
        return code == 0xB3 or (code == 0xB5 and extension in _SEQUENCE_EXTENSIONS)

    units = (unit for unit in data.split(_START_CODE)[1:] if len(unit) > 1)
    return [unit.rstrip(b"\0") for unit in units if is_header(unit[0], unit[1] >> 4)]


def _decode_runs(
    plan: _Plan,
    stream: av.VideoStream,
    packets: Iterable[av.Packet],
    options: dict[str, str] | None,
    limits: Limits,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode runs of packets and check that each gives the frames its time stamps promise."""
    rank = np.sort(plan.times)
    context = stream.codec_context
    remaining = iter(packets)
    position = 0
    if plan.runs and plan.runs[0].start:
        # The first packet says what made the stream (x264 and DivX have bugs that decoders know),
        # and may hold headers that are nowhere else.
        for _ in decode_packets(plan.path, stream, [plan.first], options, limits):
            pass
        context.flush_buffers()
    for run in plan.runs:
        skipped = run.start - position
        chosen = [*itertools.islice(remaining, skipped, skipped + len(run))]
        position = run.stop
        times = plan.times[run.start : run.stop]
        first = times[0]
        # Frames shown before the first depend on the GOP before, and are not needed.
        expected = np.searchsorted(rank, np.sort(times[times >= first])).tolist()
        last = max(plan.wanted.intersection(expected))
        number = 0
        for frame in decode_packets(plan.path, stream, chosen, options, limits):
            if frame.pts is not None and frame.pts < first:
                continue
            if frame.is_corrupt or number >= len(expected):
                raise UncertainOrderError
            index = expected[number]
            if frame.pts != rank[index] or (not number and picture_type(frame) != "I"):
                raise UncertainOrderError
            number += 1
            yield index, frame
            if index >= last and picture_type(frame) != "B":
                break
        else:
            if number != len(expected):
                raise UncertainOrderError
            if run.stop < len(plan.times):
                # A B-frame after all, which may depend on what has not been decoded.
                raise UncertainOrderError
        context.flush_buffers()
