"""Fit the motion model for small data: PCA, Gaussian mixtures, and a ridge classifier.

Everything is in closed form but the mixtures, which take a few passes over a sample of descriptors:
seconds for some hundred videos. There is nothing to choose on held-out groups, and a run that was
stopped begins this stage anew.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import network_views
from moclip_jax.input_pipeline.batches import PreparedDataset, view_batches
from moclip_jax.input_pipeline.views import flip_windows
from moclip_jax.models.fisher_vectors import FisherEncoder, FisherNetwork, mixture_posterior
from moclip_jax.runtime import signals
from moclip_jax.runtime.progress import Progress, say

# Descriptors of each kind that principal components and mixtures are fitted to.
_SAMPLE = 40_000
_EM_STEPS = 12
_LEAST_VARIANCE = 1e-3
# Of the ridge classifier, as a share of the mean squared norm of the centred Fisher vectors.
RIDGE = 0.03
_BATCH_SIZE = 8
_POSITION = "position"
_FOLDS = 3


def fit_fisher_network(
    config: ConfigDict, dataset: PreparedDataset, names: Sequence[str], network: FisherNetwork
) -> None:
    """Fit a network in place to the training videos, and to their mirror images if these help.

    Args:
      config: The whole configuration; there are no mirror images if `motion.flip_probability` is 0.
      dataset: The prepared videos.
      names: The training videos.
      network: Its arrays are replaced.
    """
    flips = (False, True) if config.motion.flip_probability > 0 else (False,)
    graph, state = nnx.split(network)
    describe = jax.jit(lambda fields: nnx.merge(graph, state).descriptors(fields))
    rng = np.random.default_rng(config.seed)
    each = -(-_SAMPLE // (len(names) * len(flips)))
    samples: list[dict[str, list[np.ndarray]]] = [
        {kind: [] for kind in (*kinds, _POSITION)} for kinds in network.encoders
    ]
    for fields, _ in _videos(config, dataset, names, flips, "descriptors"):
        for drawn, found in zip(samples, jax.device_get(describe(fields)), strict=True):
            values = found.histograms | {_POSITION: found.positions}
            for row, weight in enumerate(found.weight):
                counting = np.flatnonzero(weight)
                chosen = rng.choice(counting, min(each, len(counting)), replace=False)
                for kind, value in values.items():
                    drawn[kind].append(value[row, chosen])
    for kinds, drawn in zip(network.encoders, samples, strict=True):
        positions = np.concatenate(drawn[_POSITION])
        for kind, encoder in kinds.items():
            _fit_encoder(encoder, np.concatenate(drawn[kind]), positions, rng)

    graph, state = nnx.split(network)
    encode = jax.jit(lambda fields: nnx.merge(graph, state).fisher_vectors(fields))
    vectors = np.empty((len(flips), len(names), network.center.shape[0]), np.float32)
    for number, (fields, index) in enumerate(
        _videos(config, dataset, names, flips, "Fisher vectors")
    ):
        vectors[number % len(flips), index] = encode(fields)
    entries = {entry.name: entry for entry in dataset.index}
    labels = np.array([entries[name].label for name in names])
    if len(flips) > 1:
        groups = np.array([entries[name].group for name in names])
        without, mirrored = mirror_accuracy(vectors, labels, groups, len(dataset.class_names))
        say(
            f"motion: mirror images {'used' if mirrored >= without else 'left out'}: with them "
            f"{100 * mirrored:.1f} % of held-out groups are right, without {100 * without:.1f}"
        )
        vectors = vectors if mirrored >= without else vectors[:1]
    fit_classifier(network, np.concatenate(vectors), np.tile(labels, len(vectors)))


def mirror_accuracy(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int
) -> tuple[float, float]:
    """Return the accuracy on held-out groups without and with mirror images in training.

    Mirror images help, unless the mirror image of one class is another. The classifier is that of
    `fit_classifier`, in its dual form, and each third of the groups is held out in turn.

    Args:
      vectors: float32 `[2, n, D]`, Fisher vectors of videos and of their mirror images.
      labels: int `[n]`.
      groups: `[n]`, names of groups that must not be on both sides.
      num_classes: Number of classes.
    """
    flat = np.concatenate(vectors)
    flat = flat - flat.mean(0)
    gram = (flat @ flat.T).astype(np.float64)
    targets = 2.0 * np.eye(num_classes)[labels] - 1
    fold = np.unique(groups, return_inverse=True)[1] % _FOLDS
    right = np.zeros(2)
    for held in (fold == number for number in range(_FOLDS)):
        for mirrored in (0, 1):
            rows = np.concatenate([np.flatnonzero(~held), len(labels) + np.flatnonzero(~held)])
            rows = rows[: len(rows) // (2 - mirrored)]
            own = rows % len(labels)
            weight = class_weights(labels[own], num_classes)
            bias = np.average(targets[own], axis=0, weights=weight)
            ridge = RIDGE * np.mean(np.diag(gram)[rows]) / weight
            dual = np.linalg.solve(gram[np.ix_(rows, rows)] + np.diag(ridge), targets[own] - bias)
            scores = gram[np.ix_(np.flatnonzero(held), rows)] @ dual + bias
            right[mirrored] += (scores.argmax(1) == labels[held]).sum()
    without, with_mirrored = (right / len(labels)).tolist()
    return without, with_mirrored


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a weight for each video, so that classes count alike; they sum to the videos."""
    weight = (1 / np.maximum(np.bincount(labels, minlength=num_classes), 1))[labels]
    return weight * len(labels) / weight.sum()


def _videos(
    config: ConfigDict,
    dataset: PreparedDataset,
    names: Sequence[str],
    flips: Sequence[bool],
    what: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield windows uint8 `[b, S, window, rows, columns, 2]` and places in `names`, int32 `[b]`.

    Every batch comes once for each of `flips`.
    """
    views = network_views(config, num_segments=config.motion.num_segments)
    batches = view_batches(
        dataset, names, motion=views, frames=None, batch_size=_BATCH_SIZE, seed=config.seed
    )
    progress = Progress(-(-len(names) // _BATCH_SIZE), f"motion: {what}", "batches")
    for batch in batches.as_numpy_iterator():
        signals.stop_if_requested()
        mask = batch["mask"]
        for flip in flips:
            fields = flip_windows(batch["motion"][:, 0]) if flip else batch["motion"][:, 0]
            yield fields[mask], batch["index"][mask]
        progress.advance()
    progress.done()


def _fit_encoder(
    encoder: FisherEncoder, descriptors: np.ndarray, positions: np.ndarray, rng: np.random.Generator
) -> None:
    size = encoder.projection.shape[1]
    mean = descriptors.mean(0)
    variances, axes = np.linalg.eigh(np.cov((descriptors - mean).T))
    variances, axes = variances[::-1][:size], axes[:, ::-1][:, :size]
    encoder.mean[...] = jnp.asarray(mean)
    encoder.projection[...] = jnp.asarray(axes / np.sqrt(variances + 1e-4 * variances[0]))
    x = encoder.project(jnp.asarray(descriptors), jnp.asarray(positions))
    weights, means, spread = fit_mixture(x, len(encoder.weights[...]), rng)
    encoder.weights[...], encoder.means[...], encoder.variances[...] = weights, means, spread


def fit_mixture(
    x: jax.Array, components: int, rng: np.random.Generator
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fit a mixture of Gaussians with diagonal covariance by expectation maximization.

    Args:
      x: float32 `[n, d]`.
      components: Number of Gaussians, at most `n`.
      rng: Chooses the samples that means start from.

    Returns:
      Weights `[K]`, means `[K, d]` and variances `[K, d]`.
    """

    @jax.jit
    def step(weights, means, variances):
        posterior = mixture_posterior(x, weights, means, variances)
        count = posterior.sum(0) + 1e-6
        means = posterior.T @ x / count[:, None]
        second = posterior.T @ (x * x) / count[:, None]
        return count / count.sum(), means, jnp.maximum(second - means**2, _LEAST_VARIANCE)

    weights = jnp.full(components, 1 / components)
    means = x[rng.choice(len(x), components, replace=False)]
    variances = jnp.tile(x.var(0), (components, 1))
    for _ in range(_EM_STEPS):
        weights, means, variances = step(weights, means, variances)
    return weights, means, variances


def fit_classifier(network: FisherNetwork, vectors: np.ndarray, labels: np.ndarray) -> None:
    """Set principal components and the classifier: ridge regression on one-against-all targets."""
    size = network.config.num_features
    center = vectors.mean(0)
    centered = vectors - center
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    kept = min(size, len(scale))
    # Features have a mean square of one, so that a fusion head sees them as large as others.
    energy = np.mean(np.sum(centered**2, axis=1))
    components = np.zeros((vectors.shape[1], size), np.float32)
    components[:, :kept] = axes[:kept].T * np.sqrt(size / energy)
    features = centered @ components
    targets = 2.0 * np.eye(network.config.num_classes)[labels] - 1
    weight = class_weights(labels, network.config.num_classes)
    bias = np.average(targets, axis=0, weights=weight)
    gram = (features * weight[:, None]).T @ features + RIDGE * size * np.eye(size)
    kernel = np.linalg.solve(gram, (features * weight[:, None]).T @ (targets - bias))
    network.center[...], network.components[...] = jnp.asarray(center), jnp.asarray(components)
    network.classifier.kernel[...] = jnp.asarray(kernel, jnp.float32)
    network.classifier.bias = nnx.Param(jnp.asarray(bias, jnp.float32))
