"""Fitting of the Fisher model: mixtures, principal components and the classifier."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import moclip_jax
from moclip_jax.configs import testing, video_folder
from moclip_jax.models.fisher_vectors import FisherConfig, FisherNetwork
from moclip_jax.models.motion_descriptors import Scale
from moclip_jax.training import pipeline
from moclip_jax.training.features import load_features
from moclip_jax.training.fisher import (
    RIDGE,
    fit_classifier,
    fit_mixture,
    fit_temperature,
    held_out_scores,
)


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


def weighted_ridge(x, labels, weight, penalty):
    """Return kernel and, as the last row, intercept, from one system of least squares."""
    root = np.sqrt(weight)[:, None]
    targets = 2.0 * np.eye(labels.max() + 1)[labels] - 1
    rows = root * np.column_stack([x, np.ones(len(x))])
    ridge = np.sqrt(penalty) * np.eye(x.shape[1], x.shape[1] + 1)
    zeros = np.zeros((x.shape[1], targets.shape[1]))
    return np.linalg.lstsq(np.concatenate([rows, ridge]), np.concatenate([root * targets, zeros]))[
        0
    ]


def test_one_video_of_a_class_does_not_take_the_others():
    """Two classes of 20 well apart, and one of a single video between them."""
    rng = np.random.default_rng(6)
    labels = np.array([0] * 20 + [1] * 20 + [2])
    vectors = rng.normal(size=(1, 41, 60)).astype(np.float32)
    vectors[0, :20, 0], vectors[0, 20:40, 0] = 4, -4
    right = held_out_scores(vectors, labels, np.arange(41), 3).argmax(1) == labels
    assert right[:40].mean() >= 0.9


def test_the_classifier_is_ridge_regression_with_classes_of_equal_weight():
    """Weighted least squares with a free intercept, with all principal components kept."""
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
    solution = weighted_ridge(centered, labels, weight, RIDGE * energy)
    other = rng.normal(size=(4, size)) - vectors.mean(0)
    features = other @ np.asarray(network.components[...])
    ours = features @ np.asarray(network.classifier.kernel[...])
    ours += np.asarray(network.classifier.bias[...])
    np.testing.assert_allclose(ours, other @ solution[:-1] + solution[-1], atol=1e-4)
    projected = centered @ np.asarray(network.components[...])
    np.testing.assert_allclose(np.mean(np.sum(projected**2, axis=1)), 32, rtol=1e-5)


def test_a_run_with_fisher_vectors_learns_motion_and_its_export_gives_the_same_logits(
    tmp_path, capsys
):
    """Six motions of three shapes; the motion of a clip is label % 6, with chance 1/6."""
    config = testing.get_config()
    config.dataset.options.shapes = ("circle", "square", "star")
    config.dataset.options.num_train_groups = 4
    config.dataset.options.num_frames = 24
    own = video_folder.get_config()
    for section in ("motion", "fusion"):
        config[section].update(own[section])
    config.motion.num_segments = config.evaluation.num_segments = 2
    config.predict.num_segments = 2
    config.selection.mode = "last"
    results = pipeline.run(config, tmp_path)
    printed = capsys.readouterr().out
    # A mirror image shows the same motion.
    assert "motion: mirror images used: " in printed
    # The heads are fitted in closed form (tests/training/test_ridge.py).
    assert "fusion: share of appearance " in printed
    assert results is not None
    top1 = {name: row["top1"] for name, row in results["rows"].items()}
    assert top1["fusion"] >= max(top1["motion"], top1["clip_head"])
    page = (tmp_path / "report.html").read_text()
    assert "Loss and accuracy by epoch" not in page and "Confusion matrix" in page
    assert "fitted in closed form" in (tmp_path / "export" / "README.md").read_text()
    # In training the motion and its mirror image, which differ; in the test the motion alone.
    train = load_features(tmp_path / "features", "train", 18 * 4)
    assert train.motion.shape[1:] == (2, 1, 512)
    assert not np.allclose(train.motion[:, 0], train.motion[:, 1])
    scores = np.load(tmp_path / "evaluate" / "scores.npz")
    right = scores["motion"].argmax(1) % 6 == scores["label"] % 6
    assert right.mean() > 0.8

    model = moclip_jax.load(tmp_path)
    features = np.load(next((tmp_path / "features" / "test").glob("*.npz")))
    assert features["motion"].shape[1:] == (1, 1, 512)
    motion = model.model.motion
    logits = motion.classifier(jnp.asarray(features["motion"][:, 0, 0]))
    np.testing.assert_allclose(logits, scores["motion"][features["index"]], atol=1e-4)
    assert model.input_shapes["motion"] == (1, 2, 16, 8, 8, 2)


@pytest.mark.parametrize("collides", [False, True])
def test_mirror_images_are_judged_on_held_out_groups(collides):
    """Two classes whose mirror images are of the same class, or of the other one."""
    rng = np.random.default_rng(3)
    labels, groups = np.tile([0, 1], 200), np.repeat(np.arange(200), 2)
    direction = rng.normal(size=40)
    sign = np.where(labels == 0, 1, -1)[:, None] * direction
    vectors = np.stack([sign, -sign if collides else sign]) + 8 * rng.normal(size=(2, 400, 40))
    without, mirrored = (
        np.mean(
            held_out_scores(vectors[:n].astype(np.float32), labels, groups, 2).argmax(1) == labels
        )
        for n in (1, 2)
    )
    assert (mirrored < without) if collides else (mirrored >= without)
    assert 0.6 < without < 0.95


def test_held_out_scores_are_those_of_a_classifier_that_did_not_see_the_group():
    """Weighted ridge regression on two thirds of the groups, from one system of least squares."""
    rng = np.random.default_rng(4)
    labels, groups = np.tile([0, 0, 1, 2], 9), np.repeat(np.arange(9), 4)
    vectors = rng.normal(size=(2, 36, 50)).astype(np.float32)
    scores = held_out_scores(vectors, labels, groups, 3)
    centered = vectors.astype(np.float64) - vectors.mean((0, 1))
    energy = np.mean(np.sum(centered**2, axis=2))
    for fold in range(3):
        seen = groups % 3 != fold
        y = np.tile(labels[seen], 2)
        weight = np.array([0.5, 1, 1])[y] * 4 / 3
        solution = weighted_ridge(centered[:, seen].reshape(-1, 50), y, weight, RIDGE * energy)
        expected = centered[0, ~seen] @ solution[:-1] + solution[-1]
        np.testing.assert_allclose(scores[~seen], expected, atol=1e-4)
    # Of a single group, single videos are held out.
    assert np.isfinite(held_out_scores(vectors, labels, np.zeros(36), 3)).all()


def test_the_temperature_makes_probabilities_frequencies_and_changes_no_order():
    """Scores whose labels are drawn from their softmax at 0.25: the error of calibration falls."""
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(4000, 5))
    odds = np.exp(scores / 0.25)
    odds /= odds.sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in odds])
    temperature = fit_temperature(scores, labels)
    assert temperature == pytest.approx(0.25, rel=0.1)

    def calibration_error(scores: np.ndarray) -> float:
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        sure, right = p.max(1), p.argmax(1) == labels
        bins = np.minimum((sure * 10).astype(int), 9)
        gaps = [abs((sure - right)[bins == k].sum()) for k in range(10)]
        return sum(gaps) / len(labels)

    assert calibration_error(scores / temperature) < 0.03 < 0.2 < calibration_error(scores)
    assert fit_temperature(np.eye(3), np.arange(3)) > 0  # All are right.


def test_several_labels_have_the_same_targets_and_the_temperature_of_a_sigmoid():
    rng = np.random.default_rng(8)
    labels, groups = np.tile([0, 1, 2], 12), np.repeat(np.arange(12), 3)
    vectors, one_hot = rng.normal(size=(2, 36, 50)).astype(np.float32), np.eye(3)[labels]
    np.testing.assert_allclose(
        held_out_scores(vectors, one_hot, groups, 3), held_out_scores(vectors, labels, groups, 3)
    )
    scores = rng.normal(size=(4000, 5))
    drawn = rng.random((4000, 5)) < 1 / (1 + np.exp(-scores / 0.25))
    assert fit_temperature(scores, drawn.astype(np.float32)) == pytest.approx(0.25, rel=0.1)


def test_the_temperature_divides_the_classifiers_scores():
    rng = np.random.default_rng(6)
    config = FisherConfig(
        3, num_features=8, components=2, descriptor_dim=3, scales=(Scale(1, 2, 1),)
    )
    networks = [FisherNetwork(config, rngs=nnx.Rngs(0)) for _ in range(2)]
    vectors = rng.normal(size=(15, networks[0].center.shape[0])).astype(np.float32)
    for network, temperature in zip(networks, (1.0, 0.2), strict=True):
        fit_classifier(network, vectors, np.arange(15) % 3, temperature)
    features = jnp.asarray(rng.normal(size=(4, 1, 8)), jnp.float32)
    plain, divided = (np.asarray(network.logits(features)) for network in networks)
    np.testing.assert_allclose(divided, plain / 0.2, rtol=1e-5)
