"""Fitting of the Fisher model: mixtures, principal components and the classifier."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import moclip_jax
from moclip_jax.configs import testing
from moclip_jax.models.fisher_vectors import FisherConfig, FisherNetwork, Scale
from moclip_jax.training import pipeline
from moclip_jax.training.fisher import RIDGE, fit_classifier, fit_mixture, mirror_accuracy


def test_expectation_maximization_finds_separated_gaussians():
    rng = np.random.default_rng(0)
    means = np.array([[-4.0, 0.0], [4.0, 1.0], [0.0, 6.0]])
    deviations = np.array([[0.5, 1.0], [1.0, 0.5], [0.7, 0.7]])
    share = np.array([0.5, 0.3, 0.2])
    chosen = rng.choice(3, 20_000, p=share)
    x = (means[chosen] + deviations[chosen] * rng.normal(size=(20_000, 2))).astype(np.float32)
    # One starting point for each; random ones may share a Gaussian.
    starts = np.array([np.flatnonzero(chosen == k)[0] for k in range(3)])

    class Chosen:
        def choice(self, *_, **__):
            return starts

    weights, found, variances = fit_mixture(jnp.asarray(x), 3, Chosen())
    np.testing.assert_allclose(weights, share, atol=0.02)
    np.testing.assert_allclose(found, means, atol=0.05)
    np.testing.assert_allclose(np.sqrt(variances), deviations, atol=0.05)


def test_the_classifier_is_ridge_regression_with_classes_of_equal_weight():
    """Weighted least squares on the centred Fisher vectors, with all principal components kept."""
    rng = np.random.default_rng(1)
    config = FisherConfig(
        3, num_features=32, components=2, descriptor_dim=3, scales=(Scale(1, 2, 1),)
    )
    network = FisherNetwork(config, rngs=nnx.Rngs(0))
    size = network.center.shape[0]
    labels = np.array([0] * 8 + [1] * 5 + [2] * 2)
    vectors = rng.normal(size=(15, size)).astype(np.float32)
    fit_classifier(network, vectors, labels)

    centered = (vectors - vectors.mean(0)).astype(np.float64)
    energy = np.mean(np.sum(centered**2, axis=1))
    weight = np.array([5 / 8] * 8 + [1] * 5 + [5 / 2] * 2)
    targets = 2.0 * np.eye(3)[labels] - 1
    bias = np.full(3, -1 / 3)  # Of classes of equal weight.
    rows = np.concatenate(
        [np.sqrt(weight)[:, None] * centered, np.sqrt(RIDGE * energy) * np.eye(size)]
    )
    sides = np.concatenate([np.sqrt(weight)[:, None] * (targets - bias), np.zeros((size, 3))])
    solution = np.linalg.lstsq(rows, sides)[0]
    other = rng.normal(size=(4, size)) - vectors.mean(0)
    features = other @ np.asarray(network.components[...])
    ours = features @ np.asarray(network.classifier.kernel[...])
    ours += np.asarray(network.classifier.bias[...])
    np.testing.assert_allclose(ours, other @ solution + bias, atol=1e-4)
    projected = centered @ np.asarray(network.components[...])
    np.testing.assert_allclose(np.mean(np.sum(projected**2, axis=1)), 32, rtol=1e-5)


def test_a_run_with_fisher_vectors_learns_motion_and_its_export_gives_the_same_logits(
    tmp_path, capsys
):
    """Six motions of six shapes; the motion of a clip is label % 6, with chance 1/6."""
    config = testing.get_config()
    config.dataset.options.num_train_groups = 4
    config.dataset.options.num_frames = 24
    config.motion.backbone = "fisher"
    config.motion.num_segments = config.evaluation.num_segments = 4
    config.predict.num_segments = 4
    config.selection.mode = "last"
    pipeline.run(config, tmp_path)
    # A mirror image shows the same motion.
    assert "motion: mirror images used: " in capsys.readouterr().out
    scores = np.load(tmp_path / "evaluate" / "scores.npz")
    right = scores["motion"].argmax(1) % 6 == scores["label"] % 6
    assert right.mean() > 0.8

    model = moclip_jax.load(tmp_path)
    features = np.load(next((tmp_path / "features" / "test").glob("*.npz")))
    motion = model.model.motion
    logits = motion.classifier(jnp.asarray(features["motion"][:, 0, 0]))
    np.testing.assert_allclose(logits, scores["motion"][features["index"]], atol=1e-4)
    assert model.input_shapes["motion"] == (1, 4, 16, 8, 8, 2)


@pytest.mark.parametrize("collides", [False, True])
def test_mirror_images_are_judged_on_held_out_groups(collides):
    """Two classes whose mirror images are of the same class, or of the other one."""
    rng = np.random.default_rng(3)
    labels, groups = np.tile([0, 1], 200), np.repeat(np.arange(200), 2)
    direction = rng.normal(size=40)
    sign = np.where(labels == 0, 1, -1)[:, None] * direction
    vectors = np.stack([sign, -sign if collides else sign]) + 8 * rng.normal(size=(2, 400, 40))
    without, mirrored = mirror_accuracy(vectors.astype(np.float32), labels, groups, 2)
    assert (mirrored < without) if collides else (mirrored >= without)
    assert 0.6 < without < 0.95
