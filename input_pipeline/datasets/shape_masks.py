"""The shapes of the embedded data set, as masks of the tile that bears them."""

import functools

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
# Pixels a side of the stored tile, which spans -1..1 in tile coordinates.
TILE_PIXELS = 80


@functools.cache
def shape_mask(shape: str) -> np.ndarray:
    """Return how much of each pixel of the tile a shape covers.

    Args:
      shape: one of `SHAPES`.

    Returns:
      float32 [TILE_PIXELS, TILE_PIXELS], 0 to 1.
    """
    fine = 4
    axis = (np.arange(TILE_PIXELS * fine) + 0.5) / (TILE_PIXELS * fine) * 2 - 1
    x, y = axis[None, :], axis[:, None]
    if shape == "circle":
        inside = np.hypot(x, y) < 0.66
    elif shape == "ring":
        distance = np.hypot(x, y)
        inside = (distance < 0.84) & (distance > 0.50)
    else:
        # Even-odd rule: count the edges that a ray to the right crosses.
        inside = np.zeros((axis.size, axis.size), bool)
        corners = _polygon(shape)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y0 == y1:
                continue
            crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y0 > y) != (y1 > y)) & (x < crossing)
    blocks = inside.reshape(TILE_PIXELS, fine, TILE_PIXELS, fine)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def _polygon(shape: str) -> np.ndarray:
    """Return the corners [n, 2] of a shape that has any, in tile coordinates."""
    if shape == "cross":
        arm, tip = 0.24, 0.82
        quarter = np.array([(arm, tip), (arm, arm), (tip, arm)])
        turned = [quarter]
        for _ in range(3):
            turned.append(turned[-1] @ np.array([(0, -1), (1, 0)]))
        return np.concatenate(turned)
    corners, radii = {
        "square": (4, (0.86,)),
        "triangle": (3, (0.88,)),
        "star": (10, (0.9, 0.38)),
    }[shape]
    angles = 2 * np.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=-1)
