"""Meshes and batches."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.runtime.sharding import (
    MODEL_AXIS,
    check_batch_size,
    make_mesh,
    partition_spec,
    replicate,
    shard_batch,
    split_over_model,
)
from moclip_jax.training.features import make_extract_step


def test_a_batch_is_split_in_order_over_all_devices():
    mesh = make_mesh()
    batch = shard_batch({"x": np.arange(8)}, mesh)["x"]
    assert len(batch.addressable_shards) == len(jax.devices()) >= 4
    np.testing.assert_array_equal(batch, np.arange(8))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(8 // mesh.size,)}


def test_parameters_are_whole_on_every_device():
    tree = replicate({"w": np.ones((3, 2))}, make_mesh())
    assert all(shard.data.shape == (3, 2) for shard in tree["w"].addressable_shards)


def test_a_batch_that_cannot_be_split_names_the_field_and_what_would_do():
    mesh = make_mesh()
    check_batch_size(mesh, "motion.batch_size", 2 * mesh.size)
    with pytest.raises(
        ValueError,
        match=rf"config.motion.batch_size=.* cannot be split over .*such as {mesh.size} or",
    ):
        check_batch_size(mesh, "motion.batch_size", mesh.size + 1)


def test_a_model_axis_that_does_not_divide_the_devices_is_an_error_that_names_the_setting():
    assert dict(make_mesh(model=2).shape) == {"data": len(jax.devices()) // 2, "model": 2}
    with pytest.raises(ValueError, match=r"config.mesh.model=3 does not divide the 4 devices"):
        make_mesh(jax.devices()[:4], model=3)


def test_processes_with_different_numbers_of_devices_are_rejected():
    devices = [SimpleNamespace(process_index=i // 2, id=i) for i in range(3)]
    with pytest.raises(ValueError, match="processes have different numbers of devices"):
        make_mesh(devices)  # type: ignore[arg-type]


def small_l14() -> CLIP:
    """Layers of a ViT-L/14 as wide as they are, but two of each tower instead of 24 and 12."""
    config = CLIPConfig.named("vit_l14")
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, num_layers=2, image_size=56),
        text=dataclasses.replace(config.text, num_layers=1, vocab_size=600),
    )
    return nnx.jit(lambda: CLIP(config, rngs=nnx.Rngs(0)))()


def test_a_vit_l14_split_over_devices_gives_the_features_of_the_whole_one():
    clip = small_l14()
    config = MotionNetworkConfig(EfficientNetConfig.named("tiny", in_channels=2, num_classes=3))
    network = nnx.jit(lambda: MotionNetwork(config, rngs=nnx.Rngs(1)))()
    rng = np.random.default_rng(0)
    rows = np.arange(4)
    batch = {
        "motion": rng.integers(0, 256, (4, 1, 2, 32, 32, 2), np.uint8),
        "images": rng.integers(0, 256, (4, 1, 56, 56, 3), np.uint8),
        "label": rows,
        "index": rows,
        "mask": rows >= 0,
    }
    whole = make_extract_step(network, clip, make_mesh(jax.devices()[:1]))(batch)
    for model in (2, 4):
        split = make_extract_step(network, clip, make_mesh(model=model))(batch)
        assert split["appearance"].shape == (4, 1, 768)
        np.testing.assert_allclose(split["appearance"], whole["appearance"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(split["motion"], whole["motion"], rtol=1e-4, atol=1e-5)
    narrow = make_extract_step(network, clip, make_mesh(), motion_products=jnp.bfloat16)(batch)
    error = np.abs(narrow["motion"] - whole["motion"]).max() / np.abs(whole["motion"]).max()
    assert 1e-4 < error < 0.05


def test_a_split_vit_l14_takes_its_share_of_memory_on_each_device():
    config = CLIPConfig.named("vit_l14")
    tower = nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0)).vision)
    mesh = make_mesh(model=4)
    held = total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(tower)):
        spec = partition_spec(path, leaf, mesh)
        held += leaf.size // (4 if MODEL_AXIS in spec else 1)
        total += leaf.size
    # All but embeddings, projections, normalisations and some biases is split.
    assert 0.25 * total < held < 0.26 * total
    placed = split_over_model(nnx.state(small_l14().vision), mesh)
    kernel = placed["encoder"]["layers"]["fc1"]["kernel"][...]
    assert kernel.sharding.spec == PartitionSpec(None, None, MODEL_AXIS)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 1024, 1024)}
