"""Figures and videos of motion fields: colours, arrows over the frames, and predictions beside."""

import collections
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from moclip_jax.input_pipeline.video.accumulate import Accumulator
from moclip_jax.input_pipeline.video.block_grid import BLOCK
from moclip_jax.input_pipeline.video.block_motion import FrameBlocks
from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec
from moclip_jax.input_pipeline.video.coded_frames import coded_frames
from moclip_jax.input_pipeline.video.orientation import orient_field
from moclip_jax.runtime.files import atomic_write

# A guess and its probability, most likely first.
Guesses = Sequence[tuple[str, float]]
# Pixels of the canonical frame from one arrow to the next.
_ARROW_STEP = 16
# Height of the annotated video, and width of its panel of predictions.
_HEIGHT, _PANEL = 256, 256

# Fine enough for any frame rate; MPEG-4 takes no finer one.
_TIME_BASE = Fraction(1, 60_000)


def field_to_rgb(field: np.ndarray, bound: float | None = None) -> np.ndarray:
    """Return a motion field `[H, W, 2]` in pixels as colours, float32 `[H, W, 3]`, 0 to 1.

    Hue is the direction (red points right, hues go clockwise), brightness the length: `bound`
    pixels, by default the field's 99th percentile, are fully bright.
    """
    field = np.asarray(field, np.float32)
    length = np.hypot(field[..., 0], field[..., 1])
    bound = bound if bound is not None else common_bound(field)
    hue = (np.arctan2(field[..., 1], field[..., 0]) / (2 * np.pi)) % 1.0
    value = np.clip(length / bound, 0, 1)
    return hsv_to_rgb(np.stack([hue, np.ones_like(hue), value], axis=-1)).astype(np.float32)


def common_bound(fields: np.ndarray) -> float:
    """Return the 99th percentile of the lengths in `fields [..., 2]`, at least 1 pixel."""
    return max(float(np.percentile(np.hypot(fields[..., 0], fields[..., 1]), 99)), 1.0)


def color_wheel(size: int) -> np.ndarray:
    """Return the legend of `field_to_rgb`: float32 `[size, size, 4]`, clear outside the circle.

    A point's colour is that of the motion from the centre to it; the rim is the bound.
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    field = np.stack(np.meshgrid(axis, axis), axis=-1)
    inside = np.hypot(field[..., 0], field[..., 1]) <= 1
    return np.concatenate([field_to_rgb(field, 1.0), inside[..., None]], axis=-1, dtype=np.float32)


def motion_fields(frames: Iterable[FrameBlocks], *, raw: bool = False) -> Iterator[np.ndarray]:
    """Yield the field of every frame: integers `[height, width, 2]`, (x, y) in pixels, upright.

    Args:
      frames: the motion of a video's frames, however many; only some are held. A field comes when
        all are there that it depends on: a B-frame's with the next I- or P-frame.
      raw: the motion against each block's reference, as the codec wrote it; else accumulated since
        the group's I-frame, as the motion network is trained on by default.
    """
    if raw:
        yield from map(_raw_field, frames)
        return
    accumulator: Accumulator | None = None
    orientation = 0
    for index, blocks in enumerate(frames):
        accumulator = accumulator or Accumulator(blocks.height, blocks.width)
        orientation = blocks.orientation
        for _, field in accumulator.add(
            index, blocks.displacements, blocks.future, blocks.picture_type
        ):
            # The accumulator uses its array again.
            yield orient_field(field, orientation).copy()
    for _, field in accumulator.end() if accumulator else ():
        yield orient_field(field, orientation).copy()


def _raw_field(blocks: FrameBlocks) -> np.ndarray:
    # Stored is where a block came from; a field says where it went.
    sign = np.where(blocks.future, 1, -1)[..., None]
    cells = sign * blocks.displacements.astype(np.int32)
    field = cells.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    return orient_field(field[: blocks.height, : blocks.width], blocks.orientation)


def fields_of_rgb_frames(video: Clip, *, raw: bool) -> np.ndarray:
    """Return `motion_fields` of the frames whose RGB is kept, `[k, height, width, 2]`."""
    if not raw:
        return video.motion.accumulate(video.frame_indices)
    return np.stack([_raw_field(video.motion.frame(i)) for i in video.frame_indices.tolist()])


def draw_motion(path: str, video: Clip, target: Path, *, raw: bool, guesses: Guesses) -> None:
    """Draw a video's kept frames, their motion as colours, and as arrows over the frames."""
    indices = video.frame_indices.tolist()
    fields = fields_of_rgb_frames(video, raw=raw)
    bound = common_bound(fields)
    high, wide = fields.shape[1:3]
    width = 2.4 * len(indices) + 1
    figure = Figure(figsize=(width, 6.4))
    axes = figure.subplots(3, len(indices), squeeze=False)
    # The last inch is the legend's.
    figure.set_layout_engine("constrained", rect=(0, 0, 1 - 1 / width, 1))
    rows, columns = np.mgrid[
        _ARROW_STEP // 2 : high : _ARROW_STEP, _ARROW_STEP // 2 : wide : _ARROW_STEP
    ]
    for column, (index, jpeg, field) in enumerate(zip(indices, video.frames, fields, strict=True)):
        image = Image.open(io.BytesIO(jpeg)).resize((wide, high))
        aspect = _aspect(jpeg) * high / wide
        arrows = field[rows, columns]
        moving = np.abs(arrows).max(axis=-1) > 0
        axes[0, column].imshow(image)
        axes[0, column].set_title(f"frame {index}", fontsize=9)
        axes[1, column].imshow(field_to_rgb(field, bound))
        axes[1, column].set_title(f"largest {np.abs(field).max()} px", fontsize=9)
        axes[2, column].imshow(image)
        # The longest arrow reaches twice as far as two neighbours are apart.
        axes[2, column].quiver(
            columns[moving],
            rows[moving],
            *arrows[moving].T,
            angles="xy",
            scale_units="xy",
            scale=bound / (2 * _ARROW_STEP),
            color="yellow",
            width=0.008,
        )
        for axis in axes[:, column]:
            axis.set_aspect(1 / aspect)
            axis.set_xlim(0, wide)
            axis.set_ylim(high, 0)
            axis.set_axis_off()
    wheel = figure.add_axes((1 - 0.9 / width, 0.42, 0.8 / width, 0.8 / 6.4))
    wheel.set_in_layout(False)
    wheel.imshow(color_wheel(128))
    wheel.set_title(f"rim: {bound:.0f} px", fontsize=7)
    wheel.set_axis_off()
    kind = "against the frame before" if raw else "since the last I-frame"
    listed = ", ".join(f"{label} {probability:.0%}" for label, probability in guesses)
    figure.suptitle(
        f"{Path(path).name}: frames, and motion {kind}" + (f"\n{listed}" if listed else "")
    )
    figure.savefig(target, dpi=110)


def _aspect(jpeg: bytes) -> float:
    width, height = Image.open(io.BytesIO(jpeg)).size
    return width / height


def write_annotated_video(
    path: str,
    video: Clip,
    spec: VideoSpec,
    target: Path,
    *,
    raw: bool,
    guesses_at: Callable[[float], Guesses] | None,
    each_frame: Callable[[], Any] = lambda: None,
) -> None:
    """Write a video of each frame, its motion, and what a model says, side by side.

    H.264 where FFmpeg has its encoder, else MPEG-4; without sound. The file is whole or not there.

    Args:
      path: the file; frame by frame, so that memory does not grow with its length.
      video: the same, prepared, with the motion of its RGB frames at least: they set the scale.
      spec: its canonical form.
      target: the video to write; its suffix decides on the container.
      raw: as in `motion_fields`.
      guesses_at: gives the predictions at a time in seconds, which rises; None leaves their panel
        out.
      each_frame: called after each frame, for progress.

    Raises:
      VideoError: the file cannot be read, or the target cannot be written.
    """
    width = max(2 * round(_HEIGHT * _aspect(video.frames[0]) / 2), 2)
    total = 2 * width + (_PANEL if guesses_at else 0)
    bound = common_bound(fields_of_rgb_frames(video, raw=raw))
    side = _HEIGHT // 6
    wheel = Image.fromarray((color_wheel(side) * 255).astype(np.uint8))
    font = ImageFont.load_default(size=13)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    try:
        with atomic_write(target) as part, av.open(os.fspath(part), "w") as container:
            rate = Fraction(video.fps or 25.0).limit_denominator(1001)
            stream = cast(av.VideoStream, container.add_stream(codec, rate=rate))
            stream.width, stream.height, stream.pix_fmt = total, _HEIGHT, "yuv420p"
            stream.codec_context.time_base = _TIME_BASE
            pictures: collections.deque[av.VideoFrame] = collections.deque()

            def motion() -> Iterator[FrameBlocks]:
                for coded in coded_frames(path, spec, video.source):
                    pictures.append(coded.picture)
                    yield coded.blocks

            for time_s, field in zip(video.times, motion_fields(motion(), raw=raw), strict=True):
                canvas = Image.new("RGB", (total, _HEIGHT), (24, 24, 24))
                canvas.paste(pictures.popleft().to_image().resize((width, _HEIGHT)), (0, 0))
                colors = Image.fromarray((field_to_rgb(field, bound) * 255).astype(np.uint8))
                canvas.paste(colors.resize((width, _HEIGHT)), (width, 0))
                canvas.paste(wheel, (width + 4, 4), wheel)
                draw = ImageDraw.Draw(canvas)
                draw.text((width + side + 8, 6), f"{bound:.0f} px", "white", font)
                if guesses_at:
                    title = f"{time_s:.2f} s"
                    _draw_guesses(draw, 2 * width, title, guesses_at(time_s), font)
                drawn = av.VideoFrame.from_image(canvas)
                drawn.pts, drawn.time_base = round(time_s / _TIME_BASE), _TIME_BASE
                container.mux(stream.encode(drawn))
                each_frame()
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, VideoError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            target, f"cannot be written as a video ({reason}); try a name in .mp4"
        ) from error


def _draw_guesses(draw: ImageDraw.ImageDraw, left: int, title: str, guesses: Guesses, font: Any):
    draw.text((left + 10, 8), title, "white", font)
    for row, (label, probability) in enumerate(guesses):
        top = 36 + 42 * row
        draw.text((left + 10, top), f"{probability:4.0%}  {label}", "white", font)
        draw.rectangle((left + 10, top + 20, left + _PANEL - 10, top + 28), "dimgray")
        # Integers, so that an empty bar is a line and not an error.
        end = left + 10 + round((_PANEL - 20) * probability)
        draw.rectangle((left + 10, top + 20, end, top + 28), "gold")
