"""Decode only the groups of pictures that hold the frames one wants, up to the last of these.

The packets of a file are listed without decoding them; their time stamps say which frame of the
video each will be, and their key flags where decoding can start. That is certain for many files
and for many it is not: `UncertainOrderError` then says so, and one has to decode from the start.
"""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import av
from moclip_jax.input_pipeline.video.decode import (
    NO_LIMITS,
    Limits,
    check_count,
    decode_packets,
    demux,
    open_video,
    picture_type,
)

# Containers that give every frame a time stamp. (Raw streams do not, and ASF's are coarse.)
_TIMED_FORMATS = ("mov", "matroska", "avi", "flv", "mpegts", "mpeg")
# Decoders of which one packet gives one frame, but for the exceptions that are looked for below.
_CODECS = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "h263", "flv"}
    | {"h264"}
)
# The two that can code the fields of a picture apart, which may then come as two packets.
_MAY_SPLIT_FIELDS = frozenset({"h264", "mpeg2video"})
_PROGRESSIVE = 1  # FFmpeg's AV_FIELD_PROGRESSIVE.
# MPEG-4 marks a picture that is left out by a packet of at most so many bytes; no frame comes.
_LARGEST_EMPTY_PACKET = 10
# Packets are kept for decoding up to this size in all; a larger file is read twice.
_KEPT_BYTES = 64 * 2**20


class UncertainOrderError(Exception):
    """Which packet becomes which frame cannot be told without decoding all of them."""


@dataclasses.dataclass(frozen=True)
class _Listed:
    """What is known of a packet without decoding it."""

    time: int
    is_key: bool


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be decoded.

    Attributes:
      path: The file, for messages.
      times: Time stamps of all packets, in decoding order.
      runs: Positions of the packets that are needed.
      wanted: Positions of the frames wanted, in display order.
    """

    path: str | os.PathLike
    times: Sequence[int]
    runs: Sequence[range]
    wanted: frozenset[int]


def decode_needed(
    path: str | os.PathLike,
    frame_indices: Sequence[int],
    options: dict[str, str] | None = None,
    limits: Limits = NO_LIMITS,
    *,
    most: float = 1.0,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode the GOPs that hold some frames, as far as they are needed.

    The frames are those that decoding the whole file gives, in type, vectors and picture. Runs of
    GOPs each start with an I-frame.

    Args:
      path: A local video file.
      frame_indices: Frames wanted, in display order from 0.
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
        listed: list[_Listed] = []
        kept: list[av.Packet] = []
        size = 0
        for packet in demux(path, container, stream, limits):
            if packet.pts is None or packet.is_discard or packet.size <= _LARGEST_EMPTY_PACKET:
                raise UncertainOrderError
            listed.append(_Listed(packet.pts, packet.is_keyframe))
            size += packet.size
            if size <= _KEPT_BYTES:
                kept.append(packet)
        check_count(path, len(listed), limits)
        runs = _needed_runs(listed, frame_indices, context.has_b_frames)
        if sum(map(len, runs)) > most * len(listed):
            raise UncertainOrderError
        plan = _Plan(path, [packet.time for packet in listed], runs, frozenset(frame_indices))
        if len(kept) == len(listed):
            yield from _decode_runs(plan, stream, kept, options, limits)
            return
    if sum(map(len, runs)) > 0.8 * len(listed):
        raise UncertainOrderError  # Not worth reading the file twice.
    with open_video(path, limits) as (container, stream):
        packets = demux(path, container, stream, limits)
        yield from _decode_runs(plan, stream, packets, options, limits)


def _needed_runs(
    listed: Sequence[_Listed], frame_indices: Sequence[int], has_b_frames: bool
) -> list[range]:
    """Return runs of packet positions, apart from each other and in order."""
    times = sorted(packet.time for packet in listed)
    if not listed or not listed[0].is_key or len(set(times)) != len(times):
        raise UncertainOrderError
    in_order = all(one.time < two.time for one, two in itertools.pairwise(listed))
    if has_b_frames and in_order:
        # Either there are none after all, or the time stamps are those of decoding (H.264 in AVI).
        raise UncertainOrderError
    if any(not 0 <= index < len(times) for index in frame_indices):
        raise UncertainOrderError
    position_of = {packet.time: position for position, packet in enumerate(listed)}
    latest_before = [times[0] - 1, *itertools.accumulate((p.time for p in listed), max)]
    earliest_from = [*itertools.accumulate((p.time for p in reversed(listed)), min)][::-1]
    earliest_from.append(times[-1] + 1)
    keys = [position for position, packet in enumerate(listed) if packet.is_key]
    runs: list[range] = []
    for index in sorted(set(frame_indices)):
        time = times[index]
        before = bisect.bisect_right(keys, position_of[time]) - 1
        # A frame that is shown before its key frame also depends on the GOP before.
        while listed[keys[before]].time > time:
            before -= 1
            if before < 0:
                raise UncertainOrderError
        after = next((key for key in keys[before + 1 :] if listed[key].time > time), None)
        end = len(listed)
        if in_order:
            end = position_of[time] + 1  # It depends on nothing that comes later.
        elif after is not None:
            # With the frames that are decoded after the next key frame and shown before it.
            end = after + 1
            while end < len(listed) and listed[end].time < listed[after].time:
                end += 1
            if earliest_from[end] < listed[after].time:
                raise UncertainOrderError
        if latest_before[keys[before]] > listed[keys[before]].time:
            raise UncertainOrderError
        if runs and keys[before] <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(end, runs[-1].stop))
        else:
            runs.append(range(keys[before], end))
    return runs


def _decode_runs(
    plan: _Plan,
    stream: av.VideoStream,
    packets: Iterable[av.Packet],
    options: dict[str, str] | None,
    limits: Limits,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode runs of packets and check that each gives the frames its time stamps promise."""
    rank = {time: index for index, time in enumerate(sorted(plan.times))}
    remaining = iter(packets)
    position = 0
    for run in plan.runs:
        skipped = run.start - position
        chosen = [*itertools.islice(remaining, skipped, skipped + len(run))]
        position = run.stop
        first = plan.times[run.start]
        # Frames shown before the first depend on the GOP before, and are not needed.
        expected = sorted(rank[time] for time in plan.times[run.start : run.stop] if time >= first)
        last = max(plan.wanted.intersection(expected))
        number = 0
        for frame in decode_packets(plan.path, stream, chosen, options, limits):
            if frame.pts is not None and frame.pts < first:
                continue
            index = -1 if frame.pts is None else rank.get(frame.pts, -1)
            if number >= len(expected) or index != expected[number]:
                raise UncertainOrderError
            if not number and picture_type(frame) != "I":
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
        stream.codec_context.flush_buffers()
