"""From stored displacements and JPEG frames to what the networks see (TensorFlow ops)."""

import dataclasses

import tensorflow as tf

BLOCK = 8  # Side in pixels of the grid of displacements, as in motion_vectors.py.


def accumulate_tf(
    displacements: tf.Tensor,
    is_intra: tf.Tensor,
    frame_indices: tf.Tensor,
    height: int,
    width: int,
    accumulated: bool = True,
) -> tf.Tensor:
    """Accumulate block displacements back to the I-frame of each wanted frame's GOP.

    The result equals `motion_vectors.accumulate`, bit for bit.

    Only blocks that move are touched. What they gather is computed for all steps at once, and the
    loop over the steps holds one gather and one update, for all wanted frames together. Origins
    lie block after block, so that a block is updated in one piece.

    Args:
      displacements: int16 `[n, gh, gw, 2]`, (x, y) of `src - dst` on the 8-pixel grid.
      is_intra: bool `[n]`.
      frame_indices: int32 `[S]`.
      height: Height of the picture in pixels, at most 32767.
      width: Width of the picture in pixels, at most 32767.
      accumulated: False gives the motion of each frame alone, against the frame before it.

    Returns:
      int32 `[S, height, width, 2]`, (x, y) of `position - origin` in pixels.
    """
    grid_h, grid_w = -(-height // BLOCK), -(-width // BLOCK)
    cells = grid_h * grid_w
    num_fields = tf.size(frame_indices)
    if accumulated:
        # The position before frame 0 stands in for a stream that does not start with an I-frame.
        intra = tf.concat([[-1], tf.cast(tf.where(is_intra)[:, 0], tf.int32)], 0)
        start = tf.gather(intra, tf.searchsorted(intra, frame_indices, side="right") - 1)
    else:
        start = frame_indices - 1
    num_steps = tf.reduce_max(frame_indices - start)

    # [steps, S]: the frame that each field goes through at each step; fields that are done rest.
    frames = start + 1 + tf.range(num_steps)[:, None]
    active = (frames <= frame_indices) & ~tf.gather(is_intra, tf.minimum(frames, frame_indices))
    shifts = tf.gather(displacements, tf.minimum(frames, frame_indices))
    moving = tf.reduce_any(shifts != 0, -1) & active[:, :, None, None]
    ends = tf.cumsum(tf.math.count_nonzero(moving, [1, 2, 3], dtype=tf.int32))
    where = tf.cast(tf.where(moving), tf.int32)
    field, row, column = where[:, 1], where[:, 2], where[:, 3]
    shift = tf.cast(tf.boolean_mask(shifts, moving), tf.int32)
    cell = field * cells + row * grid_w + column

    # Position in `origin` of every pixel's source, from its row's part and its column's part.
    inner = tf.range(BLOCK)
    y = row[:, None] * BLOCK + inner + shift[:, 1:]
    x = column[:, None] * BLOCK + inner + shift[:, :1]
    y_part = (field[:, None] * cells + (y // BLOCK) * grid_w) * BLOCK**2 + (y % BLOCK) * BLOCK
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

    # An origin is y and x in the upper and lower half of an int32, so that one gather moves both.
    ys, xs = tf.range(grid_h * BLOCK), tf.range(grid_w * BLOCK)
    packed = ys[:, None] * 65536 + xs
    blocks = tf.reshape(packed, [grid_h, BLOCK, grid_w, BLOCK])
    identity = tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), [cells, BLOCK**2])
    origin = tf.tile(identity, [num_fields, 1])
    rows = tf.range(num_fields * cells)

    def step(number, begin, origin):
        end = ends[number]
        moved = tf.gather(tf.reshape(origin, [-1]), source[begin:end])
        # The quickest way to replace some rows; the later of two equal indices wins.
        updated = tf.dynamic_stitch([rows, cell[begin:end]], [origin, moved])
        return number + 1, end, tf.ensure_shape(updated, origin.shape)

    _, _, origin = tf.while_loop(
        lambda number, *_: number < num_steps, step, [0, 0, origin], parallel_iterations=1
    )
    origin = tf.reshape(origin, [num_fields, grid_h, grid_w, BLOCK, BLOCK])
    origin = tf.reshape(
        tf.transpose(origin, [0, 1, 3, 2, 4]), [num_fields, grid_h * BLOCK, grid_w * BLOCK]
    )
    # Low half first in memory: the halves are (x, y).
    fields = tf.bitcast(packed, tf.int16) - tf.bitcast(origin, tf.int16)
    return tf.cast(fields[:, :height, :width], tf.int32)


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
    end, middle = resize - size, (resize - size) // 2
    resized = _to_uint8(_resize(fields, resize))
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    crops = [resized[:, top : top + size, left : left + size] for top, left in corners]
    five = tf.stack(crops)
    return tf.concat([five, _flip(five)], 0)


def clip_image(jpeg: tf.Tensor, size: int) -> tf.Tensor:
    """Decode an image, bring its shorter side to `size` and take the middle square, as CLIP does.

    The resize is bilinear with antialiasing; the longer side becomes
    `int(size * longer / shorter)`, as in Hugging Face's and torchvision's transforms.

    Args:
      jpeg: string scalar, a JPEG.
      size: Side in pixels.

    Returns:
      uint8 `[size, size, 3]` RGB.
    """
    image = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    shape = tf.shape(image)[:2]
    shorter = tf.reduce_min(shape)
    target = shape * size // shorter
    # Columns first, then rows, each rounded to bytes, halves up: so does Pillow, which CLIP was
    # trained with.
    for sides in ([shape[0], target[1]], target):
        resized = tf.image.resize(image, sides, "bilinear", antialias=True)
        image = tf.cast(tf.floor(resized + 0.5), tf.uint8)
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
