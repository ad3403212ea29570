"""Heads that see the order: equal to the mean where they must be, and against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.heads import build_head
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.models.temporal import TemporalConfig, TemporalResidual, equal_parts

MEAN = FusionConfig(6, 4, hidden=32, num_classes=3, num_segments=4, num_frames=2)


def head(name, **changes):
    return build_head(dataclasses.replace(MEAN, head=name, **changes), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def features():
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (5, 4, 6)), jax.random.normal(keys[1], (5, 2, 4))


def trained(head):
    """The head with random values everywhere, as after training."""
    state = nnx.state(head, nnx.Param)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    drawn = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    nnx.update(head, jax.tree.unflatten(structure, drawn))
    return head


def test_the_mean_head_averages_segments_and_frames(features):
    motion, appearance = features
    expected = head("mean")(motion.mean(axis=1), appearance.mean(axis=1))
    np.testing.assert_array_equal(head("mean")(*features), expected)


def test_the_temporal_head_is_the_mean_head_before_training_and_not_after(features):
    mean, temporal = head("mean"), head("temporal")
    np.testing.assert_array_equal(temporal(*features), mean(*features))
    same, dropped = nnx.Rngs(dropout=3), nnx.Rngs(dropout=3)
    np.testing.assert_array_equal(temporal(*features, rngs=same), mean(*features, rngs=dropped))
    backwards = features[0][:, ::-1], features[1]
    np.testing.assert_allclose(temporal(*backwards), temporal(*features), atol=1e-6)
    trained(temporal)
    assert np.abs(temporal(*backwards) - temporal(*features)).max() > 0.1


def test_the_temporal_residual_equals_numpy():
    residual = trained(TemporalResidual(TemporalConfig(6, 4, 3, width=8), rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(5, 4, 6))

    def normalised(x, norm):
        centred = x - x.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return unit * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])

    y = normalised(x, residual.input_norm) @ np.asarray(residual.reduce.kernel[...])
    y = y + np.asarray(residual.reduce.bias[...])
    for norm, conv in zip(residual.norms, residual.convs, strict=True):
        active = np.pad(np.maximum(normalised(y, norm), 0), ((0, 0), (1, 1), (0, 0)))
        kernel = np.asarray(conv.kernel[...])
        y = y + sum(active[:, tap : tap + 4] @ kernel[tap] for tap in range(3))
        y = y + np.asarray(conv.bias[...])
    last = np.maximum(normalised(y, residual.output_norm), 0).reshape(5, -1)
    expected = last @ np.asarray(residual.classifier.kernel[...])
    expected = expected + np.asarray(residual.classifier.bias[...])
    got = residual(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_motion_networks_temporal_head_starts_as_the_mean():
    backbone = EfficientNetConfig.named("tiny", in_channels=2, num_classes=3)
    mean, temporal = (
        nnx.jit(
            lambda name=name: MotionNetwork(
                MotionNetworkConfig(backbone, name, 4), rngs=nnx.Rngs(0)
            )
        )()
        for name in ("mean", "temporal")
    )
    fields = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 2))
    forward = nnx.jit(lambda network, fields: network(fields))
    np.testing.assert_array_equal(forward(mean, fields), forward(temporal, fields))
    features = jax.random.normal(jax.random.key(0), (2, 4, backbone.num_features))
    trained(temporal.temporal)
    difference = temporal.logits(features) - temporal.logits(features[:, ::-1])
    assert np.abs(difference).max() > 0.1


def test_attention_sees_the_order_of_both_streams(features):
    attention = head("attention")
    motion, appearance = features
    logits = attention(motion, appearance)
    assert logits.shape == (5, 3) and logits.dtype == jnp.float32
    assert np.abs(attention(motion[:, ::-1], appearance) - logits).max() > 1e-4
    assert np.abs(attention(motion, appearance[:, ::-1]) - logits).max() > 1e-4
    # Without positions a transformer is blind to the order.
    attention.positions[...] = jnp.zeros_like(attention.positions[...])
    np.testing.assert_allclose(
        attention(motion[:, ::-1], appearance[:, ::-1]), attention(motion, appearance), atol=1e-5
    )


def test_attention_drops_units_in_training_alone(features):
    attention = head("attention")
    first = attention(*features, rngs=nnx.Rngs(dropout=0))
    assert not np.array_equal(first, attention(*features))
    assert np.array_equal(first, attention(*features, rngs=nnx.Rngs(dropout=0)))


@pytest.mark.parametrize("segments", [2, 3, 8, 12])
def test_equal_parts_average_what_lies_in_each_part(segments):
    """Against segments repeated to a common multiple, of which each part takes as many."""
    parts = 4
    x = np.random.default_rng(0).normal(size=(2, segments, 3)).astype(np.float32)
    fine = np.repeat(x, parts, axis=1).reshape(2, parts, segments, 3)
    np.testing.assert_allclose(equal_parts(jnp.asarray(x), parts), fine.mean(axis=2), atol=1e-6)
    np.testing.assert_array_equal(equal_parts(jnp.asarray(x), segments), x)


@pytest.mark.parametrize("name", ["mean", "temporal", "attention"])
def test_heads_on_features_take_any_number_of_segments(name, features):
    motion = jax.random.normal(jax.random.key(0), (5, 25, 6))
    assert head(name)(motion, features[1]).shape == (5, 3)


def test_what_a_head_cannot_work_with_is_named(features):
    with pytest.raises(ValueError, match=r"FusionConfig.head='last' is unknown; there are mean,"):
        head("last")
    with pytest.raises(ValueError, match=r"FusionConfig.head='temporal' needs motion features"):
        head("temporal", motion_features=0)
    with pytest.raises(ValueError, match="at least 2 segments, got 1"):
        head("temporal", num_segments=1)
    with pytest.raises(ValueError, match="that 4 divides, got 0"):
        head("attention", hidden=0)
    with pytest.raises(
        ValueError, match=r"appearance \[B, 2, 4\], got \(5, 4, 6\) and \(5, 1, 4\)"
    ):
        head("attention")(features[0], features[1][:, :1])
    backbone = EfficientNetConfig.named("tiny", in_channels=2, num_classes=3)
    with pytest.raises(ValueError, match=r"MotionNetworkConfig.head='attention' is unknown"):
        MotionNetworkConfig(backbone, "attention", 4)
