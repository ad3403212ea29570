"""The canonical form: frames re-encoded by FFmpeg's MPEG-4 encoder, and the vectors of that."""

import os
from collections.abc import Sequence
from fractions import Fraction

import av
from av.codec.context import Flags
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.motion_vectors import VECTORS_ONLY
from moclip_jax.input_pipeline.video.orientation import Uprighter
from moclip_jax.input_pipeline.video.spec import VideoSpec

_QSCALE_TO_LAMBDA = 118  # FF_QP2LAMBDA, the unit of FFmpeg's `global_quality`.
# Constant, because the encoder needs a time base and motion does not depend on it, while MPEG-4
# rejects some of the frame rates that real files declare.
_ENCODER_RATE = Fraction(25)
_ENCODER_TIME_BASE = 1 / _ENCODER_RATE


class CanonicalStream:
    """Encodes frames in the canonical form and decodes the motion vectors of that."""

    def __init__(self, spec: VideoSpec):
        """Start a stream."""
        self._spec = spec
        self._encoder = CanonicalEncoder(spec)
        self._decoder = av.CodecContext.create("mpeg4", "r")
        self._decoder.thread_count = 1
        self._decoder.options = VECTORS_ONLY

    def add(self, picture: av.VideoFrame) -> list[av.VideoFrame]:
        """Take the next frame, upright; return the frames that are decoded by now, in order.

        Their vectors count; of the frame no more is computed than these need.
        """
        return self._decode(self._encoder.encode(picture))

    def end(self) -> list[av.VideoFrame]:
        """Return the last frames."""
        return self._decode([*self._encoder.end(), None])

    def _decode(self, packets: Sequence[av.Packet | None]) -> list[av.VideoFrame]:
        return [frame for packet in packets for frame in self._decoder.decode(packet)]


class CanonicalEncoder:
    """FFmpeg's MPEG-4 encoder with the canonical settings, behind a scaler."""

    def __init__(self, spec: VideoSpec):
        encoder = av.CodecContext.create("mpeg4", "w")
        encoder.width, encoder.height, encoder.pix_fmt = spec.width, spec.height, "yuv420p"
        encoder.time_base, encoder.framerate = _ENCODER_TIME_BASE, _ENCODER_RATE
        encoder.gop_size, encoder.max_b_frames, encoder.thread_count = spec.gop_size, 0, 1
        encoder.flags |= Flags.qscale
        encoder.global_quality = spec.qscale * _QSCALE_TO_LAMBDA
        self._encoder, self._spec = encoder, spec
        # One for the whole video: a frame's own `reformat` sets up tables again for every frame.
        self._scaler = VideoReformatter()
        self._count = 0

    def encode(self, picture: av.VideoFrame) -> list[av.Packet]:
        """Scale and encode the next frame, upright; return its packets."""
        frame = self._scaler.reformat(
            picture,
            self._spec.width,
            self._spec.height,
            "yuv420p",
            interpolation=Interpolation.BICUBIC,  # The default of `ffmpeg -vf scale`.
            threads=1,
        )
        # A picture of the canonical size and format is not copied, and is given back as it came.
        kept, time_base = (picture.pict_type, picture.pts), picture.time_base
        # The encoder decides: it would repeat the source's frame types if they were left in.
        frame.pict_type = PictureType.NONE
        frame.pts, frame.time_base = self._count, _ENCODER_TIME_BASE
        self._count += 1
        packets = self._encoder.encode(frame)
        picture.pict_type, picture.pts = kept
        if time_base is not None:  # PyAV cannot set it to unknown again.
            picture.time_base = time_base
        return packets

    def end(self) -> list[av.Packet]:
        """Return the last packets."""
        return self._encoder.encode(None)


def upright_picture(
    path: str | os.PathLike, upright: Uprighter, frame: av.VideoFrame
) -> av.VideoFrame:
    """Turn a file's frame as it is shown; a `VideoError` says why that cannot be."""
    try:
        return upright(frame)
    except ValueError as error:
        if isinstance(error, av.FFmpegError):
            raise
        raise VideoError(path, str(error)) from error
