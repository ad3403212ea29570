"""The forms that run fast give the numbers of the networks they were made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.batch_norm import BatchNorm
from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.efficientnet_config import LITE
from moclip_jax.models.inference import FoldedNorm, clip_for_inference, motion_network_for_inference
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from tests.random_norms import randomize_norms


@pytest.fixture(scope="module", params=[{}, LITE], ids=["tiny", "tiny lite"])
def trained(request):
    """A network whose statistics and scales are not those of the beginning."""
    backbone = EfficientNetConfig.named("tiny", in_channels=2, num_classes=3, **request.param)
    config = MotionNetworkConfig(backbone)
    network = nnx.jit(lambda: MotionNetwork(config, rngs=nnx.Rngs(0)))()
    randomize_norms(network)
    return network


@jax.jit
def motion_features(network, fields):
    return network.features(fields)


def test_a_folded_network_has_the_features_of_the_trained_one_and_no_statistics_inside(trained):
    fields = np.random.default_rng(1).integers(0, 256, (2, 3, 48, 40, 2), np.uint8)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(trained))]
    frozen = motion_network_for_inference(trained)
    np.testing.assert_allclose(
        motion_features(frozen, fields), motion_features(trained, fields), rtol=1e-5, atol=1e-5
    )
    norms = [path for path, part in nnx.iter_modules(frozen) if isinstance(part, BatchNorm)]
    assert norms == [("input_norm",)]
    # The trained one still has its own.
    after = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(trained))]
    assert all(map(np.array_equal, before, after))


def test_products_in_bfloat16_are_those_of_a_network_that_has_them_itself(trained):
    """`features.motion_dtype` does to the frozen form what `motion.dtype` does to a network."""
    fields = np.random.default_rng(1).integers(0, 256, (1, 2, 48, 40, 2), np.uint8)
    backbone = dataclasses.replace(trained.config.backbone, dtype=jnp.bfloat16)
    narrow = nnx.eval_shape(lambda: MotionNetwork(MotionNetworkConfig(backbone), rngs=nnx.Rngs(0)))
    nnx.update(narrow, nnx.state(trained))
    expected = motion_features(motion_network_for_inference(narrow), fields)
    frozen = motion_network_for_inference(trained, jnp.bfloat16)
    np.testing.assert_array_equal(motion_features(frozen, fields), expected)
    wide = motion_features(motion_network_for_inference(trained), fields)
    largest = np.abs(wide).max()
    assert 1e-4 * largest < np.abs(expected - wide).max() < 0.05 * largest
    # And back.
    same = motion_features(motion_network_for_inference(narrow, jnp.float32), fields)
    np.testing.assert_array_equal(same, wide)


def test_a_folded_norm_computes_in_float32_what_lies_in_bfloat16():
    norm = BatchNorm(2)
    norm.bias[...], norm.var[...] = jnp.array([0.3, -0.7]), 1 - jnp.full(2, norm.eps)
    x = jnp.linspace(-9, 9, 64, dtype=jnp.bfloat16).reshape(-1, 2)
    folded = FoldedNorm(np.asarray(norm.bias[...]))(x, train=False, activation="silu")
    assert folded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(folded, norm(x, train=False, activation="silu"))


def test_a_folded_norm_cannot_train():
    with pytest.raises(ValueError, match="no statistics to train with"):
        FoldedNorm(np.zeros(3, np.float32))(jnp.zeros((2, 3)), train=True)


@pytest.fixture(scope="module")
def clip():
    config = CLIPConfig.named("vit_b32")
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, num_layers=3, image_size=96),
        text=dataclasses.replace(config.text, num_layers=1, vocab_size=600),
    )
    return nnx.jit(lambda: CLIP(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(2), (3, 96, 96, 3))


@jax.jit
def embeddings(clip, images):
    return clip.encode_image(images)


def test_the_last_block_for_one_token_is_that_of_all(clip, images):
    @jax.jit
    def both(tower, images):
        x = tower.embed(images)
        return tower.encoder(x)[:, 0], tower.encoder.first_token(x)

    for tower in (clip.vision, clip_for_inference(clip, jnp.float32).vision):
        of_all, of_one = both(tower, images)
        np.testing.assert_allclose(of_one, of_all, rtol=1e-5, atol=1e-5)


def test_a_frozen_tower_has_the_embeddings_of_the_whole_clip(clip, images):
    frozen = clip_for_inference(clip, jnp.float32)
    assert not hasattr(frozen, "text") and hasattr(clip, "text")
    assert len(frozen.vision.encoder.blocks) == 3
    whole = embeddings(clip, images)
    np.testing.assert_allclose(embeddings(frozen, images), whole, rtol=1e-5, atol=1e-5)


def test_a_clip_that_several_devices_work_on_keeps_its_stacked_layers(clip):
    frozen = clip_for_inference(clip, jnp.bfloat16, devices=2)
    assert not hasattr(frozen, "text")
    stacked, same = nnx.state(clip.vision), nnx.state(frozen.vision)
    jax.tree.map(np.testing.assert_array_equal, same, stacked)


def test_products_of_bfloat16_round_their_factors_and_nothing_else(clip, images):
    frozen = clip_for_inference(clip, jnp.bfloat16)
    kernels = [leaf for path, leaf in nnx.to_flat_state(nnx.state(frozen)) if path[-1] == "kernel"]
    assert {kernel.dtype for kernel in kernels} == {jnp.dtype(jnp.bfloat16)}
    result, whole = embeddings(frozen, images), np.asarray(embeddings(clip, images))
    assert result.dtype == jnp.float32
    # Eight bits of a factor: 2^-9 of it at most, and the errors of many products cancel.
    difference = np.abs(result - whole).max() / np.abs(whole).max()
    assert 1e-5 < difference < 2e-2
    # In float32 sums: a tower that computes in bfloat16 throughout is farther off.
    config = dataclasses.replace(clip.config, dtype=jnp.bfloat16)
    narrow = nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0)))
    nnx.update(narrow, nnx.state(clip))
    throughout = np.asarray(embeddings(narrow, images))
    assert difference < np.abs(throughout - whole).max() / np.abs(whole).max()
