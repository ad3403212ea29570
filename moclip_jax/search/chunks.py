"""Cut a file or a stream into chunks, each with one picture, as it is decoded.

A chunk ends where the scene changes, activity rises or falls, or at a largest length
(`moclip_jax.codec.activity`). Its picture is the one in the middle of its accumulated activity.
Memory is that of one chunk and some pictures of it, however long the video is.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from moclip_jax.codec.activity import ActivityMeter, ChunkCutter
from moclip_jax.codec.frame import Frame
from moclip_jax.codec.reading import FrameClock
from moclip_jax.input_pipeline.video.block_motion import FrameBlocks, join_blocks
from moclip_jax.input_pipeline.video.clip import Clip
from moclip_jax.input_pipeline.video.coded_frames import CodedFrame, coded_frames
from moclip_jax.input_pipeline.video.decode import open_video, pixel_aspect
from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.orientation import shown_aspect
from moclip_jax.input_pipeline.video.rgb_frames import frame_jpeg
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.video.stream import named_errors, native_wanted, read_stream_frames
from moclip_jax.input_pipeline.video.window_cutter import MAX_LEAD

# Pictures of a chunk to choose from: of the last seconds every quarter of one, as a border may
# still be found there, and this many older ones.
_PICTURE_STEP_S, _RECENT_S, _OLDER_PICTURES = 0.25, 2.0, 8
# What a frame counts at least in the middle of a chunk's activity.
_LEAST_CHANGE = 1e-3


@dataclasses.dataclass(frozen=True)
class ChunkForm:
    """How chunks are made.

    Attributes:
      video: The canonical form, where motion comes from, and what a file may cost.
      longest_s: Largest length of a chunk in seconds.
      with_motion: Whether a chunk carries its motion, for a trained model.
    """

    video: VideoSpec
    longest_s: float = 10.0
    with_motion: bool = False


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a video.

    Attributes:
      start_s: Seconds since the first frame.
      end_s: Likewise; where the next chunk begins.
      picture_s: Time of the picture.
      jpeg: The picture, upright, in square pixels.
      activity: Mean share of the picture that changes from frame to frame, 0 to 1.
      num_frames: Its frames.
      num_corrupt: Of these, frames that the decoder marked as damaged.
      clip: Its motion and picture; None unless `ChunkForm.with_motion`.
    """

    start_s: float
    end_s: float
    picture_s: float
    jpeg: bytes
    activity: float
    num_frames: int
    num_corrupt: int
    clip: Clip | None


def read_chunks(
    path: str | os.PathLike, form: ChunkForm, cutter: ChunkCutter | None = None
) -> Iterator[Chunk]:
    """Read a file chunk by chunk.

    Args:
      path: A local video file.
      form: How chunks are made.
      cutter: Says where they end; None for the one of `form.longest_s`.

    Raises:
      VideoError: As `coded_frames`.
    """
    spec = form.video
    with open_video(path, spec.limits) as (_, stream):
        aspect = pixel_aspect(path, stream)
        clock = FrameClock(float(stream.average_rate or 0))
        native = native_wanted(path, spec, stream.codec_context.name)
    source = "native" if native else "reencode"
    maker = ChunkMaker(form, source, cutter)
    # Without a trained model the motion of B-frames, most of a file's, is not looked at.
    frames = coded_frames(path, spec, source, motion=form.with_motion)
    with named_errors(path):
        for coded in frames:
            shown = shown_aspect(coded.frame, aspect)
            yield from maker.add(coded, clock.time_s(coded.frame), shown)
        yield from maker.end(clock.end_s())


def read_stream_chunks(address: str, form: ChunkForm, timeout_s: float) -> Iterator[Chunk]:
    """Read a stream chunk by chunk, to its end.

    Times count from the first frame of the connection; they go on where a jump of the stream's
    own times begins another recording. Of a connection that is lost, all frames that came are in a
    chunk before the error is raised.

    Args:
      address: As `read_stream`.
      form: How chunks are made.
      timeout_s: Seconds to wait for data.

    Raises:
      VideoError: As `read_stream`.
    """
    maker, recording, offset, end = None, -1, 0.0, 0.0
    lost = None
    frames = read_stream_frames(address, form.video, timeout_s=timeout_s, motion=form.with_motion)
    try:
        with named_errors(address):
            for frame in frames:
                if frame.recording != recording:
                    if maker is not None:
                        yield from maker.end(end)
                    maker, recording = ChunkMaker(form, frame.source), frame.recording
                    offset = end - frame.time_s
                assert maker is not None
                end = offset + frame.time_s + frame.duration_s
                yield from maker.add(frame.coded, offset + frame.time_s, frame.pixel_aspect)
    except VideoError as error:
        lost = error
    if maker is not None:
        yield from maker.end(end)
    if lost is not None:
        raise lost


class ChunkMaker:
    """Makes chunks of the frames of one recording."""

    def __init__(self, form: ChunkForm, source: str, cutter: ChunkCutter | None = None):
        """Start before the first frame.

        Args:
          form: How chunks are made.
          source: Where the motion comes from, 'native' or 'reencode'.
          cutter: As `read_chunks`.
        """
        self._form, self._source = form, source
        self._meter = ActivityMeter()
        self._cutter = cutter or ChunkCutter(form.longest_s)
        self._count = self._begin = 0
        self._start = 0.0
        # Of each frame since the beginning of the chunk: time, change, damage.
        self._times: collections.deque[float] = collections.deque()
        self._changes: collections.deque[float] = collections.deque()
        self._corrupt: collections.deque[bool] = collections.deque()
        # Motion since the I-frame before that, if it is wanted.
        self._blocks: collections.deque[FrameBlocks] = collections.deque()
        self._first_block = 0
        self._pictures: list[tuple[int, float, av.VideoFrame, Fraction]] = []

    def add(self, coded: CodedFrame, time_s: float, aspect: Fraction) -> Iterator[Chunk]:
        """Take the next frame; yield the chunks that are known to be complete."""
        index = self._count
        self._count += 1
        if not index:
            self._start = time_s
        self._times.append(time_s)
        self._corrupt.append(bool(coded.frame.is_corrupt))
        if self._form.with_motion:
            self._blocks.append(coded.blocks)
        activity = self._meter.add(Frame.of(coded.coded, index, time_s), coded.frame)
        last = self._pictures[-1][1] if self._pictures else -1.0
        if not index or time_s >= last + _PICTURE_STEP_S or (activity and activity.is_cut):
            self._pictures.append((index, time_s, coded.picture, aspect))
            self._thin_pictures(time_s)
        if activity is not None:
            # B-frames change as much as the I- or P-frame after them.
            self._changes += [activity.change] * (len(self._times) - len(self._changes))
            for border, border_s in self._cutter.add(activity):
                if border > self._begin:
                    yield self._chunk(border, border_s)

    def end(self, end_s: float) -> Iterator[Chunk]:
        """Yield the last chunk, which ends at `end_s`."""
        if self._times:
            last = self._changes[-1] if self._changes else 0.0
            self._changes += [last] * (len(self._times) - len(self._changes))
            yield self._chunk(self._count, max(end_s, self._times[-1]))

    def _thin_pictures(self, now: float) -> None:
        older = sum(time < now - _RECENT_S for _, time, *_ in self._pictures)
        if older > _OLDER_PICTURES:
            self._pictures = self._pictures[:older:2] + self._pictures[older:]

    def _chunk(self, end: int, end_s: float) -> Chunk:
        """Return the frames before `end`, and begin the next chunk there."""
        count = end - self._begin
        times, changes = list(self._times)[:count], list(self._changes)[:count]
        sums = np.cumsum(np.array(changes) + _LEAST_CHANGE)
        middle = self._begin + int(np.searchsorted(sums, sums[-1] / 2))
        inside = [picture for picture in self._pictures if self._begin <= picture[0] < end]
        index, picture_s, picture, aspect = min(
            inside or self._pictures, key=lambda picture: abs(picture[0] - middle)
        )
        jpeg = frame_jpeg(picture, self._form.video, None, aspect)
        corrupt = sum(list(self._corrupt)[:count])
        clip = None
        if self._form.with_motion:
            position = min(max(index - self._begin, 0), count - 1)
            clip = Clip(
                **vars(join_blocks(list(self._blocks))),
                frames=[jpeg],
                frame_indices=np.array([position], np.int32),
                num_frames=count,
                fps=0.0,
                times=np.array(times) - times[0],
                source=self._source,
                lead=self._begin - self._first_block,
                num_corrupt=corrupt,
            )
        chunk = Chunk(
            self._start, end_s, picture_s, jpeg, float(np.mean(changes)), count, corrupt, clip
        )
        for _ in range(count):
            self._times.popleft()
            self._changes.popleft()
            self._corrupt.popleft()
        self._begin, self._start = end, end_s
        self._pictures = [p for p in self._pictures if p[0] >= end] or self._pictures[-1:]
        self._forget_motion()
        return chunk

    def _forget_motion(self) -> None:
        """Drop the motion before the I-frame at or before the beginning of the chunk."""
        if not self._blocks:
            return
        kinds = [blocks.picture_type for blocks in self._blocks]
        before = range(min(self._begin - self._first_block + 1, len(kinds)))
        start = max((i for i in before if kinds[i] == "I"), default=0)
        start = max(start, self._begin - self._first_block - MAX_LEAD)
        for _ in range(start):
            self._blocks.popleft()
        self._first_block += start
