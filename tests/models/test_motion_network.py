"""The motion network: scaling, segments, statistics, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.depthwise import depthwise_implementation
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from tests.random_norms import randomize_norms

CONFIG = MotionNetworkConfig(EfficientNetConfig.named("tiny", in_channels=2, num_classes=5))


@pytest.fixture(scope="module")
def network():
    network = MotionNetwork(CONFIG, rngs=nnx.Rngs(0))
    randomize_norms(network)
    return network


@pytest.fixture(scope="module")
def fields():
    return jax.random.randint(jax.random.key(0), (3, 2, 32, 40, 2), 0, 256).astype(jnp.uint8)


@jax.jit
def outputs(network, fields):
    return network.features(fields), network(fields)


def test_bytes_are_scaled_and_floats_are_not(network, fields):
    features, logits = outputs(network, fields)
    scaled = jnp.asarray(np.asarray(fields) / np.float32(255) - np.float32(0.5))
    same_features, same_logits = outputs(network, scaled)
    np.testing.assert_allclose(same_features, features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same_logits, logits, rtol=1e-5, atol=1e-6)


def test_every_segment_goes_through_the_same_network_and_logits_are_averaged(network, fields):
    features, logits = outputs(network, fields)
    assert features.shape == (3, 2, CONFIG.num_features)
    assert logits.shape == (3, CONFIG.num_classes)
    flat = jnp.asarray(fields.reshape(6, 32, 40, 2), jnp.float32) / 255 - 0.5
    backbone = jax.jit(lambda n, x: n.backbone(n.input_norm(x, train=False)))
    np.testing.assert_allclose(
        backbone(network, flat).reshape(3, 2, -1).mean(1), logits, rtol=1e-5, atol=1e-6
    )


def test_training_updates_statistics_and_inference_does_not(network, fields):
    forward = jax.jit(
        lambda n, x, train: (n(x, train=train), nnx.state(n, nnx.BatchStat)), static_argnums=2
    )
    before = nnx.to_flat_state(nnx.state(network, nnx.BatchStat))
    _, frozen = forward(network, fields, False)
    _, moved = forward(network, fields, True)
    for (path, old), (_, same), (_, new) in zip(
        before, nnx.to_flat_state(frozen), nnx.to_flat_state(moved), strict=True
    ):
        assert np.array_equal(old[...], same[...]), path
        assert not np.array_equal(old[...], new[...]), path
    values = np.asarray(fields) / 255 - 0.5
    np.testing.assert_allclose(
        moved["input_norm"]["mean"][...], 0.1 * values.mean((0, 1, 2, 3)), rtol=1e-4, atol=1e-6
    )


def test_wrong_fields_and_configurations_are_rejected(network):
    with pytest.raises(ValueError, match=r"needs fields \[B, S, H, W, 2\]"):
        network(jnp.zeros((3, 32, 32, 2)))
    with pytest.raises(ValueError, match="uint8 or floating"):
        network(jnp.zeros((1, 1, 32, 32, 2), jnp.int32))
    with pytest.raises(ValueError, match="in_channels must be 2"):
        MotionNetworkConfig(EfficientNetConfig.named("tiny"))


# Blocks of five; one field each; blocks and a rest; more than go through the last stages at once.
@pytest.mark.parametrize("segments", [5, 1, 4, 11])
def test_fields_taken_a_few_at_a_time_have_the_features_of_all_at_once(segments):
    network = MotionNetwork(
        MotionNetworkConfig(EfficientNetConfig.named("tiny", in_channels=2, num_classes=3)),
        rngs=nnx.Rngs(0),
    )
    randomize_norms(network)
    # Each brighter than the one before, so that their features are unlike.
    levels = np.linspace(0, 200, 3 * segments).reshape(3, segments, 1, 1, 1)
    noise = np.random.default_rng(0).integers(0, 56, (3, segments, 16, 16, 2))
    fields = (levels + noise).astype(np.uint8)

    @jax.jit
    def features(network, fields):
        return network.features(fields)

    with depthwise_implementation("convolution"):
        at_once = features(network, fields)
    with depthwise_implementation("shifted"):
        assert ("while" in features.lower(network, fields).as_text()) == (3 * segments > 5)
        in_blocks = features(network, fields)
    # A hundredth of what tells one field's features from another's, and more than rounding.
    apart = np.ptp(at_once, axis=(0, 1)).max()
    assert apart > 1e-5 * np.abs(at_once).max()
    np.testing.assert_allclose(in_blocks, at_once, rtol=0, atol=1e-2 * apart)
