"""The RGB frames of a video that CLIP sees: which ones, upright, in square pixels, as JPEG."""

import io
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from moclip_jax.input_pipeline.video.spec import VideoSpec


def frame_positions(num_frames: int, clip_frames: int) -> np.ndarray:
    """Return which frames are stored: the centres of `clip_frames` equal parts, and the middle.

    Returns int32 `[k]`, strictly increasing, `k <= clip_frames + 1`.
    """
    centres = ((np.arange(clip_frames) + 0.5) / clip_frames * num_frames).astype(np.int32)
    return np.unique(np.append(centres, np.int32(num_frames // 2)))


class FrameKeeper:
    """Keeps a few frames of a video as JPEG.

    Attributes:
      wanted: Their positions.
      jpegs: Those that came by, by their positions.
    """

    def __init__(self, num_frames: int, spec: VideoSpec):
        """Start with no frame."""
        self.wanted = frame_positions(num_frames, spec.clip_frames).tolist()
        self._spec = spec
        self._to_rgb = VideoReformatter()
        self.jpegs: dict[int, bytes] = {}

    def lacks(self, index: int) -> bool:
        """Return whether a frame is wanted and has not come by."""
        return index in self.wanted and index not in self.jpegs

    def keep(self, index: int, frame: av.VideoFrame, pixel_aspect: Fraction) -> None:
        """Store a frame, upright."""
        self.jpegs[index] = frame_jpeg(frame, self._spec, self._to_rgb, pixel_aspect)


def frame_jpeg(
    frame: av.VideoFrame,
    spec: VideoSpec,
    to_rgb: VideoReformatter | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> bytes:
    """Return a decoded frame as it is stored.

    Args:
      frame: Of any pixel format, upright.
      to_rgb: A converter to use again for frames of one size.
      pixel_aspect: Width of the upright frame's pixels over their height. The image has square
        pixels: it is as high as the frame, and as much wider or narrower.

    Returns:
      An RGB JPEG.
    """
    rgb = (to_rgb or VideoReformatter()).reformat(frame, format="rgb24", threads=1)
    image = Image.fromarray(rgb.to_ndarray())
    width, height = max(1, round(image.width * pixel_aspect)), image.height
    scale = min(1.0, spec.frame_size / min(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=spec.jpeg_quality)
    return buffer.getvalue()
