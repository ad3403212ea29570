"""What the networks see of a clip: motion fields and RGB frames (NumPy and Pillow).

This is the definition, for training, evaluation and `predict` alike. It imports no TensorFlow.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from moclip_jax.input_pipeline import sampling
from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.input_pipeline.motion_fields import Crop, CropResizer, byte_fields, ten_crops
from moclip_jax.input_pipeline.sampling import num_images
from moclip_jax.input_pipeline.video.clip import Clip
from moclip_jax.input_pipeline.video.spec import VideoSpec

__all__ = [
    "GridViews",
    "MotionViews",
    "images",
    "num_images",
    "test_view",
    "training_crop",
    "training_view",
]

# Of a file that is no part of a data set, so that it always gets the same label. It is the number
# that TensorFlow drew for it when exports were first made.
_DRAW_OF_A_FILE = 2797976754


@dataclasses.dataclass(frozen=True)
class MotionViews:
    """How motion is sampled, scaled and cropped.

    Attributes:
      num_segments: Frames of a view, one from each equal part of the video.
      image_size: Side in pixels of what the network sees.
      resize_size: Side in pixels that a field is resized to before a test crop.
      scales: Shares of the field's side that a training crop takes, each in (0, 1].
      flip_probability: Probability of a training view's horizontal flip.
      crops: Test views of each frame: 1 (the middle) or 10 (corners and middle, each also flipped).
      bound: Motion in pixels of the canonical form that reaches the ends of the byte range.
      accumulated: Motion since the GOP's I-frame; False for the frame's own against the one before.
    """

    num_segments: int = 3
    image_size: int = 224
    resize_size: int = 256
    scales: tuple[float, ...] = (1.0, 0.875, 0.75)
    flip_probability: float = 0.5
    crops: int = 1
    bound: float = 20.0
    accumulated: bool = True

    def __post_init__(self):
        # Config files give lists; a frozen, hashable value keeps traced functions reusable.
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.num_segments < 1:
            raise ValueError(f"MotionViews.num_segments is {self.num_segments}, least is 1")
        if not 1 <= self.image_size <= self.resize_size:
            raise ValueError(
                f"MotionViews.image_size is {self.image_size}, must be from 1 to resize_size, "
                f"{self.resize_size}"
            )
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"MotionViews.scales are {self.scales}, each must lie in (0, 1]")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"MotionViews.flip_probability is {self.flip_probability}")
        if self.crops not in (1, 10):
            raise ValueError(f"MotionViews.crops is {self.crops}, must be 1 or 10")
        if self.bound <= 0:
            raise ValueError(f"MotionViews.bound is {self.bound}, must be above 0")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a test view: `(crops, S, image_size, image_size, 2)`."""
        return self.crops, self.num_segments, self.image_size, self.image_size, 2

    def test_frames(self, num_frames: int) -> np.ndarray:
        """Return the frames that a test view of a video of `num_frames` shows, int64 `[S]`."""
        return sampling.test_segments(num_frames, self.num_segments)

    def needed_frames(self, num_frames: int) -> np.ndarray:
        """Return the frames of `test_frames` in a row."""
        return self.test_frames(num_frames)

    def training_frames(self, num_frames: int, draws: sampling.Draws) -> np.ndarray:
        """Return the frames that a training view shows, int64 `[S]`."""
        return sampling.training_segments(num_frames, self.num_segments, draws.segments)


@dataclasses.dataclass(frozen=True)
class GridViews:
    """How block motion is sampled: windows of consecutive frames, as the codec stores it.

    Attributes:
      num_segments: Windows of a view, evenly spaced; in a short video they overlap.
      window: Consecutive frames of a window.
      rows: Rows of blocks of the canonical form, `BLOCK` pixels each.
      columns: Columns of blocks.
    """

    BLOCK: ClassVar[int] = 16

    num_segments: int
    window: int
    rows: int
    columns: int
    crops: int = dataclasses.field(default=1, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a view: `(1, S, window, rows, columns, 2)`."""
        return 1, self.num_segments, self.window, self.rows, self.columns, 2

    def test_frames(self, num_frames: int) -> np.ndarray:
        """Return the frames that a test view shows, int64 `[S, window]`."""
        return sampling.test_windows(num_frames, self.num_segments, self.window)

    def needed_frames(self, num_frames: int) -> np.ndarray:
        """Return the frames of `test_frames` in a row, each once."""
        return np.unique(self.test_frames(num_frames))


def test_view(clip: Clip, views: MotionViews | GridViews, spec: VideoSpec) -> np.ndarray:
    """Return the test views of a clip's motion.

    Args:
      clip: From `read_clip`, `clip_from_frames`, a stream or a record.

    Returns:
      uint8 `[crops, num_segments, image_size, image_size, 2]`, (x, y); no motion is 128. Of
      `GridViews`, uint8 `[1, num_segments, window, rows, columns, 2]`: pixels a frame plus 128.
    """
    frames = views.test_frames(clip.num_frames)
    if isinstance(views, GridViews):
        return _windows(clip, frames)[None]
    size, side = views.image_size, views.resize_size
    if views.crops == 10:
        return ten_crops(_crops(clip, frames, views, spec, Crop(side, 0, 0, side)), size)
    margin = (side - size) // 2
    return _crops(clip, frames, views, spec, Crop(side, margin, margin, size))[None]


# pytest would take the name for a test wherever it is imported.
test_view.__test__ = False  # type: ignore[attr-defined]


def training_view(
    clip: Clip, draws: sampling.Draws, views: MotionViews, spec: VideoSpec
) -> np.ndarray:
    """Return an augmented view of a clip's motion (TSN's group transforms).

    All segments are resized, cropped and flipped in the same way.

    Args:
      draws: Random numbers; the view is a pure function of them and the clip.

    Returns:
      uint8 `[S, image_size, image_size, 2]`, (x, y); no motion is 128, or 127 for x if flipped.
    """
    frames = views.training_frames(clip.num_frames, draws)
    return _crops(clip, frames, views, spec, training_crop(draws, views))


def training_crop(draws: sampling.Draws, views: MotionViews) -> Crop:
    """Return the crop of a training view: its scale and its place are uniform."""
    choice, top, left = (int(number) for number in draws.crop)
    size = views.image_size
    side = round(size / views.scales[choice % len(views.scales)])
    room = side - size + 1
    flip = bool(draws.flip < np.float32(views.flip_probability))
    return Crop(side, top % room, left % room, size, flip)


def flip_windows(windows: np.ndarray) -> np.ndarray:
    """Flip `GridViews`' windows, uint8 `[..., rows, columns, 2]`, from left to right."""
    flipped = np.ascontiguousarray(windows[..., ::-1, :])
    flipped[..., 0] = -flipped[..., 0]  # Modulo 256, that is about 128.
    return flipped


def images(
    clip: Clip,
    frames: str,
    image_size: int,
    draw: int = _DRAW_OF_A_FILE,
    *,
    resize_size: int = 0,
    resample: str = "bilinear",
    square: bool = False,
) -> np.ndarray:
    """Return RGB frames of a clip as CLIP sees them.

    Args:
      clip: As `test_view`; only its RGB frames are looked at.
      frames: Which of the stored frames: 'middle', 'random' (one) or 'uniform_<k>' (the `k` next to
        the centres of `k` equal parts).
      draw: A random number for 'random', uniform in [0, 2**32).
      resize_size: Shorter side before the crop; 0 for `image_size`.
      square: Both sides are resized, and nothing is cropped.

    Returns:
      uint8 `[k, image_size, image_size, 3]`.

    Raises:
      ValueError: `frames` is unknown.
    """
    chosen = sampling.stored_frames(frames, clip.frame_indices, clip.num_frames, draw)
    jpegs = [clip.frames[position] for position in chosen]
    return np.stack(
        [clip_image(jpeg, image_size, resize_size, resample, square=square) for jpeg in jpegs]
    )


def _windows(clip: Clip, frames: np.ndarray) -> np.ndarray:
    """Return uint8 `[S, window, rows, columns, 2]` of the frames int `[S, window]`."""
    frames = sampling.frame_before_intra(frames + clip.lead, clip.is_intra)
    cells = clip.motion.cells(frames.reshape(-1))[:, ::2, ::2]
    # The canonical form's blocks have 16 pixels. A displacement leads back to where a block was.
    motion = 128 - np.clip(cells, -127, 127)
    return motion.astype(np.uint8).reshape(*frames.shape, *motion.shape[1:])


def _crops(
    clip: Clip, frames: np.ndarray, views: MotionViews, spec: VideoSpec, crop: Crop
) -> np.ndarray:
    """Return uint8 `[len(frames), crop.size, crop.size, 2]`."""
    frames = sampling.frame_before_intra(frames + clip.lead, clip.is_intra)
    motion = clip.motion
    resize = CropResizer(*motion.shown_size, crop)
    result = np.empty((len(frames), crop.size, crop.size, 2), np.uint8)
    for rows, field in byte_fields(motion, frames, spec, views.bound, views.accumulated):
        result[rows] = resize(field)
    return result
