"""Local descriptors of block motion: histograms of flow (HOF) and of motion boundaries (MBH).

Dalal et al., "Human Detection Using Oriented Histograms of Flow and Appearance" (ECCV 2006), in
space-time cells as Wang et al., "Dense Trajectories and Motion Boundary Descriptors" (IJCV 2013).
Computed from a codec's motion vectors: Kantorov and Laptev, "Efficient Feature Extraction, Encoding
and Classification for Action Recognition" (CVPR 2014).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Motion in pixels a frame below which a block is at rest.
_REST = 0.4
# A descriptor counts if its mean motion, and the mean difference to the neighbours, exceed these.
_MIN_MOTION, _MIN_BOUNDARY = 0.3, 0.2
# Larger motion counts as this in these thresholds.
_MAX_MOTION = 20.0
# Where fewer count, the strongest do.
_MIN_DESCRIPTORS, _STRONGEST = 20, 50
_ORIENTATIONS = 8
# Kind of histogram -> its bins; flow has one for blocks at rest.
BINS = {"hof": _ORIENTATIONS + 1, "mbh_x": _ORIENTATIONS, "mbh_y": _ORIENTATIONS}


class Scale(NamedTuple):
    """Size of a descriptor, which has 2 x 2 cells in space.

    Attributes:
      cell: Side of a cell in blocks.
      cell_frames: Frames of a cell.
      time_cells: Cells in time.
    """

    cell: int
    cell_frames: int
    time_cells: int

    @property
    def frames(self) -> int:
        """Frames of a descriptor."""
        return self.cell_frames * self.time_cells


class Descriptors(NamedTuple):
    """Local descriptors of videos at one scale.

    Attributes:
      histograms: By kind, float32 `[B, N, d]`.
      positions: float32 `[B, N, 3]`, time, row and column, each in [-0.5, 0.5].
      weight: float32 `[B, N]`, 1 for a descriptor that counts and 0 for another.
    """

    histograms: dict[str, jax.Array]
    positions: jax.Array
    weight: jax.Array


def without_median(motion: jax.Array) -> jax.Array:
    """Subtract each frame's median motion, which is the camera's where most blocks are background.

    Args:
      motion: float32 `[B, S, window, rows, columns, 2]`, (x, y) in pixels a frame.
    """
    blocks = motion.reshape(*motion.shape[:3], -1, 2)
    ordered, middle = jnp.sort(blocks, axis=3), (blocks.shape[3] - 1) / 2
    below, above = ordered[:, :, :, int(middle)], ordered[:, :, :, math.ceil(middle)]
    return motion - ((below + above) / 2)[:, :, :, None, None]


def motion_maps(motion: jax.Array) -> dict[str, jax.Array]:
    """Return what descriptors sum in their cells.

    Args:
      motion: float32 `[B, S, window, rows, columns, 2]`, (x, y) in pixels a frame.

    Returns:
      By kind, histograms of every block, and `motion` and `boundary`, the magnitude and the
      difference to the neighbours; float32 `[B, S, window, rows, columns, bins]`.
    """
    x, y = motion[..., 0], motion[..., 1]
    magnitude = jnp.hypot(x, y)
    moving = (magnitude >= _REST)[..., None]
    flow = jnp.where(moving, orientation_histogram(x, y), 0)
    maps = {"hof": jnp.concatenate([flow, ~moving], axis=-1)}
    for kind, component in (("mbh_x", x), ("mbh_y", y)):
        padded = jnp.pad(component, ((0, 0),) * 3 + ((1, 1), (1, 1)), mode="edge")
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        maps[kind] = orientation_histogram(across, down)
    across, down = (
        jnp.abs(jnp.diff(motion, axis=axis, append=jnp.take(motion, jnp.array([-1]), axis)))
        for axis in (4, 3)
    )
    for name, value in (("motion", magnitude), ("boundary", (across + down).sum(-1))):
        maps[name] = jnp.minimum(value, _MAX_MOTION)[..., None]
    return maps


class Places:
    """Every block of every window at one scale, where a descriptor may be computed.

    Most blocks are at rest and do not count, so descriptors are computed where they are wanted.

    Attributes:
      weight: float32 `[B, N]`, 1 where a descriptor counts.
    """

    def __init__(self, maps: dict[str, jax.Array], scale: Scale):
        """Sum the maps from `motion_maps` in cells; frames are those in the middle of a window."""
        cells = {name: _in_cells(value, scale) for name, value in maps.items()}
        energy, edges = (
            _around(cells.pop(name), scale.cell).mean((2, 5, 6))
            / (scale.cell_frames * scale.cell**2)
            for name in ("motion", "boundary")
        )
        self._shape = energy.shape[1:]
        energy, edges = (value.reshape(len(energy), -1) for value in (energy, edges))
        weight = (energy > _MIN_MOTION) & (edges > _MIN_BOUNDARY)
        # Sorted, because TensorFlow cannot read the StableHLO of `top_k` in a SavedModel.
        strongest = jnp.sort(energy, axis=1)[:, -min(_STRONGEST, energy.shape[1]), None]
        few = weight.sum(1, keepdims=True) < _MIN_DESCRIPTORS
        self.weight = jnp.where(few, energy >= strongest, weight).astype(jnp.float32)
        self._cells, self._cell = cells, scale.cell

    def descriptors(self, index: jax.Array) -> Descriptors:
        """Return the descriptors at the places `index`, int32 `[B, N]`, of the windows in a row."""
        segments, height, width = self._shape
        axes = [(np.arange(segments) + 0.5) / segments - 0.5]
        axes += [np.linspace(-0.5, 0.5, length) for length in (height, width)]
        positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        segment, row, column = jnp.unravel_index(index, self._shape)
        cell = self._cell
        corners = [(row + top, column + left) for top in (0, cell) for left in (0, cell)]
        rows, columns = (jnp.stack(each, axis=-1) for each in zip(*corners, strict=True))

        def gather(cells: jax.Array) -> jax.Array:
            """Take `[B, N, t, 4, c]` from `[B, S, t, h, w, c]`."""
            video = jnp.arange(len(index))[:, None, None]
            found = cells.transpose(0, 1, 3, 4, 2, 5)[video, segment[..., None], rows, columns]
            return jnp.swapaxes(found, 2, 3)

        histograms = {kind: gather(cells) for kind, cells in self._cells.items()}
        return Descriptors(
            {kind: root_normalized(v.reshape(*index.shape, -1)) for kind, v in histograms.items()},
            jnp.asarray(positions, jnp.float32)[index],
            jnp.take_along_axis(self.weight, index, axis=1),
        )


def _in_cells(values: jax.Array, scale: Scale) -> jax.Array:
    """Sum `[B, S, window, rows, columns, c]` in cells: `[B, S, time_cells, h, w, c]`."""
    first = (values.shape[2] - scale.frames) // 2
    values = values[:, :, first : first + scale.frames]
    sums = values.reshape(
        *values.shape[:2], scale.time_cells, scale.cell_frames, *values.shape[3:]
    ).sum(3)
    for axis in (3, 4):
        length = sums.shape[axis] - scale.cell + 1
        # Slices: XLA's CPU backend takes far longer for `reduce_window`.
        parts = [jax.lax.slice_in_dim(sums, k, k + length, axis=axis) for k in range(scale.cell)]
        sums = functools.reduce(jnp.add, parts)
    return sums


def _around(cells: jax.Array, cell: int) -> jax.Array:
    """Return the four cells of every place: `[B, S, t, h, w, c]` -> `[B, S, t, h', w', 4, c]`."""
    height, width = cells.shape[3] - cell, cells.shape[4] - cell
    corners = [
        cells[:, :, :, top : top + height, left : left + width]
        for top in (0, cell)
        for left in (0, cell)
    ]
    return jnp.stack(corners, axis=5)


def orientation_histogram(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the magnitude shared between the two nearest of eight orientations, `[..., 8]`."""
    angle = jnp.arctan2(y, x) * (_ORIENTATIONS / (2 * jnp.pi)) % _ORIENTATIONS
    bins = jnp.arange(_ORIENTATIONS).reshape((1,) * x.ndim + (_ORIENTATIONS,))
    distance = jnp.abs(angle[..., None] - bins)
    distance = jnp.minimum(distance, _ORIENTATIONS - distance)
    return jnp.maximum(1 - distance, 0) * jnp.hypot(x, y)[..., None]


def root_normalized(histograms: jax.Array) -> jax.Array:
    """Return the square root of histograms of sum one (RootSIFT's normalisation), `[..., d]`."""
    return jnp.sqrt(histograms / (histograms.sum(-1, keepdims=True) + 1e-3))
