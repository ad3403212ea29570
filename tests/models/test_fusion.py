"""The fusion head against numpy, its dropout and its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.fusion import FusionConfig, FusionHead

CONFIG = FusionConfig(motion_features=6, appearance_features=4, hidden=256, num_classes=3)


@pytest.fixture(scope="module")
def head():
    return FusionHead(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def features():
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (5, 6)), jax.random.normal(keys[1], (5, 4))


def arrays(head):
    return {
        path: np.asarray(leaf[...], np.float64)
        for path, leaf in nnx.to_flat_state(nnx.state(head, nnx.Param))
    }


def test_equals_numpy_with_motion_before_appearance(head, features):
    weights = arrays(head)
    joined = np.concatenate([np.asarray(part, np.float64) for part in features], axis=1)
    hidden = np.maximum(joined @ weights["hidden", "kernel"] + weights["hidden", "bias"], 0)
    expected = hidden @ weights["classifier", "kernel"] + weights["classifier", "bias"]
    np.testing.assert_allclose(head(*features), expected, rtol=1e-5, atol=1e-6)


def test_linear_and_normalised_head_equals_numpy(features):
    config = FusionConfig(6, 4, hidden=0, num_classes=3, normalize=True)
    head = FusionHead(config, rngs=nnx.Rngs(0))
    weights = arrays(head)
    assert set(weights) == {("classifier", "kernel"), ("classifier", "bias")}
    parts = [np.asarray(part, np.float64) for part in features]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    expected = np.concatenate(unit, axis=1) @ weights["classifier", "kernel"]
    expected += weights["classifier", "bias"]
    np.testing.assert_allclose(head(*features), expected, rtol=1e-5, atol=1e-6)


def test_dropout_needs_rngs_drops_half_and_keeps_the_mean(head, features):
    assert np.array_equal(head(*features), head(*features))
    rngs = nnx.Rngs(dropout=0)
    first, second = head(*features, rngs=rngs), head(*features, rngs=rngs)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, head(*features, rngs=nnx.Rngs(dropout=0)))
    many = FusionHead(
        FusionConfig(motion_features=0, appearance_features=1, hidden=4096, num_classes=2),
        rngs=nnx.Rngs(0),
    )
    many.hidden.bias[...] = jnp.ones(4096)
    many.hidden.kernel[...] = jnp.zeros((1, 4096))
    many.classifier.kernel[...] = jnp.ones((4096, 2)) / 4096
    many.classifier.bias[...] = jnp.zeros(2)
    logits = np.asarray(many(None, jnp.zeros((64, 1)), rngs=nnx.Rngs(dropout=1)))
    # 4096 units of 1, each 0 or 2: mean 1, deviation 1 / 64 a row.
    np.testing.assert_allclose(logits.mean(), 1.0, atol=0.01)
    assert np.std(logits[:, 0]) == pytest.approx(1 / 64, rel=0.4)


def test_a_head_on_clip_alone_takes_no_motion():
    config = FusionConfig(motion_features=0, appearance_features=4, hidden=8, num_classes=3)
    head = FusionHead(config, rngs=nnx.Rngs(0))
    assert head(None, jnp.ones((2, 4))).shape == (2, 3)
    with pytest.raises(ValueError, match="takes no motion"):
        head(jnp.ones((2, 6)), jnp.ones((2, 4)))


def test_initial_values_are_torchs():
    head = FusionHead(FusionConfig(), rngs=nnx.Rngs(0))
    for layer, fan_in in ((head.hidden, 1792), (head.classifier, 512)):
        for values in (layer.kernel[...], layer.bias[...]):
            assert np.max(np.abs(values)) <= fan_in**-0.5
            # Of a uniform distribution: bound / sqrt(3).
            assert np.std(values) == pytest.approx((3 * fan_in) ** -0.5, rel=0.15)


def test_missing_or_misshapen_features_are_rejected(head):
    with pytest.raises(ValueError, match="was given no motion"):
        head(None, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="6 motion features"):
        head(jnp.ones((2, 5)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="4 appearance features"):
        head(jnp.ones((2, 6)), jnp.ones((2, 5)))


@pytest.mark.parametrize(
    "field", [{"hidden": -1}, {"num_classes": 0}, {"motion_features": -1}, {"dropout": 1.0}]
)
def test_impossible_configurations_are_rejected(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        FusionConfig(**field)
