"""Bring any video to the form that is stored: block displacements and a few RGB frames.

A file is decoded once (a few GOPs twice, where that is faster). Its motion is either that of the
canonical form: every frame goes, scaled, through FFmpeg's MPEG-4 Part 2 encoder and back through
its decoder, which exports the motion vectors; or the stream's own vectors are read on the way
(`VideoSpec.source`). A few chosen frames also become JPEG.
"""

import dataclasses
import io
import os
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from moclip_jax.input_pipeline.video.decode import (
    CheckedVideo,
    VideoError,
    check_video,
    decode_frames,
)
from moclip_jax.input_pipeline.video.motion_vectors import (
    CODECS_WITH_VECTORS,
    EXPORT_VECTORS,
    VECTORS_ONLY,
    BlockMotion,
    BlockMotionReader,
    NoVectorsError,
)
from moclip_jax.input_pipeline.video.orientation import Uprighter
from moclip_jax.input_pipeline.video.reencode import CanonicalEncoder, CanonicalStream
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed
from moclip_jax.input_pipeline.video.spec import VideoSpec
from PIL import Image

__all__ = [
    "Clip",
    "VideoError",
    "VideoSpec",
    "clip_from_frames",
    "read_clip",
    "reencode",
]

# Of the stream's own motion in memory; a record on disk can hold no more than twice that.
_LARGEST_MOTION = 2**30
# Share of a file's frames up to which those that its RGB frames need are decoded apart: a pass over
# all frames that gives vectors alone saves more than that, against one that computes all pictures.
_FEW_FRAMES = 0.1


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video in the form that the pipeline stores.

    Attributes:
      displacements: int16 `[n, gh, gw, 2]`, (x, y) of `src - dst` in pixels of the coded picture,
        on its 8-pixel grid: `gh = ceil(height / 8)`, `gw = ceil(width / 8)`.
      is_intra: bool `[n]`, True where the coded frame is an I-frame.
      frames: JPEG bytes of `k` RGB frames in the source's own aspect ratio, as they are shown.
      frame_indices: int32 `[k]`, strictly increasing, the position of each of `frames`.
      num_frames: Number of frames `n`.
      fps: Frames a second as the source declares; 0 where it does not.
      source: Where the motion comes from: 'reencode' (the coded picture is the canonical one) or
        'native' (it is the stream's own).
      height: Height of the coded picture in pixels.
      width: Width of the coded picture in pixels.
      orientation: How the coded picture is turned to be shown, 0 to 7, see
        `moclip_jax.input_pipeline.video.orientation`; 0 for canonical pictures, which are turned
        before encoding.
      is_bidirectional: bool `[n]`, True for B-frames; canonical streams have none.
      future: bool `[n, gh, gw]`, True where a B-frame's displacement points to the next I- or
        P-frame.
      lead: Frames of the motion before the first of `num_frames`, and not counted there: a window
        of a stream needs those since its I-frame, and maybe one after its end. 0 for a file.
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
    lead: int = 0

    @property
    def motion(self) -> BlockMotion:
        """The motion, which can accumulate itself."""
        names = [field.name for field in dataclasses.fields(BlockMotion)]
        return BlockMotion(**{name: getattr(self, name) for name in names})

    def with_frames(self, chosen: np.ndarray) -> "Clip":
        """Return the video with some of its RGB frames: bool `[k]`."""
        return dataclasses.replace(
            self,
            frames=[self.frames[position] for position in np.flatnonzero(chosen)],
            frame_indices=self.frame_indices[chosen],
        )

    def part(self, begin: int, end: int, chosen: np.ndarray) -> "Clip":
        """Return some consecutive frames as a video of their own.

        Their motion is that of the whole video if `begin` is an I-frame, or the video's beginning.

        Args:
          begin: First frame.
          end: Frame after the last.
          chosen: bool `[k]`, the RGB frames to keep, at least one. One from outside the part
            counts as its first or last frame.
        """
        stop = end
        if self.is_bidirectional[end - 1]:
            # The last B-frames also need the I- or P-frame shown after them.
            stop += int(np.argmax(np.append(~self.is_bidirectional[end:], True))) + 1
        kept = self.with_frames(chosen)
        return dataclasses.replace(
            kept,
            displacements=self.displacements[begin:stop],
            is_intra=self.is_intra[begin:stop],
            is_bidirectional=self.is_bidirectional[begin:stop],
            future=self.future[begin:stop],
            frame_indices=np.clip(kept.frame_indices - begin, 0, end - begin - 1).astype(np.int32),
            num_frames=end - begin,
        )

    def group_starts(self) -> np.ndarray:
        """Return int `[groups]`: frame 0 and the I-frames, where motion begins anew."""
        return np.unique(np.append(0, np.flatnonzero(self.is_intra)))


def reencode(path: str | os.PathLike, spec: VideoSpec) -> Iterator[bytes]:
    """Re-encode a video file to the canonical MPEG-4 Part 2 stream.

    `read_clip` is the way to use it; this is for looking at the stream itself.

    Args:
      path: A local video file.
      spec: The canonical form.

    Yields:
      One packet a frame. Joined, they are a raw MPEG-4 stream, FFmpeg's format 'm4v'.

    Raises:
      VideoError: The file is absent, empty, not a video, cut or damaged.
    """
    upright = Uprighter()
    encoder = CanonicalEncoder(spec)
    for picture in decode_frames(path, limits=spec.limits):
        yield from map(bytes, encoder.encode(_turned(path, upright, picture)))
    yield from map(bytes, encoder.end())


def read_clip(path: str | os.PathLike, spec: VideoSpec) -> Clip:
    """Bring a video file to the form that the pipeline stores.

    Args:
      path: A local video file of any format and codec that FFmpeg reads.
      spec: The canonical form.

    Returns:
      The prepared video.

    Raises:
      VideoError: The file is absent, empty, not a video, without a video stream, cut, damaged, or
        beyond the limits of `spec`; or its motion is to be the stream's own and it has none. The
        message names the file and the reason.
    """
    checked = check_video(path, spec.limits)
    native = spec.source == "native" or (
        spec.source == "auto" and checked.codec in CODECS_WITH_VECTORS
    )
    try:
        if native:
            try:
                return _read("native", path, spec, checked)
            except NoVectorsError:
                if spec.source == "native":
                    raise
        return _read("reencode", path, spec, checked)
    except av.FFmpegError as error:
        # Decoding names its own errors; what is left is a picture that cannot be converted.
        raise VideoError(path, f"its pictures cannot be converted ({error})") from error


def _read(source: str, path: str | os.PathLike, spec: VideoSpec, checked: CheckedVideo) -> Clip:
    num_frames = checked.num_packets
    while True:
        reader, keeper = BlockMotionReader(path), _FrameKeeper(num_frames, spec)
        if source == "reencode":
            _reencode(path, decode_frames(path, None, spec.limits), spec, reader, keeper)
        else:
            _read_native(path, spec, reader, keeper, num_frames == checked.num_packets)
        motion = reader.result()
        if reader.num_frames == num_frames or num_frames != checked.num_packets:
            break
        # Some good streams give more or fewer frames than packets (two fields a frame, hidden or
        # repeated frames), so the wrong RGB frames were picked; now the number is known.
        num_frames = reader.num_frames
    if source == "native" and motion.is_intra.all() and len(motion.is_intra) > 1:
        raise NoVectorsError(
            path,
            "all its frames are I-frames, which carry no motion; use the canonical form "
            "(VideoSpec.source='reencode' or 'auto')",
        )
    return _prepared(source, motion, keeper, reader.num_frames, checked.fps)


def clip_from_frames(frames: np.ndarray, spec: VideoSpec, fps: float) -> Clip:
    """Bring generated pictures to the form that the pipeline stores, by the same encoder.

    Pictures have no stream of their own: whatever `spec.source` is, they are encoded.

    Args:
      frames: uint8 `[n, h, w, 3]` RGB.
      spec: The canonical form.
      fps: Frames a second, stored as it is.

    Returns:
      The prepared video.

    Raises:
      ValueError: `frames` has another shape or dtype, or no frame.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}, must be uint8 [n, h, w, 3], n > 0"
        )
    pictures = (
        av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames
    )
    name = "generated pictures"
    reader, keeper = BlockMotionReader(name), _FrameKeeper(len(frames), spec)
    _reencode(name, pictures, spec, reader, keeper)
    return _prepared("reencode", reader.result(), keeper, len(frames), float(fps))


def frame_positions(num_frames: int, clip_frames: int) -> np.ndarray:
    """Return which frames are stored: the centres of `clip_frames` equal parts, and the middle.

    Args:
      num_frames: Frames of the video, at least 1.
      clip_frames: Number of parts, at least 1.

    Returns:
      int32 `[k]`, strictly increasing, `k <= clip_frames + 1`.
    """
    centres = ((np.arange(clip_frames) + 0.5) / clip_frames * num_frames).astype(np.int32)
    return np.unique(np.append(centres, np.int32(num_frames // 2)))


class _FrameKeeper:
    """Keeps a few frames of a video as JPEG."""

    def __init__(self, num_frames: int, spec: VideoSpec):
        self.wanted = frame_positions(num_frames, spec.clip_frames).tolist()
        self._spec = spec
        self._to_rgb = VideoReformatter()
        self.jpegs: dict[int, bytes] = {}

    def lacks(self, index: int) -> bool:
        return index in self.wanted and index not in self.jpegs

    def keep(self, index: int, picture: av.VideoFrame) -> None:
        self.jpegs[index] = frame_jpeg(picture, self._spec, self._to_rgb)


def _prepared(
    source: str, motion: BlockMotion, keeper: _FrameKeeper, num_frames: int, fps: float
) -> Clip:
    return Clip(
        **{field.name: getattr(motion, field.name) for field in dataclasses.fields(motion)},
        source=source,
        frames=list(keeper.jpegs.values()),
        frame_indices=np.array(list(keeper.jpegs), np.int32),
        num_frames=num_frames,
        fps=fps,
    )


def _read_native(
    path: str | os.PathLike,
    spec: VideoSpec,
    reader: BlockMotionReader,
    keeper: _FrameKeeper,
    may_seek: bool,
) -> None:
    """Take the stream's own motion vectors."""
    upright = Uprighter()
    options = EXPORT_VECTORS
    if may_seek and _keep_pictures(path, spec, keeper, upright):
        options = VECTORS_ONLY
    for index, picture in enumerate(decode_frames(path, options, spec.limits)):
        reader.add(picture)
        if reader.num_bytes > _LARGEST_MOTION:
            raise VideoError(
                path,
                f"its own motion takes more than {_LARGEST_MOTION} bytes from frame {index} on; "
                "cut it, or use the canonical form (VideoSpec.source='reencode')",
            )
        if keeper.lacks(index):
            keeper.keep(index, _turned(path, upright, picture))


def _keep_pictures(
    path: str | os.PathLike, spec: VideoSpec, keeper: _FrameKeeper, upright: Uprighter
) -> bool:
    """Decode the pictures alone, if their GOPs are few; say whether all are there."""
    try:
        needed = decode_needed(path, keeper.wanted, None, spec.limits, most=_FEW_FRAMES)
        for index, picture in needed:
            if keeper.lacks(index):
                keeper.keep(index, _turned(path, upright, picture))
    except (UncertainOrderError, VideoError):
        # Damage is found again, and told, when everything is decoded.
        keeper.jpegs.clear()
        return False
    return True


def _reencode(
    path: str | os.PathLike,
    pictures: Iterable[av.VideoFrame],
    spec: VideoSpec,
    reader: BlockMotionReader,
    keeper: _FrameKeeper,
) -> None:
    """Re-encode the pictures and take the motion vectors of that."""
    upright = Uprighter()
    canonical = CanonicalStream(spec)
    for index, picture in enumerate(pictures):
        picture = _turned(path, upright, picture)
        if keeper.lacks(index):
            keeper.keep(index, picture)
        for frame in canonical.add(picture):
            reader.add(frame)
    for frame in canonical.end():
        reader.add(frame)


def _turned(path: str | os.PathLike, upright: Uprighter, picture: av.VideoFrame) -> av.VideoFrame:
    try:
        return upright(picture)
    except ValueError as error:
        if isinstance(error, av.FFmpegError):
            raise
        raise VideoError(path, str(error)) from error


def frame_jpeg(
    picture: av.VideoFrame, spec: VideoSpec, to_rgb: VideoReformatter | None = None
) -> bytes:
    """Return a decoded picture as it is stored.

    Args:
      picture: Of any pixel format, upright.
      spec: Size and quality.
      to_rgb: A converter to use again for pictures of one size.

    Returns:
      An RGB JPEG.
    """
    rgb = (to_rgb or VideoReformatter()).reformat(picture, format="rgb24", threads=1)
    image = Image.fromarray(rgb.to_ndarray())
    scale = spec.frame_size / min(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=spec.jpeg_quality)
    return buffer.getvalue()
