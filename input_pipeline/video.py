"""Bring any video to the form that is stored: block displacements and a few RGB frames.

A file is decoded once. Its motion is either that of the canonical form: every frame goes, scaled,
through FFmpeg's MPEG-4 Part 2 encoder and back through its decoder, which exports the motion
vectors; or the stream's own vectors are read on the way (`VideoSpec.source`). A few chosen frames
also become JPEG.
"""

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from input_pipeline.decoding import (
    CheckedVideo,
    Limits,
    VideoError,
    check_video,
    decode_frames,
)
from input_pipeline.motion_vectors import (
    CODECS_WITH_VECTORS,
    EXPORT_VECTORS,
    VECTORS_ONLY,
    BlockMotion,
    BlockMotionReader,
    NoVectorsError,
)
from input_pipeline.orientation import Uprighter

__all__ = [
    "PreparedVideo",
    "VideoError",
    "VideoSpec",
    "prepare_frames",
    "prepare_video",
    "reencode",
]

SOURCES = ("reencode", "native", "auto")
"""Where motion may come from, see `VideoSpec.source`."""

_QSCALE_TO_LAMBDA = 118  # FF_QP2LAMBDA, the unit of FFmpeg's `global_quality`.
# Constant, because the encoder needs a time base and motion does not depend on it, while MPEG-4
# refuses some of the frame rates that real files declare.
_ENCODER_RATE = Fraction(25)
_ENCODER_TIME_BASE = 1 / _ENCODER_RATE
# Of the stream's own motion in memory; a record on disk can hold no more than twice that.
_LARGEST_MOTION = 2**30


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """How a video is brought to the canonical form, and what it may cost.

    Attributes:
      source: Where the motion comes from. 'reencode': from the canonical form, as in the published
        recipe. 'native': the stream's own vectors, at its own size and with its own GOPs. 'auto':
        the stream's own where its codec has any, else from the canonical form.
      width: Width of the re-encoded picture in pixels (the aspect ratio is not kept).
      height: Height of the re-encoded picture in pixels.
      qscale: Constant quantiser of the encoder, 1 (best) to 31. FFmpeg's own lower bound (qmin 2)
        stays in force, as it does in the command `ffmpeg -q:v 1` that the published recipe uses.
      gop_size: Frames from one I-frame to the next at most; the encoder adds one at a scene cut.
      clip_frames: RGB frames stored, at the centres of as many equal parts of the video; the middle
        frame, `num_frames // 2`, is always stored too.
      frame_size: Shorter side of the stored RGB frames in pixels; smaller ones are not enlarged.
      jpeg_quality: Pillow's JPEG quality of the stored RGB frames, 1 to 95.
      max_frames: A longer video is refused.
      max_bytes: A larger file is refused.
      max_pixels: A video of larger pictures (width times height) is refused.
      max_seconds: A video that takes longer to prepare is refused. Looked at between two frames.
    """

    source: str = "reencode"
    width: int = 340
    height: int = 256
    qscale: int = 1
    gop_size: int = 12
    clip_frames: int = 8
    frame_size: int = 256
    jpeg_quality: int = 90
    max_frames: int = 10_000
    max_bytes: int = 4 * 2**30
    max_pixels: int = 8192 * 4608
    max_seconds: float = 600.0

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(
                f"VideoSpec.source is {self.source!r}, must be one of {', '.join(SOURCES)}"
            )
        for field, low, high in (
            ("width", 16, 8192),
            ("height", 16, 8192),
            ("qscale", 1, 31),
            ("gop_size", 1, 600),
            ("clip_frames", 1, 1000),
            ("frame_size", 16, 8192),
            ("jpeg_quality", 1, 95),
            ("max_frames", 1, 1_000_000),
            ("max_bytes", 1, 2**50),
            ("max_pixels", 256, 2**31 - 1),
            ("max_seconds", 0.001, 1e6),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise ValueError(f"VideoSpec.{field} is {value}, must be from {low} to {high}")
        if self.width % 2 or self.height % 2:
            raise ValueError(
                f"VideoSpec.width and height are {self.width}x{self.height}, must be even"
            )

    @property
    def limits(self) -> Limits:
        """What a file may cost."""
        return Limits(
            max_bytes=self.max_bytes,
            max_frames=self.max_frames,
            max_pixels=self.max_pixels,
            max_seconds=self.max_seconds,
        )


@dataclasses.dataclass(frozen=True)
class PreparedVideo:
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
        `input_pipeline.orientation`; 0 for canonical pictures, which are turned before encoding.
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

    def with_frames(self, chosen: np.ndarray) -> "PreparedVideo":
        """Return the video with some of its RGB frames: bool `[k]`."""
        return dataclasses.replace(
            self,
            frames=[self.frames[position] for position in np.flatnonzero(chosen)],
            frame_indices=self.frame_indices[chosen],
        )

    def part(self, begin: int, end: int, chosen: np.ndarray) -> "PreparedVideo":
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

    `prepare_video` is the way to use it; this is for looking at the stream itself.

    Args:
      path: A local video file.
      spec: The canonical form.

    Yields:
      One packet a frame. Joined, they are a raw MPEG-4 stream, FFmpeg's format 'm4v'.

    Raises:
      VideoError: The file is absent, empty, not a video, cut or damaged.
    """
    upright = Uprighter()
    encoder = _CanonicalEncoder(spec)
    for picture in decode_frames(path, limits=spec.limits):
        yield from map(bytes, encoder.encode(_turned(path, upright, picture)))
    yield from map(bytes, encoder.end())


def prepare_video(path: str | os.PathLike, spec: VideoSpec) -> PreparedVideo:
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
                return _prepare_file(_native, path, spec, checked)
            except NoVectorsError:
                if spec.source == "native":
                    raise
        return _prepare_file(_reencoded, path, spec, checked)
    except av.FFmpegError as error:
        # Decoding names its own errors; what is left is a picture that cannot be converted.
        raise VideoError(path, f"its pictures cannot be converted ({error})") from error


def _prepare_file(
    prepare: Callable[[str | os.PathLike, Iterable[av.VideoFrame], int, VideoSpec], PreparedVideo],
    path: str | os.PathLike,
    spec: VideoSpec,
    checked: CheckedVideo,
) -> PreparedVideo:
    options = EXPORT_VECTORS if prepare is _native else None
    prepared = prepare(path, decode_frames(path, options, spec.limits), checked.num_packets, spec)
    if prepared.num_frames != checked.num_packets:
        # Some good streams give more or fewer frames than packets (two fields a frame, hidden or
        # repeated frames), so the wrong RGB frames were picked; now the number is known.
        frames = decode_frames(path, options, spec.limits)
        prepared = prepare(path, frames, prepared.num_frames, spec)
    return dataclasses.replace(prepared, fps=checked.fps)


def prepare_frames(frames: np.ndarray, spec: VideoSpec, fps: float) -> PreparedVideo:
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
    prepared = _reencoded("generated pictures", pictures, len(frames), spec)
    return dataclasses.replace(prepared, fps=float(fps))


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

    def __init__(self, expected: int, spec: VideoSpec):
        self._wanted = frozenset(frame_positions(expected, spec.clip_frames).tolist())
        self._spec = spec
        self._to_rgb = VideoReformatter()
        self.jpegs: dict[int, bytes] = {}

    def wants(self, index: int) -> bool:
        return index in self._wanted

    def keep(self, index: int, picture: av.VideoFrame) -> None:
        self.jpegs[index] = frame_jpeg(picture, self._spec, self._to_rgb)


def _prepared(source: str, motion: BlockMotion, keeper: _FrameKeeper) -> PreparedVideo:
    return PreparedVideo(
        **{field.name: getattr(motion, field.name) for field in dataclasses.fields(motion)},
        source=source,
        frames=list(keeper.jpegs.values()),
        frame_indices=np.array(list(keeper.jpegs), np.int32),
        num_frames=len(motion.displacements),
        fps=0.0,
    )


def _native(
    path: str | os.PathLike, pictures: Iterable[av.VideoFrame], expected: int, spec: VideoSpec
) -> PreparedVideo:
    """Take the motion vectors that came with the pictures."""
    keeper = _FrameKeeper(expected, spec)
    reader = BlockMotionReader(path)
    upright = Uprighter()
    for index, picture in enumerate(pictures):
        reader.add(picture)
        if reader.num_bytes > _LARGEST_MOTION:
            raise VideoError(
                path,
                f"its own motion takes more than {_LARGEST_MOTION} bytes from frame {index} on; "
                "cut it, or use the canonical form (VideoSpec.source='reencode')",
            )
        if keeper.wants(index):
            keeper.keep(index, _turned(path, upright, picture))
    motion = reader.result()
    if motion.is_intra.all() and len(motion.is_intra) > 1:
        raise NoVectorsError(
            path,
            "all its frames are I-frames, which carry no motion; use the canonical form "
            "(VideoSpec.source='reencode' or 'auto')",
        )
    return _prepared("native", motion, keeper)


class CanonicalStream:
    """Encodes pictures in the canonical form and decodes the motion vectors of that."""

    def __init__(self, spec: VideoSpec):
        """Start a stream.

        Args:
          spec: The canonical form.
        """
        self._spec = spec
        self._encoder = _CanonicalEncoder(spec)
        self._decoder = av.CodecContext.create("mpeg4", "r")
        self._decoder.thread_count = 1
        self._decoder.options = VECTORS_ONLY

    def add(self, picture: av.VideoFrame) -> list[av.VideoFrame]:
        """Take the next picture, upright; return the frames that are decoded by now, in order.

        Their vectors count; of the picture no more is computed than these need.
        """
        return self._decode(self._encoder.encode(picture))

    def end(self) -> list[av.VideoFrame]:
        """Return the last frames."""
        return self._decode([*self._encoder.end(), None])

    def _decode(self, packets: Sequence[av.Packet | None]) -> list[av.VideoFrame]:
        return [frame for packet in packets for frame in self._decoder.decode(packet)]


def _reencoded(
    path: str | os.PathLike, pictures: Iterable[av.VideoFrame], expected: int, spec: VideoSpec
) -> PreparedVideo:
    """Encode the pictures anew and take the motion vectors of that."""
    keeper = _FrameKeeper(expected, spec)
    upright = Uprighter()
    canonical = CanonicalStream(spec)
    reader = BlockMotionReader(path)
    for index, picture in enumerate(pictures):
        picture = _turned(path, upright, picture)
        if keeper.wants(index):
            keeper.keep(index, picture)
        for frame in canonical.add(picture):
            reader.add(frame)
    for frame in canonical.end():
        reader.add(frame)
    return _prepared("reencode", reader.result(), keeper)


def _turned(path: str | os.PathLike, upright: Uprighter, picture: av.VideoFrame) -> av.VideoFrame:
    try:
        return upright(picture)
    except ValueError as error:
        if isinstance(error, av.FFmpegError):
            raise
        raise VideoError(path, str(error)) from error


class _CanonicalEncoder:
    """FFmpeg's MPEG-4 encoder with the canonical settings, behind a scaler."""

    def __init__(self, spec: VideoSpec):
        encoder = av.CodecContext.create("mpeg4", "w")
        encoder.width, encoder.height, encoder.pix_fmt = spec.width, spec.height, "yuv420p"
        encoder.time_base, encoder.framerate = _ENCODER_TIME_BASE, _ENCODER_RATE
        encoder.gop_size, encoder.max_b_frames, encoder.thread_count = spec.gop_size, 0, 1
        encoder.flags |= Flags.qscale
        encoder.global_quality = spec.qscale * _QSCALE_TO_LAMBDA
        self._encoder, self._spec = encoder, spec
        # One for the whole video: a frame's own `reformat` sets up tables anew for every frame.
        self._scaler = VideoReformatter()
        self._count = 0

    def encode(self, picture: av.VideoFrame) -> list[av.Packet]:
        frame = self._scaler.reformat(
            picture,
            self._spec.width,
            self._spec.height,
            "yuv420p",
            interpolation=Interpolation.BICUBIC,  # The default of `ffmpeg -vf scale`.
            threads=1,
        )
        # The encoder decides: it would repeat the source's picture types if they were left in.
        frame.pict_type = PictureType.NONE
        frame.pts, frame.time_base = self._count, _ENCODER_TIME_BASE
        self._count += 1
        return self._encoder.encode(frame)

    def end(self) -> list[av.Packet]:
        return self._encoder.encode(None)


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
