"""Fisher vectors of block motion against their definition, written out in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models import fisher_vectors, motion_descriptors
from moclip_jax.models.fisher_vectors import (
    FisherConfig,
    FisherEncoder,
    FisherNetwork,
)
from moclip_jax.models.motion_descriptors import Scale

SCALES = (Scale(1, 2, 2), Scale(2, 5, 3))
CONFIG = FisherConfig(3, num_features=8, components=4, descriptor_dim=5, scales=SCALES)
WINDOW, ROWS, COLUMNS = CONFIG.window, 6, 7


def random_fields(seed: int, segments: int = 2) -> np.ndarray:
    """Fields uint8 `[1, segments, WINDOW, ROWS, COLUMNS, 2]` with blocks at rest and in motion."""
    rng = np.random.default_rng(seed)
    motion = rng.integers(-6, 7, (1, segments, WINDOW, ROWS, COLUMNS, 2))
    motion[rng.random(motion.shape[:-1]) < 0.5] = 0
    return (motion + 128).astype(np.uint8)


def vote(x: float, y: float) -> np.ndarray:
    """Magnitude shared between the two nearest of eight directions, linearly by angle."""
    votes = np.zeros(8)
    angle = np.degrees(np.arctan2(y, x)) % 360 / 45
    low = int(angle)
    votes[low % 8] += (1 - (angle - low)) * np.hypot(x, y)
    votes[(low + 1) % 8] += (angle - low) * np.hypot(x, y)
    return votes


def descriptor_by_definition(
    motion: np.ndarray, kind: str, scale: Scale, top: int, left: int
) -> np.ndarray:
    """One descriptor of `[WINDOW, ROWS, COLUMNS, 2]`: a histogram for each of its cells."""
    cell, frames = scale.cell, scale.cell_frames
    first = (WINDOW - scale.time_cells * frames) // 2

    def at(t: int, y: int, x: int, axis: int) -> float:
        return float(motion[t, np.clip(y, 0, ROWS - 1), np.clip(x, 0, COLUMNS - 1), axis])

    cells = []
    for part in range(scale.time_cells):
        for down in (0, cell):
            for across in (0, cell):
                total = np.zeros(9 if kind == "hof" else 8)
                for t in range(first + frames * part, first + frames * (part + 1)):
                    for y in range(top + down, top + down + cell):
                        for x in range(left + across, left + across + cell):
                            if kind == "hof":
                                u, v = at(t, y, x, 0), at(t, y, x, 1)
                                if np.hypot(u, v) < 0.4:
                                    total[8] += 1
                                else:
                                    total[:8] += vote(u, v)
                            else:
                                axis = "xy".index(kind[-1])
                                across_ = at(t, y, x + 1, axis) - at(t, y, x - 1, axis)
                                down_ = at(t, y + 1, x, axis) - at(t, y - 1, x, axis)
                                total += vote(across_, down_)
                cells.append(total)
    cells = np.array(cells)
    return np.sqrt(cells / (cells.sum() + 1e-3))


@pytest.mark.parametrize("number", [0, 1], ids=["4 of 15 frames", "15 frames"])
@pytest.mark.parametrize("kind", ["hof", "mbh_x", "mbh_y"])
def test_descriptors_follow_their_definition(kind, number):
    # The camera pans otherwise in every frame, which is subtracted.
    pan = np.random.default_rng(1).integers(-4, 5, (1, 2, WINDOW, 1, 1, 2))
    fields = (random_fields(0) + pan).astype(np.uint8)
    network = FisherNetwork(CONFIG, rngs=nnx.Rngs(0))
    there, scale = network.places(jnp.asarray(fields))[number], SCALES[number]
    places = (ROWS - 2 * scale.cell + 1, COLUMNS - 2 * scale.cell + 1)
    found = there.descriptors(jnp.arange(2 * places[0] * places[1])[None])
    ours = np.asarray(found.histograms[kind]).reshape(2, *places, 4 * scale.time_cells, -1)
    assert found.weight.shape == (1, 2 * places[0] * places[1])
    assert found.positions.shape == (1, found.weight.shape[1], 3)
    motion = fields[0].astype(int) - 128
    motion = motion - np.median(motion, axis=(2, 3), keepdims=True)
    for segment in range(2):
        for top in range(places[0]):
            for left in range(places[1]):
                expected = descriptor_by_definition(motion[segment], kind, scale, top, left)
                np.testing.assert_allclose(ours[segment, top, left], expected, atol=1e-5)


def test_a_place_counts_where_motion_and_its_boundaries_are_strong():
    """Uniform motion has no boundary; at rest there is neither; few places count by strength."""
    network = FisherNetwork(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    fields = np.full((1, 3, WINDOW, 16, 22, 2), 128, np.uint8)
    fields[0, 1] = 133  # Everything moves alike, as under a camera's motion.
    fields[0, 2, :, :, 11:] = rng.integers(118, 139, (WINDOW, 16, 11, 2))
    weight = np.asarray(network.places(jnp.asarray(fields))[1].weight).reshape(3, 13, 19)
    assert weight[:2].sum() == 0
    assert weight[2, :, 11:].all() and not weight[2, :, :8].any()

    fields[0, 1:] = 128
    fields[0, 2, :, 8, 8] = 133  # Mean motion of a place that holds the block: below the threshold.
    weight = np.asarray(network.places(jnp.asarray(fields))[1].weight).reshape(3, 13, 19)
    assert weight[2, 5:9, 5:9].all()


def test_the_encoding_is_the_gradient_of_the_mixtures_log_likelihood():
    """Perronnin et al. by autodiff: scaled gradients for means and deviations, then both norms."""
    rng = np.random.default_rng(2)
    encoder = FisherEncoder(6, CONFIG)
    encoder.mean[...] = jnp.asarray(rng.normal(size=6), jnp.float32)
    encoder.projection[...] = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    weights = rng.dirichlet(np.ones(4))
    means, variances = rng.normal(size=(4, 8)), rng.uniform(0.5, 2, (4, 8))
    encoder.weights[...], encoder.means[...], encoder.variances[...] = (
        jnp.asarray(value, jnp.float32) for value in (weights, means, variances)
    )
    descriptors = rng.normal(size=(1, 9, 6)).astype(np.float32)
    positions = rng.uniform(-0.5, 0.5, (1, 9, 3)).astype(np.float32)
    counts = np.array([[1, 0, 1, 1, 0, 1, 1, 1, 0]], np.float32)
    ours = np.asarray(encoder(descriptors, positions, counts))[0]

    whitened = (descriptors[0] - np.asarray(encoder.mean[...])) @ np.asarray(
        encoder.projection[...]
    )
    x = np.concatenate([whitened, 3 * positions[0]], axis=1)[counts[0] > 0]

    def log_likelihood(means, deviations):
        z = (x[:, None] - means[None]) / deviations[None]
        log_density = -0.5 * (z**2).sum(-1) - jnp.log(deviations).sum(-1)[None]
        return jax.nn.logsumexp(log_density + jnp.log(weights)[None], axis=1).mean()

    with jax.enable_x64(True):
        gradients = jax.grad(log_likelihood, (0, 1))(means, np.sqrt(variances))
    fisher_information = weights[:, None] / variances
    of_means = np.asarray(gradients[0]) / np.sqrt(fisher_information)
    of_deviations = np.asarray(gradients[1]) / np.sqrt(2 * fisher_information)
    expected = np.concatenate([of_means.ravel(), of_deviations.ravel()])
    expected = np.sign(expected) * np.sqrt(np.abs(expected))
    np.testing.assert_allclose(ours, expected / np.linalg.norm(expected), atol=2e-5)


def test_only_descriptors_that_count_are_encoded_however_many_they_are(monkeypatch):
    """Chunks of 16, of which two videos need different numbers, against all descriptors at once."""
    network = FisherNetwork(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(6)
    for kinds in network.encoders:
        for encoder in kinds.values():
            encoder.means[...] = jnp.asarray(rng.normal(size=encoder.means.shape), jnp.float32)
    fields = np.concatenate([random_fields(7), random_fields(8)])
    fields[1, :, :, 2:] = 128
    monkeypatch.setattr(fisher_vectors, "_CHUNK", 16)
    monkeypatch.setattr(motion_descriptors, "_MIN_DESCRIPTORS", 1)
    ours = np.asarray(nnx.jit(FisherNetwork.fisher_vectors)(network, fields))
    expected, counts = [], []
    encode = nnx.jit(lambda encoder, *found: encoder(*found))
    for kinds, places in zip(network.encoders, network.places(jnp.asarray(fields)), strict=True):
        every = jnp.tile(jnp.arange(places.weight.shape[1]), (2, 1))
        found = places.descriptors(every)
        np.testing.assert_array_equal(found.weight, places.weight)
        counts.append(np.asarray(found.weight.sum(1)))
        for kind, encoder in kinds.items():
            expected.append(encode(encoder, found.histograms[kind], found.positions, found.weight))
    assert 16 < counts[0][1] < counts[0][0] - 16
    np.testing.assert_allclose(ours, np.concatenate(expected, axis=1), atol=1e-5)


def test_drawn_descriptors_are_different_ones_that_count():
    network = FisherNetwork(CONFIG, rngs=nnx.Rngs(0))
    fields = random_fields(9)
    fields[:, :, :, 3:] = 128
    (first, _), (places, _) = (
        network.draw(jnp.asarray(fields), jax.random.key(0), 12),
        network.places(jnp.asarray(fields)),
    )
    counting = np.flatnonzero(np.asarray(places.weight[0]))
    assert 12 < len(counting) < places.weight.shape[1]
    assert first.weight.shape == (1, 12) and first.weight.min() == 1
    every = places.descriptors(jnp.asarray(counting)[None])
    drawn = {tuple(position) for position in np.asarray(first.positions[0]).tolist()}
    assert len(drawn) == 12 and drawn <= {tuple(p) for p in np.asarray(every.positions[0]).tolist()}


def test_features_and_logits_are_linear_in_the_fisher_vectors():
    rng = np.random.default_rng(3)
    network = FisherNetwork(CONFIG, rngs=nnx.Rngs(0))
    for parameter in (network.center, network.components):
        parameter[...] = jnp.asarray(rng.normal(size=parameter.shape), jnp.float32)
    fields = jnp.asarray(np.concatenate([random_fields(4), random_fields(5)]))
    vectors = np.asarray(network.fisher_vectors(fields), np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors.reshape(2, 6, -1), axis=-1), 1, atol=1e-5)
    features = (vectors - np.asarray(network.center[...])) @ np.asarray(network.components[...])
    np.testing.assert_allclose(network.features(fields)[:, 0], features, rtol=1e-4, atol=1e-4)
    kernel = np.asarray(network.classifier.kernel[...])
    np.testing.assert_allclose(network(fields), features @ kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [np.zeros((1, 2, 14, 6, 7, 2), np.uint8), np.zeros((1, 2, 15, 6, 7, 2), np.float32)],
    ids=["window of 14", "float32"],
)
def test_other_fields_are_rejected(fields):
    with pytest.raises(ValueError, match="FisherNetwork needs"):
        FisherNetwork(CONFIG, rngs=nnx.Rngs(0)).features(jnp.asarray(fields))


def test_a_config_without_components_is_rejected():
    with pytest.raises(ValueError, match=r"FisherConfig\.components must be positive, got 0"):
        FisherConfig(num_classes=3, components=0)
