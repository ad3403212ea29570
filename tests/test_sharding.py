"""Meshes and batches."""

import jax
import numpy as np
import pytest

from moclip_jax.sharding import check_batch_size, make_mesh, replicate, shard_batch


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
    with pytest.raises(ValueError, match=rf"config.motion.batch_size=.*such as {mesh.size} or"):
        check_batch_size(mesh, "motion.batch_size", mesh.size + 1)
