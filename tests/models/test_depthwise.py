"""The shifted sum and its hand-written derivative against XLA's convolution and torch's."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moclip_jax.models.depthwise import depthwise_conv, depthwise_implementation
from tests.golden.efficientnet_recipe import normal

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet.npz"
# (batch, height, width), kernel size, stride: square and not, odd and even, smaller than the
# kernel, one pixel, more rows than one band of the gradient sums, several images to a band.
CASES = [
    ((2, 8, 8), 3, 1),
    ((2, 8, 8), 3, 2),
    ((3, 7, 10), 5, 2),
    ((3, 10, 7), 3, 2),
    ((1, 1, 1), 5, 1),
    ((1, 1, 2), 3, 2),
    ((6, 2, 3), 5, 1),
    ((2, 37, 5), 3, 1),
    ((1, 69, 4), 3, 2),
    ((2, 9, 9), 1, 2),
    ((2, 9, 8), 3, 3),
]


def arrays(size, kernel_size, stride, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(kernel_size * 10 + stride), 3)
    batch, height, width = size
    output = (batch, (height - 1) // stride + 1, (width - 1) // stride + 1, 3)
    return (
        jax.random.normal(keys[0], (batch, height, width, 3), dtype),
        jax.random.normal(keys[1], (kernel_size, kernel_size, 3), dtype),
        jax.random.normal(keys[2], output, dtype),
    )


@partial(jax.jit, static_argnums=(3, 4))
def with_gradients(x, kernel, gradient, stride, same=False):
    output, pullback = jax.vjp(lambda x, k: depthwise_conv(x, k, stride, same=same), x, kernel)
    return output, *pullback(gradient)


def output_and_gradients(implementation, x, kernel, gradient, stride, same=False):
    with depthwise_implementation(implementation):
        return with_gradients(x, kernel, gradient, stride, same)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("size", "kernel_size", "stride"), CASES)
def test_shifted_sum_and_its_gradients_equal_the_grouped_convolution(
    size, kernel_size, stride, same
):
    x, kernel, gradient = arrays(size, kernel_size, stride)
    ours = output_and_gradients("shifted", x, kernel, gradient, stride, same)
    xla = output_and_gradients("convolution", x, kernel, gradient, stride, same)
    assert ours[0].shape == gradient.shape
    for a, b in zip(ours, xla, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("size", "kernel_size", "stride"), CASES)
def test_same_padding_is_that_of_xla(size, kernel_size, stride):
    x, kernel, _ = arrays(size, kernel_size, stride)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    ours = depthwise_conv(x, kernel, stride, same=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-5)


def test_equals_torch_at_even_and_odd_sizes():
    """Golden file: tests/golden/make_efficientnet.py, in float64 (torch; version inside)."""
    with np.load(GOLDEN) as file:
        golden = {
            key.removeprefix("depthwise/"): file[key] for key in file if key.startswith("depth")
        }
    cases = sorted({key.split("/")[0] for key in golden})
    assert len(cases) == 18
    for case in cases:
        size, stride, shape = case.split("_")
        height, width = map(int, shape.split("x"))
        kernel = normal(f"{case}/w", (3, 1, int(size[1:]), int(size[1:])))
        y, gx, gw = (golden[f"{case}/{name}"] for name in ("y", "gx", "gw"))
        ours = with_gradients(
            normal(f"{case}/x", (2, 3, height, width)).transpose(0, 2, 3, 1),
            kernel[:, 0].transpose(1, 2, 0),
            normal(f"{case}/g", y.shape).transpose(0, 2, 3, 1),
            int(stride[1:]),
        )
        expected = (y.transpose(0, 2, 3, 1), gx.transpose(0, 2, 3, 1), gw[:, 0].transpose(1, 2, 0))
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=case)


def test_bfloat16_keeps_its_dtype_and_sums_the_kernel_gradient_in_float32():
    x, kernel, gradient = arrays((8, 16, 16), 3, 1, jnp.bfloat16)
    output, gx, gk = output_and_gradients("shifted", x, kernel, gradient, 1)
    assert output.dtype == gx.dtype == gk.dtype == jnp.bfloat16
    exact = output_and_gradients(
        "convolution", *(a.astype(jnp.float32) for a in (x, kernel, gradient)), 1
    )
    # One rounding to bfloat16 (8 bits) of a product and one of the sum; a bfloat16 sum over 2048
    # terms would be wrong by units.
    np.testing.assert_allclose(gk.astype(jnp.float32), exact[2], rtol=0.02, atol=0.2)


def test_the_forced_implementation_is_the_one_traced_even_by_a_function_traced_before():
    x, kernel, _ = arrays((1, 4, 4), 3, 1)
    with depthwise_implementation("convolution"):
        assert "conv_general_dilated" in str(jax.make_jaxpr(depthwise_conv)(x, kernel))
    with depthwise_implementation("shifted"):
        assert "conv_general_dilated" not in str(jax.make_jaxpr(depthwise_conv)(x, kernel))


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape"),
    [((1, 4, 4, 3), (3, 3, 2)), ((4, 4, 3), (3, 3, 3)), ((1, 4, 4, 3), (2, 2, 3))],
)
def test_shapes_that_do_not_fit_are_rejected(x_shape, kernel_shape):
    with pytest.raises(ValueError, match="depthwise_conv needs"):
        depthwise_conv(jnp.zeros(x_shape), jnp.zeros(kernel_shape))


def test_dtypes_that_differ_and_unknown_implementations_are_rejected():
    with pytest.raises(ValueError, match="one dtype"):
        depthwise_conv(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3), jnp.bfloat16))
    with (
        pytest.raises(ValueError, match="one of shifted, convolution, by_platform"),
        depthwise_implementation("x"),
    ):
        pass
