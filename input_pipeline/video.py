"""Bring any video to the canonical form: MPEG-4 block displacements and a few RGB frames.

A file is decoded once. Every frame goes, scaled, through FFmpeg's MPEG-4 Part 2 encoder and back
through its decoder, which exports the motion vectors; a few chosen frames also become JPEG.
"""

import dataclasses
import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from input_pipeline.decoding import VideoError, check_video, decode_frames, picture_type
from input_pipeline.motion_vectors import VECTORS_ONLY, frame_vectors, paint_displacements

__all__ = [
    "PreparedVideo",
    "VideoError",
    "VideoSpec",
    "prepare_frames",
    "prepare_video",
    "reencode",
]

_QSCALE_TO_LAMBDA = 118  # FF_QP2LAMBDA, the unit of FFmpeg's `global_quality`.
# Constant, because the encoder needs a time base and motion does not depend on it, while MPEG-4
# refuses some of the frame rates that real files declare.
_ENCODER_RATE = Fraction(25)


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """How a video is brought to the canonical form.

    Attributes:
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
    """

    width: int = 340
    height: int = 256
    qscale: int = 1
    gop_size: int = 12
    clip_frames: int = 8
    frame_size: int = 256
    jpeg_quality: int = 90
    max_frames: int = 10_000

    def __post_init__(self):
        for field, low, high in (
            ("width", 16, 8192),
            ("height", 16, 8192),
            ("qscale", 1, 31),
            ("gop_size", 1, 600),
            ("clip_frames", 1, 1000),
            ("frame_size", 16, 8192),
            ("jpeg_quality", 1, 95),
            ("max_frames", 1, 1_000_000),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise ValueError(f"VideoSpec.{field} is {value}, must be from {low} to {high}")
        if self.width % 2 or self.height % 2:
            raise ValueError(
                f"VideoSpec.width and height are {self.width}x{self.height}, must be even"
            )


@dataclasses.dataclass(frozen=True)
class PreparedVideo:
    """A video in the form that the pipeline stores.

    Attributes:
      displacements: int16 `[n, gh, gw, 2]`, (x, y) of `src - dst` in pixels of the canonical
        picture, on its 8-pixel grid: `gh = ceil(height / 8)`, `gw = ceil(width / 8)`.
      is_intra: bool `[n]`, True where the canonical frame is an I-frame.
      frames: JPEG bytes of `k` RGB frames in the source's own aspect ratio.
      frame_indices: int32 `[k]`, strictly increasing, the position of each of `frames`.
      num_frames: Number of frames `n`.
      fps: Frames a second as the source declares; 0 where it does not.
    """

    displacements: np.ndarray
    is_intra: np.ndarray
    frames: list[bytes]
    frame_indices: np.ndarray
    num_frames: int
    fps: float


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
    for packet in _encode(decode_frames(path), spec):
        yield bytes(packet)


def prepare_video(path: str | os.PathLike, spec: VideoSpec) -> PreparedVideo:
    """Bring a video file to the form that the pipeline stores.

    Args:
      path: A local video file of any format and codec that FFmpeg reads.
      spec: The canonical form.

    Returns:
      The prepared video.

    Raises:
      VideoError: The file is absent, empty, not a video, without a video stream, cut, damaged, or
        longer than `spec.max_frames`; the message names the file and the reason.
    """
    checked = check_video(path, spec.max_frames)
    try:
        prepared = _prepare(decode_frames(path), checked.num_packets, spec)
        if prepared.num_frames != checked.num_packets:
            # Some good streams give more or fewer frames than packets (two fields a frame, hidden
            # or repeated frames), so the wrong RGB frames were picked; now the number is known.
            prepared = _prepare(decode_frames(path), prepared.num_frames, spec)
    except av.FFmpegError as error:
        # Decoding names its own errors; what is left is a picture that cannot be converted.
        raise VideoError(path, f"its pictures cannot be re-encoded ({error})") from error
    return dataclasses.replace(prepared, fps=checked.fps)


def prepare_frames(frames: np.ndarray, spec: VideoSpec, fps: float) -> PreparedVideo:
    """Bring generated pictures to the form that the pipeline stores, by the same encoder.

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
    return dataclasses.replace(_prepare(pictures, len(frames), spec), fps=float(fps))


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


def _prepare(pictures: Iterable[av.VideoFrame], expected: int, spec: VideoSpec) -> PreparedVideo:
    wanted = frozenset(frame_positions(expected, spec.clip_frames).tolist())
    jpegs: dict[int, bytes] = {}
    to_rgb = VideoReformatter()

    def tap() -> Iterator[av.VideoFrame]:
        for index, picture in enumerate(pictures):
            if index in wanted:
                jpegs[index] = _jpeg(to_rgb.reformat(picture, format="rgb24", threads=1), spec)
            yield picture

    decoder = av.CodecContext.create("mpeg4", "r")
    decoder.thread_count = 1
    decoder.options = VECTORS_ONLY
    displacements: list[np.ndarray] = []
    is_intra: list[bool] = []

    def read(packet: av.Packet | None) -> None:
        for frame in decoder.decode(packet):
            vectors = frame_vectors(frame)
            displacements.append(paint_displacements(vectors, spec.height, spec.width))
            is_intra.append(picture_type(frame) == "I")

    for packet in _encode(tap(), spec):
        read(packet)
    read(None)
    return PreparedVideo(
        displacements=np.stack(displacements),
        is_intra=np.array(is_intra),
        frames=list(jpegs.values()),
        frame_indices=np.array(list(jpegs), np.int32),
        num_frames=len(displacements),
        fps=0.0,
    )


def _encode(pictures: Iterable[av.VideoFrame], spec: VideoSpec) -> Iterator[av.Packet]:
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = spec.width, spec.height, "yuv420p"
    encoder.time_base, encoder.framerate = 1 / _ENCODER_RATE, _ENCODER_RATE
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = spec.gop_size, 0, 1
    encoder.flags |= Flags.qscale
    encoder.global_quality = spec.qscale * _QSCALE_TO_LAMBDA
    # One for the whole video: a frame's own `reformat` sets up tables anew for every frame.
    scaler = VideoReformatter()
    for index, picture in enumerate(pictures):
        frame = scaler.reformat(
            picture,
            spec.width,
            spec.height,
            "yuv420p",
            interpolation=Interpolation.BICUBIC,  # The default of `ffmpeg -vf scale`.
            threads=1,
        )
        # The encoder decides: it would repeat the source's picture types if they were left in.
        frame.pict_type = PictureType.NONE
        frame.pts, frame.time_base = index, 1 / _ENCODER_RATE
        yield from encoder.encode(frame)
    yield from encoder.encode(None)


def _jpeg(picture: av.VideoFrame, spec: VideoSpec) -> bytes:
    image = Image.fromarray(picture.to_ndarray())
    scale = spec.frame_size / min(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=spec.jpeg_quality)
    return buffer.getvalue()
