"""Frames of a video with their motion, one after the other: the stream's own or the canonical form.

`clip.py` collects what one network input needs of a whole file; this is for what goes on and on.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator

import av

from moclip_jax.input_pipeline.video.block_motion import FrameBlocks
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.motion_vectors import EXPORT_VECTORS, frame_blocks
from moclip_jax.input_pipeline.video.orientation import Uprighter
from moclip_jax.input_pipeline.video.reencode import CanonicalStream
from moclip_jax.input_pipeline.video.spec import VideoSpec


@dataclasses.dataclass(frozen=True)
class CodedFrame:
    """A frame and its motion.

    Attributes:
      frame: As it was decoded.
      picture: The same, upright.
      coded: The frame whose vectors are its motion: `frame`, or that of the canonical form.
    """

    frame: av.VideoFrame
    picture: av.VideoFrame
    coded: av.VideoFrame

    @functools.cached_property
    def blocks(self) -> FrameBlocks:
        """Its motion.

        Raises:
          ValueError: As `frame_blocks`; never, unless frames are read with `motion=False`.
        """
        return frame_blocks(self.coded)


class FrameCoder:
    """Gives decoded frames their motion."""

    def __init__(self, spec: VideoSpec, source: str, *, motion: bool = True):
        """Start before the first frame.

        Args:
          spec: The canonical form.
          source: 'native', of frames that were decoded with `EXPORT_VECTORS`, or 'reencode'.
          motion: Whether the motion of every frame is read; else when `CodedFrame.blocks` is first
            asked for.
        """
        self._motion = motion
        self._canonical = None if source == "native" else CanonicalStream(spec)
        self._upright = Uprighter()
        # The encoder may be some frames behind.
        self._waiting: collections.deque[tuple[av.VideoFrame, av.VideoFrame]] = collections.deque()

    def add(self, frame: av.VideoFrame) -> Iterator[CodedFrame]:
        """Take the next frame; yield those whose motion is there by now.

        Raises:
          ValueError: As `frame_blocks`.
        """
        picture = self._upright(frame)
        if self._canonical is None:
            yield self._read(CodedFrame(frame, picture, frame))
            return
        self._waiting.append((frame, picture))
        yield from self._paired(self._canonical.add(picture))

    def end(self) -> Iterator[CodedFrame]:
        """Yield the last frames."""
        if self._canonical is not None:
            yield from self._paired(self._canonical.end())

    def _paired(self, encoded: list[av.VideoFrame]) -> Iterator[CodedFrame]:
        for frame in encoded:
            yield self._read(CodedFrame(*self._waiting.popleft(), frame))

    def _read(self, coded: CodedFrame) -> CodedFrame:
        if self._motion:
            _ = coded.blocks
        return coded


def coded_frames(
    path: str | os.PathLike, spec: VideoSpec, source: str, *, motion: bool = True
) -> Iterator[CodedFrame]:
    """Read a file from its first frame to its last.

    Args:
      path: A local video file.
      spec: The canonical form, and what the file may cost.
      source: 'native' or 'reencode', as `Clip.source` of the file.
      motion: As `FrameCoder`.

    Yields:
      The frames, in display order.

    Raises:
      VideoError: As `decode_frames`, or a frame's motion cannot be read.
    """
    coder = FrameCoder(spec, source, motion=motion)
    options = EXPORT_VECTORS if source == "native" else None
    number = 0
    try:
        for frame in decode_frames(path, options, spec.limits):
            yield from coder.add(frame)
            number += 1
        yield from coder.end()
    except VideoError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(path, f"frame {number}: {error}") from error
