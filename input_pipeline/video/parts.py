"""Read a long file part by part: each part is a clip of its own, and only some are in memory."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from moclip_jax.input_pipeline.video.accumulate import needed_frames
from moclip_jax.input_pipeline.video.block_motion import FrameBlocks, join_blocks
from moclip_jax.input_pipeline.video.clip import Clip
from moclip_jax.input_pipeline.video.coded_frames import CodedFrame, coded_frames
from moclip_jax.input_pipeline.video.decode import open_video, pixel_aspect
from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.orientation import shown_aspect
from moclip_jax.input_pipeline.video.rgb_frames import frame_jpeg
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.video.window_cutter import MAX_LEAD


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive frames of a video.

    Attributes:
      begin: The first, from which motion is accumulated.
      end: The frame after the last.
      rgb: RGB frames to keep, at least one, all of them inside.
    """

    begin: int
    end: int
    rgb: tuple[int, ...]


def read_parts(
    path: str | os.PathLike,
    spec: VideoSpec,
    outline: Clip,
    parts: Sequence[Part],
    wanted: Callable[[int], Iterable[int]],
) -> Iterator[Clip]:
    """Read parts of a file in one pass.

    Memory is that of the parts that overlap at a frame, and of a part the GOPs of the frames that
    are wanted, however long the file is.

    Args:
      path: A local video file.
      spec: The canonical form, and what the file may cost.
      outline: `Clip.outline` of the file, by `read_clip` with the same `spec`.
      parts: In order of `begin` and of `end`.
      wanted: As `read_clip`, for each part.

    Yields:
      The parts, each as soon as it is complete.

    Raises:
      VideoError: As `read_clip`, or the file has fewer frames than before.
    """
    with open_video(path, spec.limits) as (_, stream):
        aspect = pixel_aspect(path, stream)
    coming = collections.deque(parts)
    opened: collections.deque[_OpenPart] = collections.deque()
    for index, coded in enumerate(coded_frames(path, spec, outline.source)):
        while coming and coming[0].begin <= index:
            opened.append(_OpenPart(coming.popleft(), outline, wanted))
        if any(index in part.part.rgb for part in opened):
            jpeg = frame_jpeg(coded.picture, spec, None, shown_aspect(coded.frame, aspect))
        else:
            jpeg = b""
        for part in opened:
            part.add(index, coded, jpeg)
        while opened and opened[0].stop == index + 1:
            yield opened.popleft().clip()
    if opened or coming:
        raise VideoError(path, "has fewer frames than before; was it changed meanwhile?")


class _OpenPart:
    """A part whose frames are still coming.

    Attributes:
      part: Which frames.
      stop: After the last frame that its motion depends on.
    """

    def __init__(self, part: Part, outline: Clip, wanted: Callable[[int], Iterable[int]]):
        self.part, self._outline = part, outline
        self.stop = part.end
        if outline.is_bidirectional[part.end - 1]:
            # The last B-frames also need the I- or P-frame shown after them.
            after = outline.is_bidirectional[part.end : part.end + MAX_LEAD]
            self.stop += min(int(np.argmin(np.append(after, False))) + 1, len(after))
        inside = slice(part.begin, self.stop)
        self._is_intra = outline.is_intra[inside]
        self._is_bidirectional = outline.is_bidirectional[inside]
        # The frame before stands for an I-frame.
        frames = wanted(part.end - part.begin)
        chosen = {max(0, frame - before) for frame in frames for before in (0, 1)}
        self._kept = needed_frames(chosen, self._is_intra, self._is_bidirectional)
        self._blocks: list[FrameBlocks] = []
        self._jpegs: list[bytes] = []
        self._num_corrupt = 0

    def add(self, index: int, coded: CodedFrame, jpeg: bytes) -> None:
        if index in self.part.rgb:
            self._jpegs.append(jpeg)
        if self._kept[index - self.part.begin]:
            self._blocks.append(coded.blocks)
        self._num_corrupt += coded.frame.is_corrupt and index < self.part.end

    def clip(self) -> Clip:
        begin, end = self.part.begin, self.part.end
        times = self._outline.times[begin:end]
        motion = dataclasses.replace(
            join_blocks(self._blocks),
            is_intra=self._is_intra,
            is_bidirectional=self._is_bidirectional,
            kept=np.flatnonzero(self._kept),
        )
        return Clip(
            **vars(motion),
            frames=self._jpegs,
            frame_indices=np.array(self.part.rgb, np.int32) - np.int32(begin),
            num_frames=end - begin,
            fps=self._outline.fps,
            times=times - times[0],
            source=self._outline.source,
            num_corrupt=self._num_corrupt,
        )
