"""Fisher vectors of local motion histograms and a linear classifier: the model for small data.

Descriptors: histograms of flow (HOF) and of motion boundaries (MBH), Dalal et al., "Human Detection
Using Oriented Histograms of Flow and Appearance" (ECCV 2006), in space-time cells as Wang et al.,
"Dense Trajectories and Motion Boundary Descriptors" (IJCV 2013). Computed from a codec's motion
vectors: Kantorov and Laptev, "Efficient Feature Extraction, Encoding and Classification for Action
Recognition" (CVPR 2014). Encoding: Perronnin et al., "Improving the Fisher Kernel for Large-Scale
Image Classification" (ECCV 2010), with positions appended to the descriptors as Sanchez et al.,
"Modeling the Spatial Layout of Images Beyond Spatial Pyramids" (2012).
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

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
_BINS = {"hof": _ORIENTATIONS + 1, "mbh_x": _ORIENTATIONS, "mbh_y": _ORIENTATIONS}
_POSITION_SCALE = 3.0
_EPS = 1e-9


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


@dataclass(frozen=True)
class FisherConfig:
    """What the encoder is made of.

    Attributes:
      num_classes: Number of action classes.
      num_features: Length of the feature vector: most principal components of the training videos'
        Fisher vectors that are kept.
      components: Components of each Gaussian mixture.
      descriptor_dim: Principal components of a descriptor that are kept.
      scales: Sizes of the descriptors.
    """

    num_classes: int
    num_features: int = 512
    components: int = 32
    descriptor_dim: int = 24
    scales: tuple[Scale, ...] = (Scale(1, 3, 3), Scale(2, 5, 3), Scale(3, 8, 2))

    def __post_init__(self):
        for field in ("num_classes", "num_features", "components", "descriptor_dim"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"FisherConfig.{field} must be positive, got {getattr(self, field)}"
                )

    @property
    def window(self) -> int:
        """Consecutive motion fields of a segment."""
        return max(scale.frames for scale in self.scales)


class FisherEncoder(nnx.Module):
    """Fisher vector of one kind of descriptors: PCA, Gaussian mixture, power and L2 normalisation.

    Attributes:
      mean: Of the descriptors, `[d]`.
      projection: Whitening principal components, `[d, p]`.
      weights: Of the mixture, `[K]`.
      means: `[K, p + 3]`.
      variances: `[K, p + 3]`.
    """

    def __init__(self, length: int, config: FisherConfig):
        size = min(config.descriptor_dim, length)
        self.mean = nnx.Param(jnp.zeros(length))
        self.projection = nnx.Param(jnp.eye(length, size))
        self.weights = nnx.Param(jnp.full(config.components, 1 / config.components))
        self.means = nnx.Param(jnp.zeros((config.components, size + 3)))
        self.variances = nnx.Param(jnp.ones((config.components, size + 3)))

    def project(self, descriptors: jax.Array, positions: jax.Array) -> jax.Array:
        """Return whitened descriptors with their positions: `[n, d]`, `[n, 3]` -> `[n, p + 3]`."""
        whitened = (descriptors - self.mean[...][None]) @ self.projection[...]
        return jnp.concatenate([whitened, _POSITION_SCALE * positions], axis=-1)

    def __call__(
        self, descriptors: jax.Array, positions: jax.Array, weight: jax.Array
    ) -> jax.Array:
        """Return Fisher vectors of unit length, float32 `[B, 2 * K * (p + 3)]`.

        Args:
          descriptors: float32 `[B, N, d]`.
          positions: float32 `[B, N, 3]`, time, row and column, each in [-0.5, 0.5].
          weight: float32 `[B, N]`, 1 for a descriptor that counts and 0 for another.
        """
        batch = descriptors.shape[:2]
        rows = [value.reshape(-1, value.shape[-1]) for value in (descriptors, positions)]
        x = self.project(*rows)
        weights, means, variances = (
            value[...] for value in (self.weights, self.means, self.variances)
        )
        posterior = mixture_posterior(x, weights, means, variances)
        x, posterior = x.reshape(*batch, -1), posterior.reshape(*batch, -1) * weight[..., None]
        count = jnp.maximum(weight.sum(1), 1.0)[:, None, None]
        zeroth = posterior.sum(1)[..., None] / count
        first = jnp.einsum("bnk,bnd->bkd", posterior, x) / count
        second = jnp.einsum("bnk,bnd->bkd", posterior, x * x) / count
        weights, means, variances = weights[None, :, None], means[None], variances[None]
        mean_gradient = (first - zeroth * means) / jnp.sqrt(variances * weights)
        variance_gradient = (second - 2 * first * means + zeroth * means**2) / variances - zeroth
        variance_gradient /= jnp.sqrt(2 * weights)
        vector = jnp.stack([mean_gradient, variance_gradient], axis=1).reshape(len(x), -1)
        vector = jnp.sign(vector) * jnp.sqrt(jnp.abs(vector))
        return vector / (jnp.linalg.norm(vector, axis=-1, keepdims=True) + _EPS)


def mixture_posterior(
    x: jax.Array, weights: jax.Array, means: jax.Array, variances: jax.Array
) -> jax.Array:
    """Return posteriors `[n, K]` of a mixture of Gaussians with diagonal covariance.

    Args:
      x: `[n, d]`.
      weights: `[K]`.
      means: `[K, d]`.
      variances: `[K, d]`.
    """
    precision = 1 / variances
    constant = jnp.log(weights) - 0.5 * (jnp.log(variances) + means**2 * precision).sum(-1)
    distance = (x * x) @ precision.T - 2 * (x @ (means * precision).T)
    return jax.nn.softmax(constant[None] - 0.5 * distance)


class FisherNetwork(nnx.Module):
    """Classifies a video from windows of block motion.

    `training/fisher.py` fits its arrays; no gradient is involved.

    Attributes:
      config: its `FisherConfig`.
      encoders: of each scale, a `FisherEncoder` for each kind of histogram.
      center: mean Fisher vector of the training videos, `[D]`.
      components: their principal components, scaled, `[D, num_features]`.
      classifier: `nnx.Linear` to the classes.
    """

    def __init__(self, config: FisherConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoders = nnx.List(
            [
                nnx.Dict(
                    {
                        kind: FisherEncoder(4 * scale.time_cells * bins, config)
                        for kind, bins in _BINS.items()
                    }
                )
                for scale in config.scales
            ]
        )
        each = [encoder.means.shape for kinds in self.encoders for encoder in kinds.values()]
        size = sum(2 * math.prod(shape) for shape in each)
        self.center = nnx.Param(jnp.zeros(size))
        self.components = nnx.Param(jnp.zeros((size, config.num_features)))
        self.classifier = nnx.Linear(config.num_features, config.num_classes, rngs=rngs)

    def descriptors(self, fields: jax.Array) -> list[Descriptors]:
        """Return the local descriptors of videos at each scale.

        Args:
          fields: uint8 `[B, S, window, rows, columns, 2]`, the motion (x, y) of each block in
            pixels a frame plus 128.

        Raises:
          ValueError: Another shape or dtype.
        """
        window = self.config.window
        if fields.ndim != 6 or fields.shape[2] != window or fields.shape[5] != 2:
            raise ValueError(
                f"FisherNetwork needs fields [B, S, {window}, rows, columns, 2], got {fields.shape}"
            )
        if fields.dtype != jnp.uint8:
            raise ValueError(f"FisherNetwork needs uint8 fields, got {fields.dtype}")
        maps = motion_maps(fields.astype(jnp.float32) - 128)
        return [describe(maps, scale) for scale in self.config.scales]

    def fisher_vectors(self, fields: jax.Array) -> jax.Array:
        """Return float32 `[B, D]`: a vector of unit length for each scale and kind, in a row."""
        return jnp.concatenate(
            [
                encoder(found.histograms[kind], found.positions, found.weight)
                for encoders, found in zip(self.encoders, self.descriptors(fields), strict=True)
                for kind, encoder in encoders.items()
            ],
            axis=-1,
        )

    def features(self, fields: jax.Array) -> jax.Array:
        """Return the features of videos.

        Args:
          fields: As `descriptors`.

        Returns:
          float32 `[B, 1, num_features]`, one vector for all segments.
        """
        centered = self.fisher_vectors(fields) - self.center[...][None]
        return (centered @ self.components[...])[:, None]

    def __call__(self, fields: jax.Array) -> jax.Array:
        """Return logits, float32 `[B, num_classes]`."""
        return self.logits(self.features(fields))

    def logits(self, features: jax.Array) -> jax.Array:
        """Features float32 `[B, 1, num_features]` -> logits float32 `[B, num_classes]`."""
        return self.classifier(features[:, 0])


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


def describe(maps: dict[str, jax.Array], scale: Scale) -> Descriptors:
    """Return the descriptors at every block of every window.

    Args:
      maps: From `motion_maps`.
      scale: Its frames are those in the middle of the window.
    """
    batch, segments = maps["hof"].shape[:2]
    in_cells = {name: _in_cells(value, scale) for name, value in maps.items()}
    energy, edges = (
        in_cells.pop(name).mean(-1) / (scale.cell_frames * scale.cell**2)
        for name in ("motion", "boundary")
    )
    axes = [(jnp.arange(segments) + 0.5) / segments - 0.5]
    axes += [jnp.linspace(-0.5, 0.5, length) for length in energy.shape[1:]]
    positions = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(1, -1, 3)
    energy, edges = (value.reshape(batch, -1) for value in (energy, edges))
    weight = (energy > _MIN_MOTION) & (edges > _MIN_BOUNDARY)
    strongest = jax.lax.top_k(energy, min(_STRONGEST, energy.shape[1]))[0][:, -1:]
    few = weight.sum(1, keepdims=True) < _MIN_DESCRIPTORS
    weight = jnp.where(few, energy >= strongest, weight)
    return Descriptors(
        {
            kind: root_normalized(value.reshape(batch, -1, value.shape[-1]))
            for kind, value in in_cells.items()
        },
        jnp.broadcast_to(positions, (batch, *positions.shape[1:])),
        weight.astype(jnp.float32),
    )


def _in_cells(values: jax.Array, scale: Scale) -> jax.Array:
    """Sum `[B, S, window, h, w, c]` in the cells of each place: `[B * S, h', w', cells * c]`."""
    cell, first = scale.cell, (values.shape[2] - scale.frames) // 2
    values = values[:, :, first : first + scale.frames]
    sums = values.reshape(-1, scale.time_cells, scale.cell_frames, *values.shape[3:]).sum(2)
    for axis in (2, 3):
        length = sums.shape[axis] - cell + 1
        # Slices: XLA's CPU backend takes far longer for `reduce_window`.
        parts = [jax.lax.slice_in_dim(sums, k, k + length, axis=axis) for k in range(cell)]
        sums = functools.reduce(jnp.add, parts)
    height, width = sums.shape[2] - cell, sums.shape[3] - cell
    corners = [
        sums[:, :, top : top + height, left : left + width]
        for top in (0, cell)
        for left in (0, cell)
    ]
    together = jnp.moveaxis(jnp.stack(corners, axis=2), (1, 2), (3, 4))
    return together.reshape(*together.shape[:3], -1)


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
