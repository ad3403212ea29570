"""The head in closed form: the regression by its definition, shares and scale.

A whole run with it: tests/training/test_fisher.py.
"""

import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.training.evaluate import fused_logits
from moclip_jax.training.features import Features
from moclip_jax.training.fisher import RIDGE
from moclip_jax.training.ridge import fit_ridge_head

CLASSES = 3
RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(2, CLASSES, 12))


def features(seed: int, videos: int, *, motion: float, appearance: float) -> Features:
    """Streams whose classes lie `motion` and `appearance` apart in unit noise, of 6 groups."""
    rng = np.random.default_rng(seed)
    label = np.arange(videos) % CLASSES
    views = rng.normal(size=(videos, 2, 1, 12)) + motion * DIRECTIONS[0][label][:, None, None]
    frames = rng.normal(size=(videos, 3, 12)) + appearance * DIRECTIONS[1][label][:, None]
    return Features(views.astype(np.float32), frames.astype(np.float32), label.astype(np.int32))


def groups(videos: int) -> list[str]:
    return [f"g{number // CLASSES % 6}" for number in range(videos)]


def fitted(train: Features, *, normalize: bool = False, motion: bool = True):
    averaged = train._replace(motion=train.motion.mean(2), appearance=train.appearance.mean(1))
    config = FusionConfig(
        motion_features=12 * motion,
        appearance_features=12,
        hidden=0,
        num_classes=CLASSES,
        normalize=normalize,
    )
    head = FusionHead(config, rngs=nnx.Rngs(0))
    return head, fit_ridge_head(head, averaged, groups(len(train.label)))[0]


@pytest.mark.parametrize("normalize", [False, True])
def test_the_head_is_the_ridge_regression_on_weighed_streams(normalize):
    """By the dual form: predictions from the distances between videos alone."""
    train, test = (features(seed, 60, motion=0.5, appearance=0.3) for seed in (1, 2))
    head, share = fitted(train, normalize=normalize)
    assert 0 < share < 1

    def streams(data):
        pair = data.motion[:, :, 0], data.appearance.mean(1)
        return [x / np.linalg.norm(x, axis=-1, keepdims=True) if normalize else x for x in pair]

    (motion, appearance), (motion_test, appearance_test) = streams(train), streams(test)
    motion, appearance = motion.reshape(120, 12), appearance.repeat(2, axis=0)
    # The head sees the test videos' views averaged, then normalised.
    motion_test = test.motion[:, :, 0].mean(1)
    if normalize:
        motion_test = motion_test / np.linalg.norm(motion_test, axis=-1, keepdims=True)
    kernel, kernel_test = 0, 0
    for part, x, y in ((1 - share, motion, motion_test), (share, appearance, appearance_test)):
        center = x.mean(0)
        size = np.mean(np.square(x - center).sum(1))
        kernel = kernel + part * (x - center) @ (x - center).T / size
        kernel_test = kernel_test + part * (y - center) @ (x - center).T / size
    targets = 2.0 * np.eye(CLASSES)[train.label.repeat(2)] - 1
    # The classes have as many videos each.
    dual = np.linalg.solve(kernel + RIDGE * np.eye(120), targets - targets.mean(0))
    expected = kernel_test @ dual + targets.mean(0)
    logits = fused_logits(head, test)
    scale = (logits * expected).sum() / np.square(expected).sum()
    assert scale >= 1
    np.testing.assert_allclose(logits, scale * expected, atol=2e-3 * scale)


@pytest.mark.parametrize(
    ("motion", "appearance", "least", "most"),
    [(1.0, 0.0, 0.0, 0.1), (0.0, 1.0, 0.9, 1.0), (0.4, 0.4, 0.1, 0.9)],
)
def test_a_stream_that_says_nothing_is_left_out(motion, appearance, least, most):
    train = features(3, 90, motion=motion, appearance=appearance)
    _, share = fitted(train)
    assert least <= share <= most


def test_probabilities_are_those_of_held_out_videos():
    """Of 600 test videos about as many are right as the head's probabilities say."""
    train, test = (
        features(seed, n, motion=0.25, appearance=0.25) for seed, n in ((4, 90), (5, 600))
    )
    head, _ = fitted(train)
    odds = np.exp(fused_logits(head, test).astype(np.float64))
    probabilities = odds / odds.sum(1, keepdims=True)
    right = (probabilities.argmax(1) == test.label).mean()
    assert 0.6 < right < 0.98
    assert probabilities.max(1).mean() == pytest.approx(right, abs=0.08)


def test_several_labels_are_regressed_on_and_have_frequencies_as_probabilities():
    """One label each, as multi-hot, is the same regression; its scale is that of a sigmoid."""
    train, test = (
        features(seed, n, motion=0.25, appearance=0.25) for seed, n in ((4, 90), (5, 600))
    )
    one, share = fitted(train)
    many, same = fitted(train._replace(label=np.eye(CLASSES, dtype=np.float32)[train.label]))
    assert share == same
    kernels = [np.asarray(head.classifier.kernel[...]) for head in (one, many)]
    scale = np.linalg.norm(kernels[1]) / np.linalg.norm(kernels[0])
    np.testing.assert_allclose(kernels[1], scale * kernels[0], atol=1e-5)
    probabilities = expit(fused_logits(many, test).astype(np.float64))
    sure = probabilities > 0.5
    right = np.eye(CLASSES, dtype=bool)[test.label] == sure
    assert 0.7 < right.mean() < 0.98
    assert np.where(sure, probabilities, 1 - probabilities).mean() == pytest.approx(
        right.mean(), abs=0.08
    )


def test_a_head_on_appearance_alone_sees_no_motion():
    train = features(6, 60, motion=1.0, appearance=0.5)
    head, share = fitted(train, motion=False)
    assert share == 1
    other = train._replace(motion=np.zeros_like(train.motion))
    np.testing.assert_array_equal(
        np.asarray(fitted(other, motion=False)[0].classifier.kernel[...]),
        np.asarray(head.classifier.kernel[...]),
    )


def test_one_group_cannot_be_held_out():
    train = features(7, 30, motion=1.0, appearance=0.5)
    head = FusionHead(
        FusionConfig(motion_features=12, appearance_features=12, hidden=0, num_classes=CLASSES),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(ValueError, match="needs at least two groups in the training split"):
        fit_ridge_head(head, train, ["g"] * 30)
