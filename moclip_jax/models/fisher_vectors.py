"""Fisher vectors of local motion histograms and a linear classifier: the model for small data.

Descriptors: histograms of flow (HOF) and of motion boundaries (MBH), Dalal et al., "Human Detection
Using Oriented Histograms of Flow and Appearance" (ECCV 2006), in space-time cells as Wang et al.,
"Dense Trajectories and Motion Boundary Descriptors" (IJCV 2013). Computed from a codec's motion
vectors: Kantorov and Laptev, "Efficient Feature Extraction, Encoding and Classification for Action
Recognition" (CVPR 2014). Encoding: Perronnin et al., "Improving the Fisher Kernel for Large-Scale
Image Classification" (ECCV 2010), with positions appended to the descriptors as Sanchez et al.,
"Modeling the Spatial Layout of Images Beyond Spatial Pyramids" (2012).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

# Motion in pixels a frame below which a block is at rest.
_REST = 0.4
# A descriptor counts if its mean motion, and the mean difference to the neighbours, exceed these.
_MIN_MOTION, _MIN_BOUNDARY = 0.3, 0.2
# Where fewer count, the strongest do.
_MIN_DESCRIPTORS, _STRONGEST = 20, 50
# Larger motion counts as this in these thresholds.
_MAX_MOTION = 20.0
_ORIENTATIONS = 8
_POSITION_SCALE = 3.0
_EPS = 1e-9


@dataclass(frozen=True)
class FisherConfig:
    """What the encoder is made of.

    Attributes:
      num_classes: Number of action classes.
      num_features: Length of the feature vector: most principal components of the training videos'
        Fisher vectors that are kept.
      components: Components of each Gaussian mixture.
      descriptor_dim: Principal components of a descriptor that are kept.
      cell: Side of a cell in blocks; a descriptor has 2 x 2 of them.
      cell_frames: Frames of a cell.
      time_cells: Cells in time; a window has `cell_frames * time_cells` fields.
    """

    num_classes: int
    num_features: int = 512
    components: int = 32
    descriptor_dim: int = 24
    cell: int = 2
    cell_frames: int = 5
    time_cells: int = 3

    def __post_init__(self):
        for field, value in vars(self).items():
            if value < 1:
                raise ValueError(f"FisherConfig.{field} must be positive, got {value}")

    @property
    def window(self) -> int:
        """Consecutive motion fields of a segment."""
        return self.cell_frames * self.time_cells

    @property
    def channels(self) -> dict[str, int]:
        """Length of a descriptor of each kind."""
        cells = 4 * self.time_cells
        return {
            "hof": cells * (_ORIENTATIONS + 1),
            "mbh_x": cells * _ORIENTATIONS,
            "mbh_y": cells * _ORIENTATIONS,
        }


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
      encoders: a `FisherEncoder` for each kind of descriptor.
      center: mean Fisher vector of the training videos, `[D]`.
      components: their principal components, scaled, `[D, num_features]`.
      classifier: `nnx.Linear` to the classes.
    """

    def __init__(self, config: FisherConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoders = nnx.Dict(
            {name: FisherEncoder(length, config) for name, length in config.channels.items()}
        )
        size = sum(2 * math.prod(one.means.shape) for one in self.encoders.values())
        self.center = nnx.Param(jnp.zeros(size))
        self.components = nnx.Param(jnp.zeros((size, config.num_features)))
        self.classifier = nnx.Linear(config.num_features, config.num_classes, rngs=rngs)

    def descriptors(self, fields: jax.Array) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """Return the local descriptors of videos.

        Args:
          fields: uint8 `[B, S, window, rows, columns, 2]`, the motion (x, y) of each block in
            pixels a frame plus 128.

        Returns:
          Descriptors by kind, float32 `[B, N, d]`; positions float32 `[B, N, 3]`; and float32
          `[B, N]`, 1 for those that count.

        Raises:
          ValueError: Another shape or dtype.
        """
        config = self.config
        if fields.ndim != 6 or fields.shape[2] != config.window or fields.shape[5] != 2:
            raise ValueError(
                f"FisherNetwork needs fields [B, S, {config.window}, rows, columns, 2], got "
                f"{fields.shape}"
            )
        if fields.dtype != jnp.uint8:
            raise ValueError(f"FisherNetwork needs uint8 fields, got {fields.dtype}")
        batch, segments = fields.shape[:2]
        motion = fields.reshape(-1, *fields.shape[2:]).astype(jnp.float32) - 128
        x, y = motion[..., 0], motion[..., 1]
        magnitude = jnp.hypot(x, y)
        moving = (magnitude >= _REST)[..., None]
        flow = jnp.where(moving, orientation_histogram(x, y), 0)
        histograms = {"hof": jnp.concatenate([flow, ~moving], axis=-1)}
        for name, component in (("mbh_x", x), ("mbh_y", y)):
            padded = jnp.pad(component, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
            across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
            down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
            histograms[name] = orientation_histogram(across, down)
        described = {name: self._in_cells(value) for name, value in histograms.items()}
        boundary = sum(
            jnp.abs(jnp.diff(motion, axis=axis, append=jnp.take(motion, jnp.array([-1]), axis)))
            for axis in (2, 3)
        ).sum(-1)
        energy, edges = (
            self._in_cells(jnp.minimum(value, _MAX_MOTION)[..., None]).mean(-1)
            / (config.cell_frames * config.cell**2)
            for value in (magnitude, boundary)
        )
        rows, columns = energy.shape[1:3]
        place = jnp.meshgrid(
            (jnp.arange(segments) + 0.5) / segments - 0.5,
            jnp.linspace(-0.5, 0.5, rows),
            jnp.linspace(-0.5, 0.5, columns),
            indexing="ij",
        )
        positions = jnp.stack(place, axis=-1).reshape(1, -1, 3)
        energy, edges = (value.reshape(batch, -1) for value in (energy, edges))
        weight = (energy > _MIN_MOTION) & (edges > _MIN_BOUNDARY)
        strongest = jax.lax.top_k(energy, min(_STRONGEST, energy.shape[1]))[0][:, -1:]
        few = weight.sum(1, keepdims=True) < _MIN_DESCRIPTORS
        weight = jnp.where(few, energy >= strongest, weight)
        return (
            {
                name: root_normalized(value.reshape(batch, -1, value.shape[-1]))
                for name, value in described.items()
            },
            jnp.broadcast_to(positions, (batch, *positions.shape[1:])),
            weight.astype(jnp.float32),
        )

    def _in_cells(self, values: jax.Array) -> jax.Array:
        """Sum `[N, window, h, w, c]` in the cells of each place: `[N, h', w', cells * c]`."""
        cell, config = self.config.cell, self.config
        sums = values.reshape(len(values), config.time_cells, config.cell_frames, *values.shape[2:])
        sums = sums.sum(2)
        sums = jax.lax.reduce_window(
            sums, 0.0, jax.lax.add, (1, 1, cell, cell, 1), (1, 1, 1, 1, 1), "VALID"
        )
        height, width = sums.shape[2] - cell, sums.shape[3] - cell
        corners = [
            sums[:, :, top : top + height, left : left + width]
            for top in (0, cell)
            for left in (0, cell)
        ]
        together = jnp.moveaxis(jnp.stack(corners, axis=2), (1, 2), (3, 4))
        return together.reshape(*together.shape[:3], -1)

    def fisher_vectors(self, fields: jax.Array) -> jax.Array:
        """Return float32 `[B, D]`: one vector of unit length for each kind, in a row."""
        described, positions, weight = self.descriptors(fields)
        return jnp.concatenate(
            [
                encoder(described[name], positions, weight)
                for name, encoder in self.encoders.items()
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
        return self.classifier(self.features(fields)[:, 0])


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
