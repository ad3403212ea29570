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
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from moclip_jax.config import network_views
from moclip_jax.input_pipeline.batches import PreparedDataset, view_batches
from moclip_jax.input_pipeline.views import flip_windows
from moclip_jax.models.fisher_vectors import FisherEncoder, FisherNetwork, mixture_posterior
from moclip_jax.runtime import signals
from moclip_jax.runtime.progress import Progress, say
from moclip_jax.training.losses import is_right
from moclip_jax.training.metrics import regression_targets

# Descriptors of each kind that principal components and mixtures are fitted to.
_SAMPLE = 40_000
_EM_STEPS = 12
_LEAST_VARIANCE = 1e-3
# Of the ridge classifier, as a share of the mean squared norm of the centred Fisher vectors.
RIDGE = 0.03
_BATCH_SIZE = 8
_POSITION = "position"
_FOLDS = 3
# Bounds for where all scores are right, or none is better than another.
_LOG_TEMPERATURES = (-5.0, 5.0)


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
    rng = np.random.default_rng(config.seed)
    each = -(-_SAMPLE // len(names))
    # The state is an argument, so that a compiled program serves every run.
    draw = jax.jit(lambda state, fields, key: nnx.merge(graph, state).draw(fields, key, each))
    samples: list[dict[str, list[np.ndarray]]] = [
        {kind: [] for kind in (*kinds, _POSITION)} for kinds in network.encoders
    ]
    for number, (fields, _) in enumerate(_videos(config, dataset, names, flips, "descriptors")):
        # Half of the videos as they are, the other half mirrored.
        if number % len(flips) != number // len(flips) % len(flips):
            continue
        key = jax.random.key(rng.integers(2**32, dtype=np.uint32))
        for drawn, found in zip(samples, jax.device_get(draw(state, fields, key)), strict=True):
            counting = found.weight > 0
            for kind, value in (found.histograms | {_POSITION: found.positions}).items():
                drawn[kind].append(value[counting])
    for kinds, drawn in zip(network.encoders, samples, strict=True):
        positions = np.concatenate(drawn[_POSITION])
        for kind, encoder in kinds.items():
            _fit_encoder(encoder, np.concatenate(drawn[kind]), positions, rng)

    graph, state = nnx.split(network)
    encode = jax.jit(lambda state, fields: nnx.merge(graph, state).fisher_vectors(fields))
    vectors = np.empty((len(flips), len(names), network.center.shape[0]), np.float32)
    for number, (fields, index) in enumerate(
        _videos(config, dataset, names, flips, "Fisher vectors")
    ):
        vectors[number % len(flips), index] = encode(state, fields)
    entries = {entry.name: entry for entry in dataset.index}
    groups = np.array([entries[name].group for name in names])
    labels, num_classes = dataset.labels(names), len(dataset.class_names)
    scores = [
        held_out_scores(vectors[:copies], labels, groups, num_classes)
        for copies in range(1, len(flips) + 1)
    ]
    accuracy = [float(np.mean(is_right(each, labels))) for each in scores]
    if len(flips) > 1:
        used = accuracy[1] >= accuracy[0]
        say(
            f"motion: mirror images {'used' if used else 'left out'}: with them "
            f"{100 * accuracy[1]:.1f} % of held-out groups are right, without "
            f"{100 * accuracy[0]:.1f}"
        )
        vectors, scores = (vectors, scores[1:]) if used else (vectors[:1], scores[:1])
    network.mirrored[...] = jnp.asarray(len(vectors) > 1)
    fit_classifier(
        network,
        np.concatenate(vectors),
        np.concatenate([labels] * len(vectors)),
        fit_temperature(scores[0], labels),
    )


def fisher_passes(config: ConfigDict) -> int:
    """Return how often the descriptors of a training video are computed: drawn from, and encoded.

    Mirror images are encoded too.
    """
    return 3 if config.motion.flip_probability > 0 else 2


def held_out_scores(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return scores of the classifier on held-out groups, float64 `[n, classes]`.

    The classifier is that of `fit_classifier`, on all principal components, and each third of the
    groups is held out in turn. If all videos are of one group, single videos are held out.

    Args:
      vectors: float32 `[copies, n, D]`, Fisher vectors of videos and, as another copy to train on,
        of their mirror images.
      labels: int `[n]`, or multi-hot `[n, classes]`.
      groups: `[n]`, names of groups that must not be on both sides.
      num_classes: Number of classes.
    """
    flat = np.concatenate(vectors)
    x, _ = principal_components(flat, flat.mean(0))
    number = np.unique(groups, return_inverse=True)[1]
    fold = (number if number.any() else np.arange(len(labels))) % _FOLDS
    scores = np.empty((len(labels), num_classes))
    for held in (fold == number for number in range(_FOLDS)):
        rows = np.flatnonzero(np.tile(~held, len(vectors)))
        kernel, bias = solve_ridge(x[rows], labels[rows % len(labels)], num_classes)
        scores[held] = x[: len(labels)][held] @ kernel + bias
    return scores


def principal_components(x: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the components float64 `[n, r]` of `x`, of mean squared length 1, and the axes.

    Ridge regression does not change under a rotation, and there are at most as many components as
    samples. The largest come first. The axes are `[D, r]`; components are `(x - center) @ axes`.
    """
    centered = np.asarray(x - center, np.float64)
    # Of the two matrices of products the smaller one: for few samples of many numbers its
    # eigenvectors are found several times as fast as singular vectors.
    few = len(centered) < centered.shape[1]
    squared, vectors = np.linalg.eigh(centered @ centered.T if few else centered.T @ centered)
    # Below, rounding outweighs what is left of the component.
    kept = squared > max(1e-12 * squared[-1], np.finfo(float).tiny)
    # The largest first.
    axes, squared = vectors[:, kept][:, ::-1], squared[kept][::-1]
    if few:
        axes = centered.T @ (axes / np.sqrt(squared))
    axes = axes / max(np.sqrt(np.mean(np.square(centered).sum(axis=1))), 1e-12)
    return centered @ axes, axes


def solve_ridge(
    x: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit ridge regression on one-against-all targets, in which all classes count alike.

    The intercept is not penalized. It is solved for by centring `x` and the targets on their
    weighted means: where classes are unbalanced, these are far from the plain means.

    Args:
      x: float `[n, d]`, of mean squared length 1, which the strength of the penalty refers to.
      labels: int `[n]`, or multi-hot `[n, classes]`.
      num_classes: Number of classes.

    Returns:
      Kernel float64 `[d, classes]` and bias `[classes]`.
    """
    targets, weight = regression_targets(labels, num_classes)
    mean, middle = (np.average(each, axis=0, weights=weight) for each in (x, targets))
    weighted = (x - mean).T * weight
    gram = weighted @ (x - mean) + RIDGE * np.eye(x.shape[1])
    kernel = np.linalg.solve(gram, weighted @ (targets - middle))
    return kernel, middle - mean @ kernel


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return what to divide scores by so that their softmax or, of multi-hot labels, sigmoid fits.

    It is the temperature of least negative log-likelihood: Guo et al., "On Calibration of Modern
    Neural Networks" (ICML 2017).

    Args:
      scores: float `[n, classes]`, of videos that the classifier was not fitted to.
      labels: int `[n]`, or multi-hot `[n, classes]`.
    """

    def loss(log_temperature: float) -> float:
        logits = scores / np.exp(log_temperature)
        if labels.ndim == 2:
            return float(np.mean(np.logaddexp(0, logits) - labels * logits))
        own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return float(np.mean(logsumexp(logits, axis=1) - own))

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


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
    weights = jnp.full(components, 1 / components)
    means = x[rng.choice(len(x), components, replace=False)]
    variances = jnp.tile(x.var(0), (components, 1))
    for _ in range(_EM_STEPS):
        weights, means, variances = _em_step(x, weights, means, variances)
    return weights, means, variances


@jax.jit
def _em_step(
    x: jax.Array, weights: jax.Array, means: jax.Array, variances: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    posterior = mixture_posterior(x, weights, means, variances)
    count = posterior.sum(0) + 1e-6
    means = posterior.T @ x / count[:, None]
    second = posterior.T @ (x * x) / count[:, None]
    return count / count.sum(), means, jnp.maximum(second - means**2, _LEAST_VARIANCE)


def fit_classifier(
    network: FisherNetwork, vectors: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> None:
    """Set principal components and the classifier: ridge regression on one-against-all targets.

    Its scores are divided by the temperature, which changes no order.
    """
    size = network.config.num_features
    center = vectors.mean(0)
    x, axes = (each[:, :size] for each in principal_components(vectors, center))
    kernel, bias = solve_ridge(x, labels, network.config.num_classes)
    # Features have a mean square of one, so that a fusion head sees them as large as others.
    components = np.zeros((vectors.shape[1], size), np.float32)
    components[:, : axes.shape[1]] = axes * np.sqrt(size)
    kernel = np.pad(kernel / np.sqrt(size), ((0, size - len(kernel)), (0, 0)))
    network.center[...], network.components[...] = jnp.asarray(center), jnp.asarray(components)
    network.classifier.kernel[...] = jnp.asarray(kernel / temperature, jnp.float32)
    network.classifier.bias = nnx.Param(jnp.asarray(bias / temperature, jnp.float32))
