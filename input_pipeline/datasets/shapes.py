"""Draw the clips of the embedded data set `moving_shapes` with NumPy; no video code here.

A class is a shape and a motion, such as "star spinning". A round textured tile that bears the shape
moves over a textured background, with a slow camera drift, small static distractors and noise.
Three properties make the data set a test of fusion:

* The state at the middle frame (place, size, angle, colours, noise) is drawn independently of the
  motion and extrapolated both ways, so that the middle frame is the same image for all motions.
* What moves is the tile, which is round for all shapes, so that the motion outlines a disc whatever
  the shape on it.
* Every motion is its own mirror image, so a horizontal flip keeps the label true.

With `turning` motions the order alone tells the class: a clip of the class "rising first" rises for
a quarter, falls for half and rises for the last quarter, which reversed in time is "falling first".
Both visit the same places with the same motion, and their middle frame is the same image.

Groups are (background, palette) pairs, so a group never shares either with another group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moclip_jax.input_pipeline.datasets.shape_masks import SHAPES, TILE_PIXELS, shape_mask

MOTIONS = ("rising", "falling", "sliding", "spinning", "growing", "shrinking")
# Those that turn into one another where time runs backwards.
REVERSIBLE_MOTIONS = ("rising", "falling", "growing", "shrinking")

COLORS = {
    "red": (215, 45, 45),
    "orange": (240, 140, 30),
    "yellow": (235, 220, 50),
    "green": (50, 165, 65),
    "cyan": (50, 205, 215),
    "blue": (45, 80, 215),
    "purple": (135, 55, 180),
    "pink": (240, 130, 190),
}

# Fractions of the shorter side of the frame.
_TILE_RADIUS = (0.20, 0.24)
_TRAVEL = (0.40, 0.46)  # over the whole clip
_DRIFT = 0.05  # of the camera over the whole clip, at most

_ZOOM = (1.55, 1.70)  # the size at either end of the clip against that at the middle
_TURN = (2.2, 3.0)  # radians over the whole clip

_TEXTURE = 42.0  # amplitude of each octave of the tile's texture, in grey levels
_NOISE = 3.0  # standard deviation of the frames' noise, in grey levels


@dataclass(frozen=True)
class Appearance:
    """What a caption can say of a clip beside its shape and motion.

    Attributes:
      color: A key of `COLORS`, the colour of the shape.
      size: "small" or "large", the size at the middle frame; None where nothing is said of it.
    """

    color: str
    size: str | None


@dataclass(frozen=True)
class _State:
    """The clip at its middle frame; lengths as fractions of the frame's shorter side."""

    color: str
    tile_grey: float
    radius: float
    travel: float
    zoom: float
    offset: np.ndarray  # [2] of the place, each -1..1 of the room that is left (x, y)
    angle: float
    drift: np.ndarray  # [2] camera drift over the whole clip (x, y)
    window: np.ndarray  # [2] 0..1, where in the group's background the clip is filmed (x, y)
    texture: np.ndarray  # [TILE_PIXELS, TILE_PIXELS] -1..1
    distractors: np.ndarray  # [k, 6] form, x, y, size, angle, grey, each 0..1


def appearance(*, group_seed: int, clip_seed: int) -> Appearance:
    """Return the colour and the size word of the clip that has these seeds."""
    state = _draw_state(group_seed, clip_seed)
    small = state.radius < sum(_TILE_RADIUS) / 2
    return Appearance(color=state.color, size="small" if small else "large")


def render_clip(
    shape: str,
    motion: str,
    *,
    group_seed: int,
    clip_seed: int,
    num_frames: int,
    height: int,
    width: int,
    turning: bool = False,
    shown: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw one clip, or some of its frames.

    The distance travelled, the turn and the zoom are those of the whole clip, so the shape stays
    inside the frame for any number of frames (24 frames of 128 x 128: 2.1 to 2.5 pixels a frame).

    Args:
      motion: One of `MOTIONS`; "sliding" is sideways and "spinning" turns, in a random direction.
      group_seed: Chooses the background and the palette.
      clip_seed: Chooses everything else, within the group.
      num_frames: Length of the clip; the middle frame is `num_frames // 2`.
      height: Of the frame, in pixels, at least 32.
      width: Of the frame, in pixels, at least 32.
      turning: The motion is reversed after a quarter of the clip and again after three quarters.
      shown: Indices of the frames to draw; all by default.

    Returns:
      uint8 [frames, height, width, 3], RGB.

    Raises:
      ValueError: For an unknown shape or motion, no frame, or a frame that is too small.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; choose one of {', '.join(SHAPES)}")
    if motion not in MOTIONS:
        raise ValueError(f"motion is {motion!r}; choose one of {', '.join(MOTIONS)}")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a clip needs at least 1")
    if min(height, width) < 32:
        raise ValueError(f"the frame is {width}x{height}; shapes need at least 32x32 pixels")

    state = _draw_state(group_seed, clip_seed)
    # A random stream of its own, so that drawing the motion does not change the state.
    rng = _rng("motion", group_seed, clip_seed)
    direction = rng.choice((-1.0, 1.0))
    turn = rng.uniform(*_TURN)
    noise_shifts = rng.integers(0, (height, width), size=(num_frames, 2))
    middle = num_frames // 2
    noise_shifts[middle] = 0

    unit = min(height, width)
    # Room for the largest motion, so that the place does not reveal which motion it is.
    reach = max(state.radius + state.travel / 2, state.radius * state.zoom)
    room = np.maximum(np.array((width, height)) / 2 - reach * unit - 1, 0)
    center = np.array((width, height)) / 2 + state.offset * room

    background = _background(state, group_seed, clip_seed, height, width)
    sprite = _sprite(shape, state)
    noise_rng = _rng("noise", group_seed, clip_seed)
    noise = noise_rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(_NOISE)

    shown = range(num_frames) if shown is None else shown
    frames = np.empty((len(shown), height, width, 3), np.uint8)
    for image, t in zip(frames, shown, strict=True):
        progress = (t - middle) / num_frames  # within -0.5 .. 0.5
        path = _turning(progress) if turning else progress
        x, y = center
        radius, angle = state.radius * unit, state.angle
        if motion == "rising":
            y -= state.travel * unit * path
        elif motion == "falling":
            y += state.travel * unit * path
        elif motion == "sliding":
            x += direction * state.travel * unit * path
        elif motion == "spinning":
            angle += direction * turn * path
        elif motion == "growing":
            radius *= state.zoom ** (2 * path)
        else:
            radius *= state.zoom ** (-2 * path)
        frame = _film(background, state.drift * unit * progress, height, width)
        _paint(frame, sprite, x, y, radius, angle)
        frame += np.roll(noise, noise_shifts[t], axis=(0, 1))
        image[:] = np.clip(frame + 0.5, 0, 255)
    return frames


def render_still(
    shape: str, *, group_seed: int, clip_seed: int, height: int, width: int
) -> np.ndarray:
    """Draw the middle frame of `render_clip` with these seeds, uint8 [height, width, 3].

    It is the same for all motions. Raises ValueError as `render_clip` does.
    """
    clip = render_clip(
        shape,
        MOTIONS[0],
        group_seed=group_seed,
        clip_seed=clip_seed,
        num_frames=1,
        height=height,
        width=width,
    )
    return clip[0]


def render_empty(
    *, group_seed: int, clip_seed: int, num_frames: int, height: int, width: int
) -> np.ndarray:
    """Draw the scene of `render_clip` with these seeds without its tile, the camera at rest.

    Returns:
      uint8 [num_frames, height, width, 3], the same but for the noise.
    """
    state = _draw_state(group_seed, clip_seed)
    background = _background(state, group_seed, clip_seed, height, width)
    frame = _film(background, np.zeros(2), height, width)
    rng = _rng("noise", group_seed, clip_seed)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(_NOISE)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        shifted = np.roll(noise, rng.integers(0, (height, width)), axis=(0, 1))
        frames[t] = np.clip(frame + shifted + 0.5, 0, 255)
    return frames


def _turning(progress: float) -> float:
    """From -0.5..0.5 to a path of the same speed that turns at -0.25 and at 0.25."""
    return 0.25 - abs(progress + 0.25) if progress < 0 else abs(progress - 0.25) - 0.25


def _rng(stream: str, *seeds: int) -> np.random.Generator:
    # The stream's number comes first and is never 0: numpy takes (5,) and (5, 0) for the same seed.
    number = ("palette", "backdrop", "state", "motion", "noise").index(stream) + 1
    return np.random.default_rng((number, *seeds))


def _palette(group_seed: int) -> tuple[list[str], np.ndarray]:
    """Return the names of the group's shape colours and its two background colours [2, 3]."""
    rng = _rng("palette", group_seed)
    names = rng.permutation(list(COLORS))
    tint = np.array(COLORS[names[0]], np.float32)
    greys = rng.uniform(60, 190, size=(2, 1)).astype(np.float32)
    # Muted, so that the background is never mistaken for the shape's own, vivid colour.
    return [str(name) for name in names[1:4]], 0.3 * tint + 0.7 * greys


def _draw_state(group_seed: int, clip_seed: int) -> _State:
    rng = _rng("state", group_seed, clip_seed)
    names, _ = _palette(group_seed)
    color = names[rng.integers(len(names))]
    luma = float(np.dot(COLORS[color], (0.299, 0.587, 0.114)))
    # Light under a dark shape and dark under a light one.
    tile_grey = rng.uniform(195, 225) if luma < 135 else rng.uniform(40, 70)
    tile = (TILE_PIXELS, TILE_PIXELS)
    return _State(
        color=color,
        tile_grey=tile_grey,
        radius=rng.uniform(*_TILE_RADIUS),
        travel=rng.uniform(*_TRAVEL),
        zoom=rng.uniform(*_ZOOM),
        offset=rng.uniform(-1, 1, size=2),
        angle=rng.uniform(0, 2 * np.pi),
        drift=rng.uniform(-_DRIFT, _DRIFT, size=2),
        window=rng.uniform(0, 1, size=2),
        texture=_noise_field(rng, *tile, 7) + _noise_field(rng, *tile, 13),
        distractors=rng.uniform(0, 1, size=(rng.integers(4, 8), 6)),
    )


def _noise_field(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return smooth value noise float32 [height, width] in -1..1."""
    grid = rng.uniform(-1, 1, size=(cells + 1, cells + 1)).astype(np.float32)
    return _interpolate(_interpolate(grid, height, cells).T, width, cells).T


def _interpolate(rows: np.ndarray, size: int, cells: int) -> np.ndarray:
    """Interpolate [cells + 1, n] smoothly to [size, n], without BLAS and its threads."""
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    low = np.minimum(position.astype(np.int32), cells - 1)
    fraction = (position - low)[:, None]
    fraction = fraction * fraction * (3 - 2 * fraction)
    below = rows[low]
    return below + fraction * (rows[low + 1] - below)


def _background(
    state: _State, group_seed: int, clip_seed: int, height: int, width: int
) -> np.ndarray:
    """Return the clip's part of the group's background, with a border for the camera drift.

    float32 [height + 2 b, width + 2 b, 3]; the middle frame sees it without the border.
    """
    border = _border(height, width)
    rows, columns = height + 2 * border, width + 2 * border
    # The group's backdrop is half as large again as a clip's view of it.
    full_rows, full_columns = rows * 3 // 2, columns * 3 // 2
    rng = _rng("backdrop", group_seed)
    _, (first, second) = _palette(group_seed)
    mix = 0.5 + 0.5 * _noise_field(rng, full_rows, full_columns, 6)
    detail = 26 * _noise_field(rng, full_rows, full_columns, 16)
    detail += 22 * _noise_field(rng, full_rows, full_columns, 40)
    left = int(state.window[0] * (full_columns - columns))
    top = int(state.window[1] * (full_rows - rows))
    view = np.s_[top : top + rows, left : left + columns]
    canvas = first + (second - first) * mix[view][..., None] + detail[view][..., None]
    for distractor in state.distractors:
        _paint_distractor(canvas, distractor)
    return canvas


def _border(height: int, width: int) -> int:
    # Half of the drift on either side of the middle, and one pixel for the interpolation.
    return int(np.ceil(_DRIFT / 2 * min(height, width))) + 1


def _film(background: np.ndarray, shift: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the frame, float32 [height, width, 3], with the camera moved by `shift` (x, y)."""
    border = _border(height, width)
    left, top = np.floor(shift).astype(int)
    fx, fy = (shift - np.floor(shift)).astype(np.float32)
    left, top = left + border, top + border
    rows = background[top : top + height + 1]
    rows = rows[:-1] + fy * (rows[1:] - rows[:-1]) if fy else rows[:-1].copy()
    columns = rows[:, left : left + width + 1]
    if not fx:
        return columns[:, :-1].copy()
    return columns[:, :-1] + fx * (columns[:, 1:] - columns[:, :-1])


def _paint_distractor(canvas: np.ndarray, distractor: np.ndarray) -> None:
    """Paint a bar, a corner or a crescent in grey on the canvas, in place."""
    form, x, y, size, angle, grey = distractor
    height, width, _ = canvas.shape
    radius = (0.03 + 0.025 * size) * min(height, width)
    cx, cy = x * width, y * height
    box, u, v = _tile_coordinates(height, width, cx, cy, radius, 2 * np.pi * angle)
    if form < 1 / 3:
        inside = (np.abs(u) < 1) & (np.abs(v) < 0.2)
    elif form < 2 / 3:
        inside = (np.abs(u + 0.5) < 0.2) & (np.abs(v) < 0.7)
        inside |= (np.abs(v - 0.5) < 0.2) & (np.abs(u) < 0.7)
    else:
        inside = (np.hypot(u, v) < 0.9) & (np.hypot(u - 0.45, v) > 0.8)
    canvas[box][inside] = 40 + 180 * grey


def _tile_coordinates(
    height: int, width: int, x: float, y: float, radius: float, angle: float
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Return the box of pixels around a tile, and their float32 coordinates on it (-1..1)."""
    left, right = max(int(x - radius) - 1, 0), min(int(x + radius) + 2, width)
    top, bottom = max(int(y - radius) - 1, 0), min(int(y + radius) + 2, height)
    dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x))[None, :]
    dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    return np.s_[top:bottom, left:right], cos * dx + sin * dy, cos * dy - sin * dx


def _paint(
    frame: np.ndarray, sprite: np.ndarray, x: float, y: float, radius: float, angle: float
) -> None:
    """Blend the sprite into the frame at (x, y), in place, with bilinear sampling."""
    height, width, _ = frame.shape
    box, u, v = _tile_coordinates(height, width, x, y, radius, angle)
    column = np.clip((u + 1) * (TILE_PIXELS / 2) - 0.5, 0, TILE_PIXELS - 1.001)
    row = np.clip((v + 1) * (TILE_PIXELS / 2) - 0.5, 0, TILE_PIXELS - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    fx, fy = (column - left)[..., None], (row - top)[..., None]
    flat = sprite.reshape(-1, 3)
    corner = top * TILE_PIXELS + left
    upper = flat[corner] + fx * (flat[corner + 1] - flat[corner])
    corner += TILE_PIXELS
    lower = flat[corner] + fx * (flat[corner + 1] - flat[corner])
    color = upper + fy * (lower - upper)
    cover = np.clip((1 - np.hypot(u, v)) * np.float32(radius) + 0.5, 0, 1)[..., None]
    frame[box] += cover * (color - frame[box])


def _sprite(shape: str, state: _State) -> np.ndarray:
    """Return the tile with the shape on it, float32 [TILE_PIXELS, TILE_PIXELS, 3]."""
    mask = shape_mask(shape)[..., None]
    color = np.array(COLORS[state.color], np.float32)
    tile = np.float32(state.tile_grey)
    # One texture over tile and shape alike, so that its motion does not outline the shape.
    return tile + mask * (color - tile) + np.float32(_TEXTURE) * state.texture[..., None]
