"""BatchNorm against torch.nn.BatchNorm2d.

The golden file was made by tests/golden/make_efficientnet.py in float64 (torch; version inside).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from moclip_jax.models.batch_norm import BatchNorm
from tests.golden.efficientnet_recipe import normal

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet.npz"


def channels_last(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def test_three_training_steps_and_inference_equal_torch():
    with np.load(GOLDEN) as file:
        golden = {
            key.removeprefix("batch_norm/"): file[key] for key in file if key.startswith("batch_n")
        }
    norm = BatchNorm(3)
    norm.scale[...] = jnp.asarray(normal("weight", (3,)))
    norm.bias[...] = jnp.asarray(normal("bias", (3,)))
    for step in range(3):
        x = channels_last(normal(f"x{step}", (4, 3, 5, 7)) + np.float32(100))
        gradient = channels_last(normal(f"g{step}", (4, 3, 5, 7)))
        graph, params, statistics = nnx.split(norm, nnx.Param, nnx.BatchStat)

        def apply(params, x, graph=graph, statistics=statistics):
            norm = nnx.merge(graph, params, statistics, copy=True)
            return norm(x, train=True), nnx.state(norm, nnx.BatchStat)

        y, pullback, statistics = jax.vjp(apply, params, x, has_aux=True)
        params_gradient, x_gradient = pullback(gradient)
        nnx.update(norm, statistics)
        # The values lie at 100: one unit in the last place of the input is 8e-6 of its deviation.
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(y, channels_last(golden[f"{step}/y"]), **close)
        np.testing.assert_allclose(x_gradient, channels_last(golden[f"{step}/gx"]), **close)
        np.testing.assert_allclose(
            params_gradient["scale"][...], golden[f"{step}/gweight"], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(params_gradient["bias"][...], golden[f"{step}/gbias"], **close)
        np.testing.assert_allclose(norm.mean[...], golden[f"{step}/mean"], rtol=1e-6)
        np.testing.assert_allclose(norm.var[...], golden[f"{step}/var"], rtol=1e-6)
    np.testing.assert_allclose(
        norm(x, train=False), channels_last(golden["eval"]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("activation", "definition"),
    [
        ("silu", lambda z: z / (1 + jnp.exp(-z))),
        ("relu6", lambda z: jnp.where(z > 0, jnp.where(z < 6, z, 6.0), 0.0)),
        (None, lambda z: z),
    ],
)
def test_the_gradient_through_norm_and_activation_is_that_of_their_definitions(
    activation, definition
):
    key = jax.random.key(3)
    x, weights = (3 * jax.random.normal(k, (4, 5, 6, 3)) + 2 for k in jax.random.split(key))
    scale, bias = jnp.array([0.5, 3.5, -1.0]), jnp.array([0.2, 3.0, 1.0])

    def by_definition(x, scale, bias):
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        z = (x - mean) / jnp.sqrt(var + 1e-5) * scale[None, None, None] + bias[None, None, None]
        return jnp.sum(weights * definition(z))

    def ours(x, scale, bias):
        norm = BatchNorm(3)
        norm.scale[...], norm.bias[...] = scale, bias
        return jnp.sum(weights * norm(x, train=True, activation=activation))

    expected = jax.value_and_grad(by_definition, (0, 1, 2))(x, scale, bias)
    result = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(x, scale, bias)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, expected
    )


@pytest.mark.four_devices
def test_statistics_of_a_sharded_batch_are_those_of_the_whole():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 2)) * jnp.arange(1.0, 9.0).reshape(
        8, 1, 1, 1
    )
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def step(norm, x):
        return norm(x, train=True), norm

    whole, split = step(BatchNorm(2), x), step(BatchNorm(2), sharded)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(split[1].var[...], whole[1].var[...], rtol=1e-6)
    # Not the mean of the variances of the parts.
    np.testing.assert_allclose(
        split[1].var[...], 0.9 + 0.1 * np.var(x, axis=(0, 1, 2), ddof=1), rtol=1e-5
    )


def test_bfloat16_input_has_float32_statistics():
    x = jax.random.normal(jax.random.key(1), (64, 8, 8, 2)) + 3.0
    norm = BatchNorm(2)
    assert norm(x.astype(jnp.bfloat16), train=True).dtype == jnp.bfloat16
    assert norm.mean.dtype == jnp.float32
    # Sums of 4096 numbers in bfloat16 would stop growing at 256.
    np.testing.assert_allclose(norm.mean[...], 0.1 * np.mean(x, axis=(0, 1, 2)), rtol=1e-3)


def test_inference_leaves_everything_as_it_is():
    norm = BatchNorm(2)
    before = jax.tree.leaves(nnx.state(norm))
    norm(jnp.full((4, 2), 7.0), train=False)
    assert all(map(np.array_equal, before, jax.tree.leaves(nnx.state(norm))))


def test_one_value_per_channel_and_wrong_channels_are_rejected():
    with pytest.raises(ValueError, match="more than one value per channel"):
        BatchNorm(2)(jnp.zeros((1, 1, 1, 2)), train=True)
    with pytest.raises(ValueError, match="of 2 channels"):
        BatchNorm(2)(jnp.zeros((4, 3)), train=False)
