"""Fisher vectors of local motion descriptors and a linear classifier: the model for small data.

The descriptors are those of `motion_descriptors.py`. Encoding: Perronnin et al., "Improving the
Fisher Kernel for Large-Scale Image Classification" (ECCV 2010), with positions appended to the
descriptors as Sanchez et al., "Modeling the Spatial Layout of Images Beyond Spatial Pyramids"
(2012).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.motion_descriptors import (
    BINS,
    Descriptors,
    Places,
    Scale,
    motion_maps,
    without_median,
)

_POSITION_SCALE = 3.0
_EPS = 1e-9
# Descriptors that are encoded at once.
_CHUNK = 512

# Of the posteriors, `[B, K]`, and of their products with x and its square, `[B, K, p + 3]`.
Sums = tuple[jax.Array, jax.Array, jax.Array]


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
        return self.vector(self.sums(descriptors, positions, weight), weight.sum(1))

    def sums(self, descriptors: jax.Array, positions: jax.Array, weight: jax.Array) -> Sums:
        """Return what Fisher vectors are made of, summed over descriptors; as `__call__`."""
        batch = descriptors.shape[:2]
        rows = [value.reshape(-1, value.shape[-1]) for value in (descriptors, positions)]
        x = self.project(*rows)
        posterior = mixture_posterior(x, self.weights[...], self.means[...], self.variances[...])
        x, posterior = x.reshape(*batch, -1), posterior.reshape(*batch, -1) * weight[..., None]
        first = jnp.einsum("bnk,bnd->bkd", posterior, x)
        second = jnp.einsum("bnk,bnd->bkd", posterior, x * x)
        return posterior.sum(1), first, second

    def vector(self, sums: Sums, count: jax.Array) -> jax.Array:
        """Return Fisher vectors of unit length from `sums` over `count` descriptors, `[B]`."""
        count = jnp.maximum(count, 1.0)[:, None, None]
        zeroth, first, second = sums[0][..., None] / count, sums[1] / count, sums[2] / count
        weights, means, variances = (
            self.weights[...][None, :, None],
            self.means[...][None],
            self.variances[...][None],
        )
        mean_gradient = (first - zeroth * means) / jnp.sqrt(variances * weights)
        variance_gradient = (second - 2 * first * means + zeroth * means**2) / variances - zeroth
        variance_gradient /= jnp.sqrt(2 * weights)
        vector = jnp.stack([mean_gradient, variance_gradient], axis=1).reshape(count.shape[0], -1)
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
      mirrored: bool, whether it was fitted to mirror images too.
      classifier: `nnx.Linear` to the classes.
    """

    def __init__(self, config: FisherConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoders = nnx.List(
            [
                nnx.Dict(
                    {
                        kind: FisherEncoder(4 * scale.time_cells * bins, config)
                        for kind, bins in BINS.items()
                    }
                )
                for scale in config.scales
            ]
        )
        each = [encoder.means.shape for kinds in self.encoders for encoder in kinds.values()]
        size = sum(2 * math.prod(shape) for shape in each)
        self.center = nnx.Param(jnp.zeros(size))
        self.components = nnx.Param(jnp.zeros((size, config.num_features)))
        self.mirrored = nnx.Variable(jnp.zeros((), jnp.bool))
        self.classifier = nnx.Linear(config.num_features, config.num_classes, rngs=rngs)

    def places(self, fields: jax.Array) -> list["Places"]:
        """Return the places of the local descriptors of videos at each scale.

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
        maps = motion_maps(without_median(fields.astype(jnp.float32) - 128))
        return [Places(maps, scale) for scale in self.config.scales]

    def draw(self, fields: jax.Array, key: jax.Array, count: int) -> list[Descriptors]:
        """Return at most `count` random descriptors that count, of each video at each scale.

        Args:
          fields: As `places`.
          key: Of the draw.
          count: `N` of the result; where fewer count, the weight of the others is 0.
        """
        drawn = []
        for places in self.places(fields):
            order = jax.random.uniform(key, places.weight.shape) - places.weight
            drawn.append(places.descriptors(jnp.argsort(order, axis=1)[:, :count]))
        return drawn

    def fisher_vectors(self, fields: jax.Array) -> jax.Array:
        """Return float32 `[B, D]`: a vector of unit length for each scale and kind, in a row."""
        graph, state = nnx.split(self)

        def of_video(fields: jax.Array) -> jax.Array:
            network, vectors = nnx.merge(graph, state), []
            for encoders, places in zip(
                network.encoders, network.places(fields[None]), strict=True
            ):
                sums = _sums_of_counting(dict(encoders.items()), places)
                count = places.weight.sum(1)
                vectors += [encoder.vector(sums[kind], count) for kind, encoder in encoders.items()]
            return jnp.concatenate(vectors, axis=-1)[0]

        # One after another, as each has its own number of descriptors that count.
        return jax.lax.map(of_video, fields)

    def features(self, fields: jax.Array) -> jax.Array:
        """Return the features of videos.

        Args:
          fields: As `places`.

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


def _sums_of_counting(encoders: dict[str, FisherEncoder], places: Places) -> dict[str, Sums]:
    """Return each encoder's sums over the descriptors that count, which come first in chunks."""
    videos, number = places.weight.shape
    order = jnp.argsort(-places.weight, axis=1)
    most = places.weight.sum(1).max()
    chunk = min(_CHUNK, number)
    starts = np.arange(0, number, chunk)
    order = jnp.pad(order, ((0, 0), (0, starts[-1] + chunk - number)))

    def add(sums: dict[str, Sums], start: jax.Array) -> tuple[dict[str, Sums], None]:
        def with_chunk(sums: dict[str, Sums]) -> dict[str, Sums]:
            found = places.descriptors(jax.lax.dynamic_slice_in_dim(order, start, chunk, axis=1))
            padding = start + jnp.arange(chunk) >= number
            weight = jnp.where(padding[None], 0.0, found.weight)
            more = {
                kind: encoder.sums(found.histograms[kind], found.positions, weight)
                for kind, encoder in encoders.items()
            }
            return jax.tree.map(jnp.add, sums, more)

        return jax.lax.cond(start < most, with_chunk, lambda sums: sums, sums), None

    def zeros(encoder: FisherEncoder) -> Sums:
        shape = (videos, *encoder.means.shape)
        return jnp.zeros(shape[:2]), jnp.zeros(shape), jnp.zeros(shape)

    empty = {kind: zeros(encoder) for kind, encoder in encoders.items()}
    return jax.lax.scan(add, empty, jnp.asarray(starts))[0]
