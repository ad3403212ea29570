"""Bring any video to the form that is stored: block displacements and a few RGB frames.

A file is decoded once (a few GOPs twice, where that is faster). Its motion is either that of the
canonical form: every frame goes, scaled, through FFmpeg's MPEG-4 Part 2 encoder and back through
its decoder, which exports the motion vectors; or the stream's own vectors are read on the way
(`VideoSpec.source`). A few chosen frames also become JPEG.
"""

import array
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import av
import numpy as np

from moclip_jax.input_pipeline.video.block_motion import BlockMotion
from moclip_jax.input_pipeline.video.decode import CheckedVideo, check_video, decode_frames
from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.motion_vectors import (
    CODECS_WITH_VECTORS,
    EXPORT_VECTORS,
    VECTORS_ONLY,
    BlockMotionReader,
    NoVectorsError,
)
from moclip_jax.input_pipeline.video.orientation import Uprighter, shown_aspect
from moclip_jax.input_pipeline.video.reencode import CanonicalStream, upright_picture
from moclip_jax.input_pipeline.video.rgb_frames import FrameKeeper, frame_jpeg, frame_positions
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.video.times import frame_times

__all__ = [
    "Clip",
    "VideoError",
    "VideoSpec",
    "clip_from_frames",
    "frame_jpeg",
    "frame_positions",
    "read_clip",
]

# Of a motion that is read whole, for training: a record on disk can hold no more than twice that.
_LARGEST_MOTION = 2**30
# Share of a file's frames up to which those that its RGB frames need are decoded apart: a pass over
# all frames that gives vectors alone saves more than that, against one that computes all pixels.
_FEW_FRAMES = 0.1


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video in the form that the pipeline stores.

    Attributes:
      displacements: int16 `[n, gh, gw, 2]`, (x, y) of `src - dst` in pixels of the coded frame,
        on its 8-pixel grid: `gh = ceil(height / 8)`, `gw = ceil(width / 8)`.
      is_intra: bool `[n]`, True where the coded frame is an I-frame.
      frames: JPEG bytes of `k` RGB frames as they are shown: upright, in square pixels.
      frame_indices: int32 `[k]`, strictly increasing, the position of each of `frames`.
      num_frames: Number of frames `n`.
      fps: Frames a second on average, by `times`; of a single frame what the source declares, 0
        where it does not.
      source: Where the motion comes from: 'reencode' (the coded frame is the canonical one) or
        'native' (it is the stream's own).
      height: Height of the coded frame in pixels.
      width: Width of the coded frame in pixels.
      orientation: How the coded frame is turned to be shown, 0 to 7, see
        `orientation.py`; 0 for canonical frames, which are turned before encoding.
      is_bidirectional: bool `[n]`, True for B-frames; canonical streams have none.
      future: bool `[n, gh, gw]`, True where a B-frame's displacement points to the next I- or
        P-frame.
      times: float64 `[num_frames]`, when each frame is shown, in seconds since the first.
      lead: Frames of the motion before the first of `num_frames`, and not counted there: a window
        of a stream needs those since its I-frame, and maybe one after its end. 0 for a file.
      kept: int `[m]`, frames whose motion was read, where `displacements` and `future` hold no
        others (see `read_clip`); None for all.
      num_corrupt: Frames that the decoder marked as damaged.
    """

    displacements: np.ndarray
    is_intra: np.ndarray
    frames: list[bytes]
    frame_indices: np.ndarray
    num_frames: int
    fps: float
    source: str
    height: int
    width: int
    orientation: int
    is_bidirectional: np.ndarray
    future: np.ndarray
    times: np.ndarray
    lead: int = 0
    kept: np.ndarray | None = None
    num_corrupt: int = 0

    @property
    def motion(self) -> BlockMotion:
        """The motion, which can accumulate itself."""
        names = [field.name for field in dataclasses.fields(BlockMotion)]
        return BlockMotion(**{name: getattr(self, name) for name in names})

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which is shown for `1 / fps`."""
        return float(self.times[-1]) + (1 / self.fps if self.fps else 0.0)

    def frame_at(self, seconds: float) -> int:
        """Return the position of the frame that is shown so long after the first."""
        # To the microsecond, so that a frame at 1.2 s is shown at 3 * 0.4 s.
        return max(int(np.searchsorted(self.times, seconds + 1e-6, "right")) - 1, 0)

    @property
    def warning(self) -> str:
        """What is wrong with the video although it could be read, in a sentence, or ''."""
        if not self.num_corrupt:
            return ""
        return f"{self.num_corrupt} of its {self.num_frames} frames are damaged"

    @property
    def outline(self) -> "Clip":
        """The video without its motion and RGB frames: types and times of the frames."""
        return dataclasses.replace(
            self,
            displacements=self.displacements[:0],
            future=self.future[:0],
            kept=np.zeros(0, np.int64),
            frames=[],
            frame_indices=self.frame_indices[:0],
        )

    def with_frames(self, chosen: np.ndarray) -> "Clip":
        """Return the video with some of its RGB frames: bool `[k]`."""
        return dataclasses.replace(
            self,
            frames=[self.frames[position] for position in np.flatnonzero(chosen)],
            frame_indices=self.frame_indices[chosen],
        )

    def part(self, begin: int, end: int, chosen: np.ndarray) -> "Clip":
        """Return the frames from `begin` to before `end` as a video of their own.

        Their motion is that of the whole video if `begin` is an I-frame, or the video's beginning.
        Of the RGB frames those in `chosen`, bool `[k]`, are kept, at least one; one from outside
        the part counts as its first or last frame.
        """
        stop = end
        if self.is_bidirectional[end - 1]:
            # The last B-frames also need the I- or P-frame shown after them.
            stop += int(np.argmax(np.append(~self.is_bidirectional[end:], True))) + 1
        first, last, kept = begin, stop, self.kept
        if kept is not None:
            first, last = np.searchsorted(kept, (begin, stop)).tolist()
            kept = kept[first:last] - begin
        shown = self.with_frames(chosen)
        return dataclasses.replace(
            shown,
            displacements=self.displacements[first:last],
            is_intra=self.is_intra[begin:stop],
            is_bidirectional=self.is_bidirectional[begin:stop],
            future=self.future[first:last],
            frame_indices=np.clip(shown.frame_indices - begin, 0, end - begin - 1).astype(np.int32),
            num_frames=end - begin,
            times=self.times[begin:end] - self.times[begin],
            kept=kept,
        )

    def group_starts(self) -> np.ndarray:
        """Return int `[groups]`: frame 0 and the I-frames, where motion starts again."""
        return np.unique(np.append(0, np.flatnonzero(self.is_intra)))


def read_clip(
    path: str | os.PathLike, spec: VideoSpec, wanted: Callable[[int], Iterable[int]] | None = None
) -> Clip:
    """Bring a video file to the form that the pipeline stores.

    Args:
      wanted: From the number of frames to those whose motion will be requested; the frame before
        each of them is there too, because it stands for an I-frame, which has none. Memory then
        does not grow with the length of the video. None for all frames.

    Returns:
      The video; with `wanted`, it is `Clip.kept` that says whose motion is there.

    Raises:
      VideoError: The file is absent, empty, not a video, without a video stream, cut, damaged,
        encrypted, or beyond the limits of `spec`; or its motion is to be the stream's own and it
        has none. The message names the file and the reason.
    """
    checked = check_video(path, spec.limits)
    native = spec.source == "native" or (
        spec.source == "auto" and checked.codec in CODECS_WITH_VECTORS
    )
    try:
        if native:
            try:
                return _read("native", path, spec, checked, wanted)
            except NoVectorsError:
                if spec.source == "native":
                    raise
        return _read("reencode", path, spec, checked, wanted)
    except av.FFmpegError as error:
        # Decoding names its own errors; what is left is a frame that cannot be converted.
        raise VideoError(path, f"its frames cannot be converted ({error})") from error


def _read(
    source: str,
    path: str | os.PathLike,
    spec: VideoSpec,
    checked: CheckedVideo,
    wanted: Callable[[int], Iterable[int]] | None,
) -> Clip:
    num_frames = checked.num_packets
    while True:
        chosen = None
        if wanted is not None:
            chosen = {max(0, frame - before) for frame in wanted(num_frames) for before in (0, 1)}
        reading = _Reading(path, spec, checked, num_frames, chosen)
        if source == "reencode":
            _reencode(reading.frames(), reading)
        else:
            _read_native(reading, num_frames == checked.num_packets)
        motion = reading.motion.result()
        if reading.motion.num_frames == num_frames or num_frames != checked.num_packets:
            break
        # Some good streams give more or fewer frames than packets (two fields a frame, hidden or
        # repeated frames), so the wrong RGB frames were picked; now the number is known.
        num_frames = reading.motion.num_frames
    if source == "native" and motion.is_intra.all() and len(motion.is_intra) > 1:
        raise NoVectorsError(
            path,
            "all its frames are I-frames, which carry no motion; use the canonical form "
            "(VideoSpec.source='reencode' or 'auto')",
        )
    return _clip(source, motion, reading)


def clip_from_frames(frames: np.ndarray, spec: VideoSpec, fps: float) -> Clip:
    """Bring generated frames to the form that the pipeline stores, always by the encoder.

    Args:
      frames: uint8 `[n, h, w, 3]` RGB.
      fps: Frames a second, stored as it is.

    Raises:
      ValueError: `frames` has another shape or dtype, or no frame.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}, must be uint8 [n, h, w, 3], n > 0"
        )
    images = (
        av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames
    )
    name, checked = "generated frames", CheckedVideo(len(frames), float(fps))
    reading = _Reading(name, spec, checked, len(frames))
    _reencode(images, reading)
    return _clip("reencode", reading.motion.result(), reading)


class _Reading:
    """One pass over the frames of a video, and what it gathers; a missing time stamp is NaN."""

    def __init__(
        self,
        path: str | os.PathLike,
        spec: VideoSpec,
        checked: CheckedVideo,
        num_frames: int,
        wanted: Iterable[int] | None = None,
    ):
        self.path, self.spec, self.checked, self.wanted = path, spec, checked, wanted
        self.motion, self.rgb = BlockMotionReader(path, wanted), FrameKeeper(num_frames, spec)
        self.stamps = array.array("d")
        self.time_base: Fraction | None = None
        self.num_corrupt = 0
        self._upright = Uprighter()

    def frames(self, options: dict[str, str] | None = None) -> Iterator[av.VideoFrame]:
        """Decode the file."""
        for frame in decode_frames(self.path, options, self.spec.limits):
            self.stamps.append(math.nan if frame.pts is None else frame.pts)
            self.time_base = frame.time_base
            self.num_corrupt += frame.is_corrupt
            yield frame

    def upright(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Turn a frame as it is shown."""
        return upright_picture(self.path, self._upright, frame)

    def add_motion(self, frame: av.VideoFrame) -> None:
        """Gather the motion of the next frame."""
        self.motion.add(frame)
        if self.wanted is None and self.motion.num_bytes > _LARGEST_MOTION:
            raise VideoError(
                self.path,
                f"the motion of its first {self.motion.num_frames} frames takes more than "
                f"{_LARGEST_MOTION} bytes, too much for training; cut it",
            )

    def keep_rgb(self, index: int, frame: av.VideoFrame) -> None:
        """Store a decoded frame if it is one of the RGB frames that are wanted."""
        if self.rgb.lacks(index):
            shown = self.upright(frame)
            self.rgb.keep(index, shown, shown_aspect(frame, self.checked.pixel_aspect))


def _clip(source: str, motion: BlockMotion, reading: _Reading) -> Clip:
    num_frames, rate = reading.motion.num_frames, reading.checked.fps
    stamps = reading.stamps or [math.nan] * num_frames
    times, fps = frame_times(stamps, reading.time_base, rate)
    return Clip(
        **{field.name: getattr(motion, field.name) for field in dataclasses.fields(motion)},
        source=source,
        frames=list(reading.rgb.jpegs.values()),
        frame_indices=np.array(list(reading.rgb.jpegs), np.int32),
        num_frames=num_frames,
        fps=fps,
        times=times,
        num_corrupt=reading.num_corrupt,
    )


def _read_native(reading: _Reading, may_seek: bool) -> None:
    """Take the stream's own motion vectors."""
    options = EXPORT_VECTORS
    if may_seek and _seek_rgb_frames(reading):
        options = VECTORS_ONLY
    for index, frame in enumerate(reading.frames(options)):
        reading.add_motion(frame)
        reading.keep_rgb(index, frame)


def _seek_rgb_frames(reading: _Reading) -> bool:
    """Decode the RGB frames alone, if their GOPs are few; return whether all are there."""
    path, limits = reading.path, reading.spec.limits
    try:
        for index, frame in decode_needed(path, reading.rgb.wanted, None, limits, most=_FEW_FRAMES):
            reading.keep_rgb(index, frame)
    except (UncertainOrderError, VideoError):
        # Damage is found again, and reported, when everything is decoded.
        reading.rgb.jpegs.clear()
        return False
    return True


def _reencode(frames: Iterable[av.VideoFrame], reading: _Reading) -> None:
    """Re-encode frames and take the motion vectors of that."""
    canonical = CanonicalStream(reading.spec)
    for index, frame in enumerate(frames):
        reading.keep_rgb(index, frame)
        for encoded in canonical.add(reading.upright(frame)):
            reading.add_motion(encoded)
    for encoded in canonical.end():
        reading.add_motion(encoded)
