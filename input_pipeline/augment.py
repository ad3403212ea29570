"""From stored displacements and JPEG frames to what the networks see (TensorFlow ops)."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

BLOCK = 8  # Side in pixels of the grid of displacements, as in motion_vectors.py.


def origins_at_rest(height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Return the origins of a picture's pixels where each is its own.

    Args:
      height: Height of the picture in pixels, at most 32767.
      width: Width of the picture in pixels, at most 32767.

    Returns:
      int32 `[gh * gw, 64]`, cell after cell of the 8-pixel grid, so that a cell is updated in one
      piece. An origin is y and x in the upper and lower half, so that one gather moves both.
    """
    grid_h, grid_w = -(-height // BLOCK), -(-width // BLOCK)
    packed = tf.range(grid_h * BLOCK)[:, None] * 65536 + tf.range(grid_w * BLOCK)
    blocks = tf.reshape(packed, [grid_h, BLOCK, grid_w, BLOCK])
    return tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), [-1, BLOCK**2])


def follow_blocks(
    origins: tf.Tensor, displacements: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> tf.Tensor:
    """Return the origins of a frame from those of another some frames before.

    The steps of `origin_maps.accumulate` from P-frame to P-frame, bit for bit. Only blocks that
    move are touched. What they gather is computed for all steps at once, and the loop over the
    steps holds one gather and one update.

    Args:
      origins: int32 `[gh * gw, 64]` as `origins_at_rest`.
      displacements: int16 `[n, gh, gw, 2]` of the `n` frames after, up to the one that is asked
        for: (x, y) of `src - dst` on the 8-pixel grid.
      height: Height of the picture in pixels.
      width: Width of the picture in pixels.

    Returns:
      int32 `[gh * gw, 64]`.
    """
    grid_w = -(-width // BLOCK)
    moving = tf.reduce_any(displacements != 0, -1)
    ends = tf.cumsum(tf.math.count_nonzero(moving, [1, 2], dtype=tf.int32))
    where = tf.cast(tf.where(moving), tf.int32)
    row, column = where[:, 1], where[:, 2]
    cell = row * grid_w + column
    shift = tf.cast(tf.boolean_mask(displacements, moving), tf.int32)

    # Position in `origins` of every pixel's source, from its row's part and its column's part.
    inner = tf.range(BLOCK)
    y = row[:, None] * BLOCK + inner + shift[:, 1:]
    x = column[:, None] * BLOCK + inner + shift[:, :1]
    y_part = (y // BLOCK) * grid_w * BLOCK**2 + (y % BLOCK) * BLOCK
    x_part = (x // BLOCK) * BLOCK**2 + x % BLOCK
    source = tf.reshape(y_part[:, :, None] + x_part[:, None, :], [-1, BLOCK**2])
    # A pixel whose source lies outside the picture is its own source. Few blocks have any.
    y_inside, x_inside = (y >= 0) & (y < height), (x >= 0) & (x < width)
    crossing = tf.where(~tf.reduce_all(y_inside & x_inside, 1))
    y_inside = tf.gather_nd(y_inside, crossing)[:, :, None]
    x_inside = tf.gather_nd(x_inside, crossing)[:, None, :]
    inside = tf.reshape(y_inside & x_inside, [-1, BLOCK**2])
    own = tf.gather_nd(cell, crossing)[:, None] * BLOCK**2 + tf.range(BLOCK**2)
    source = tf.tensor_scatter_nd_update(
        source, crossing, tf.where(inside, tf.gather_nd(source, crossing), own)
    )
    every = tf.range(tf.shape(origins)[0])

    def step(number: tf.Tensor, begin: tf.Tensor, origins: tf.Tensor) -> tuple[tf.Tensor, ...]:
        end = ends[number]
        moved = tf.gather(tf.reshape(origins, [-1]), source[begin:end])
        # The quickest way to replace some rows; the later of two equal indices wins.
        updated = tf.dynamic_stitch([every, cell[begin:end]], [origins, moved])
        return number + 1, end, tf.ensure_shape(updated, origins.shape)

    num_steps = tf.shape(displacements)[0]
    _, _, origins = tf.while_loop(
        lambda number, *_: number < num_steps, step, [0, 0, origins], parallel_iterations=1
    )
    return origins


def motion_of_origins(
    origins: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> tf.Tensor:
    """Return int32 `[height, width, 2]`, (x, y) of `position - origin` in pixels.

    Args:
      origins: int32 `[gh * gw, 64]` as `origins_at_rest`.
      height: Height of the picture in pixels.
      width: Width of the picture in pixels.
    """
    grid_h, grid_w = -(-height // BLOCK), -(-width // BLOCK)
    # Low half first in memory: the halves are (x, y).
    motion = tf.bitcast(origins_at_rest(height, width), tf.int16) - tf.bitcast(origins, tf.int16)
    blocks = tf.reshape(motion, [grid_h, grid_w, BLOCK, BLOCK, 2])
    rows = tf.transpose(blocks, [0, 2, 1, 3, 4])
    picture = tf.reshape(rows, [grid_h * BLOCK, grid_w * BLOCK, 2])
    return tf.cast(picture[:height, :width], tf.int32)


def scale_to_uint8(fields: tf.Tensor, bound: float = 20.0) -> tf.Tensor:
    """Scale motion in pixels to bytes: `int(v * 127.5 / bound) + 128`, clipped to 0..255.

    Args:
      fields: int32, any shape, in pixels.
      bound: Motion in pixels that reaches the ends of the range.

    Returns:
      uint8 of the same shape; no motion is 128.
    """
    # Casting to an integer drops the fraction, as Python's int() does. float32 is exact enough:
    # a quotient that is no whole number lies further from one than its rounding error. That holds
    # for a division, but not for the multiplication that the graph optimiser makes of `/`.
    scaled = tf.math.divide_no_nan(tf.cast(fields, tf.float32) * 127.5, bound)
    return tf.cast(tf.clip_by_value(tf.cast(scaled, tf.int32) + 128, 0, 255), tf.uint8)


@dataclasses.dataclass(frozen=True)
class Crop:
    """A place in a resized picture.

    Attributes:
      choice: int32 scalar, which of the sides the picture is resized to.
      top: int32 scalar, first row.
      left: int32 scalar, first column.
      flip: bool scalar, whether to flip horizontally.
    """

    choice: tf.Tensor
    top: tf.Tensor
    left: tf.Tensor
    flip: tf.Tensor


def crop_sides(size: int, scales: tuple[float, ...]) -> tuple[int, ...]:
    """Return the sides that a picture may be resized to: `round(size / scale)` of each scale."""
    return tuple(round(size / scale) for scale in scales)


def random_crop(
    size: int, scales: tuple[float, ...], flip_probability: float, seed: tf.Tensor
) -> Crop:
    """Draw a crop of `size` pixels (TSN's group transforms).

    Args:
      size: Side of the crop in pixels.
      scales: Share of the picture's side that the crop takes, each in (0, 1].
      flip_probability: Probability of the flip.
      seed: int `[2]`; the draws are a pure function of it.

    Returns:
      The crop; its side is drawn from `crop_sides`, its place uniformly.
    """
    seeds = tf.random.split(seed, 4)
    sides = tf.constant(crop_sides(size, scales))
    choice = tf.random.stateless_uniform([], seeds[0], 0, len(scales), tf.int32)
    room = sides[choice] - size + 1
    top = tf.random.stateless_uniform([], seeds[1], 0, room, tf.int32)
    left = tf.random.stateless_uniform([], seeds[2], 0, room, tf.int32)
    flip = tf.random.stateless_uniform([], seeds[3]) < flip_probability
    return Crop(choice, top, left, flip)


@functools.lru_cache
def bilinear_taps(sides: tuple[int, ...], length: int) -> tuple[np.ndarray, ...]:
    """Return the pixels between which `tf.image.resize` interpolates: lower, upper, weight.

    Args:
      sides: To which pixels are resized.
      length: Number of pixels.

    Returns:
      int32, int32 and float32, each `[len(sides), max(sides)]`. In float32 and in this order of
      operations, as TensorFlow's bilinear kernel with half-pixel centres computes them.
    """
    lower = np.zeros((len(sides), max(sides)), np.int32)
    upper, weight = lower.copy(), lower.astype(np.float32)
    for row, side in enumerate(sides):
        scale = np.float32(length) / np.float32(side)
        place = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
        floor = np.floor(place)
        lower[row, :side] = np.maximum(floor, 0)
        upper[row, :side] = np.minimum(np.ceil(place), length - 1)
        weight[row, :side] = place - floor
    return lower, upper, weight


def crop_flip(fields: tf.Tensor, size: int, sides: tuple[int, ...], crop: Crop) -> tf.Tensor:
    """Resize, crop and flip, the same way for all segments.

    Square bilinear resize without antialiasing; a flip also turns the sign of x.

    Args:
      fields: uint8 `[S, H, W, 2]` from `scale_to_uint8`.
      size: Side of the crop in pixels.
      sides: From `crop_sides`.
      crop: From `random_crop`.

    Returns:
      uint8 `[S, size, size, 2]`.
    """
    resized = _resize(fields, tf.constant(sides)[crop.choice])
    cut = resized[:, crop.top : crop.top + size, crop.left : crop.left + size]
    cut = _to_uint8(cut)
    cut = tf.cond(crop.flip, lambda: _flip(cut), lambda: cut)
    return tf.ensure_shape(cut, [None, size, size, 2])


def random_crop_flip(
    fields: tf.Tensor,
    size: int,
    scales: tuple[float, ...],
    flip_probability: float,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Resize, crop and flip at random: `crop_flip` of a `random_crop`."""
    crop = random_crop(size, scales, flip_probability, seed)
    return crop_flip(fields, size, crop_sides(size, scales), crop)


def center_crop(fields: tf.Tensor, resize: int, size: int) -> tf.Tensor:
    """Resize to a square and take its middle.

    Args:
      fields: uint8 `[S, H, W, 2]`.
      resize: Side of the square in pixels.
      size: Side of the crop in pixels, at most `resize`.

    Returns:
      uint8 `[S, size, size, 2]`.
    """
    margin = (resize - size) // 2
    resized = _resize(fields, resize)[:, margin : margin + size, margin : margin + size]
    return _to_uint8(resized)


def ten_crops(fields: tf.Tensor, resize: int, size: int) -> tf.Tensor:
    """Resize to a square and take its corners and middle, and the same flipped.

    Args:
      fields: uint8 `[S, H, W, 2]`.
      resize: Side of the square in pixels.
      size: Side of the crops in pixels, at most `resize`.

    Returns:
      uint8 `[10, S, size, size, 2]`: upper left, upper right, lower left, lower right, middle, then
      the same five flipped, with the sign of x turned.
    """
    return crop_ten(_to_uint8(_resize(fields, resize)), size)


def crop_ten(resized: tf.Tensor, size: int) -> tf.Tensor:
    """Take corners and middle of squares, and the same flipped, as `ten_crops`.

    Args:
      resized: uint8 `[S, side, side, 2]`, of static side.
      size: Side of the crops in pixels, at most `side`.

    Returns:
      uint8 `[10, S, size, size, 2]`.
    """
    end = resized.shape[1] - size
    middle = end // 2
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    crops = [resized[:, top : top + size, left : left + size] for top, left in corners]
    five = tf.stack(crops)
    return tf.concat([five, _flip(five)], 0)


def clip_image(
    jpeg: tf.Tensor, size: int, resize_size: int = 0, resample: str = "bilinear"
) -> tf.Tensor:
    """Decode an image, resize its shorter side and crop the central square, as CLIP does.

    The resize antialiases; the longer side becomes `int(resize_size * longer / shorter)`, as in
    Hugging Face's and torchvision's transforms.

    Args:
      jpeg: string scalar, a JPEG.
      size: Side of the crop in pixels.
      resize_size: Shorter side after resizing, at least `size`; 0 for `size`.
      resample: 'bilinear' or 'bicubic'.

    Returns:
      uint8 `[size, size, 3]` RGB.
    """
    image = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    shape = tf.shape(image)[:2]
    shorter = tf.reduce_min(shape)
    target = shape * (resize_size or size) // shorter
    # Columns first, then rows, each rounded to bytes, halves up: so does Pillow, which CLIP was
    # trained with.
    for sides in ([shape[0], target[1]], target):
        resized = tf.image.resize(image, sides, resample, antialias=True)
        image = tf.saturate_cast(tf.floor(resized + 0.5), tf.uint8)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    crop = image[top : top + size, left : left + size]
    return tf.ensure_shape(crop, [size, size, 3])


def _resize(fields: tf.Tensor, side: int | tf.Tensor) -> tf.Tensor:
    return tf.image.resize(fields, [side, side], "bilinear", antialias=False)


def _to_uint8(pixels: tf.Tensor) -> tf.Tensor:
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def _flip(fields: tf.Tensor) -> tf.Tensor:
    """Flip horizontally: 255 - v turns the sign of x as near as bytes allow (128 becomes 127)."""
    flipped = tf.reverse(fields, [-2])
    return tf.stack([255 - flipped[..., 0], flipped[..., 1]], -1)
