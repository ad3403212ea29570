"""What form videos are brought to, and what a file may cost."""

import dataclasses

from moclip_jax.input_pipeline.video.limits import Limits

SOURCES = ("reencode", "native", "auto")
"""Where motion may come from, see `VideoSpec.source`."""


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """How a video is brought to the canonical form, and what it may cost.

    Attributes:
      source: Where the motion comes from. 'reencode': from the canonical form, as in the published
        recipe. 'native': the stream's own vectors, at its own size and with its own GOPs. 'auto':
        the stream's own where its codec has any, else from the canonical form.
      width: Width of the re-encoded frame in pixels (the aspect ratio is not kept).
      height: Height of the re-encoded frame in pixels.
      qscale: Constant quantiser of the encoder, 1 (best) to 31. FFmpeg's own lower bound (qmin 2)
        stays in force, as it does in the command `ffmpeg -q:v 1` that the published recipe uses.
      gop_size: Frames from one I-frame to the next at most; the encoder adds one at a scene cut.
      clip_frames: RGB frames stored, at the centres of as many equal parts of the video; the middle
        frame, `num_frames // 2`, is always stored too.
      frame_size: Shorter side of the stored RGB frames in pixels; smaller ones are not enlarged.
      jpeg_quality: Pillow's JPEG quality of the stored RGB frames, 1 to 95.
      max_frames: A longer video is rejected; None for no limit.
      max_bytes: A larger file is rejected.
      max_pixels: A video of larger frames (width times height) is rejected.
      max_seconds: A video that takes longer to prepare is rejected; None for no limit. Looked at
        between two frames.
    """

    source: str = "reencode"
    width: int = 340
    height: int = 256
    qscale: int = 1
    gop_size: int = 12
    clip_frames: int = 8
    frame_size: int = 256
    jpeg_quality: int = 90
    max_frames: int | None = 10_000
    max_bytes: int = 4 * 2**30
    max_pixels: int = 8192 * 4608
    max_seconds: float | None = 600.0

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
            if field in ("max_frames", "max_seconds") and value is None:
                continue
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
