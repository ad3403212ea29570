"""Multiply-adds against numbers worked out by hand and published ones."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from moclip_jax.models.depthwise import depthwise_conv
from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.flops import count_parameters, multiply_adds
from moclip_jax.models.fusion import FusionConfig, FusionHead


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def abstract(make):
    return nnx.eval_shape(make)


def test_matrix_products_in_every_order_of_axes():
    assert multiply_adds(lambda a, b: a @ b, array(2, 3), array(3, 5)) == 2 * 3 * 5
    assert (
        multiply_adds(
            lambda a, b: jnp.einsum("bhqd,bkhd->bhqk", a, b), array(2, 3, 4, 5), array(2, 7, 3, 5)
        )
        == 2 * 3 * 4 * 7 * 5
    )


def test_convolutions_grouped_and_not():
    def conv(groups):
        return lambda x, w: lax.conv_general_dilated(
            x,
            w,
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    output = 2 * 4 * 4 * 12
    assert multiply_adds(conv(1), array(2, 8, 8, 6), array(3, 3, 6, 12)) == output * 9 * 6
    assert multiply_adds(conv(3), array(2, 8, 8, 6), array(3, 3, 2, 12)) == output * 9 * 2


def test_depthwise_counts_as_such_even_in_a_function_jitted_before():
    depthwise = jax.jit(depthwise_conv)
    depthwise(jnp.ones((1, 8, 8, 6)), jnp.ones((3, 3, 6)))
    assert multiply_adds(depthwise, array(1, 8, 8, 6), array(3, 3, 6)) == 8 * 8 * 6 * 9


def test_loops_count_every_turn_and_branches_the_dearest():
    product = 4 * 4 * 4
    step = lambda x: x @ x  # noqa: E731
    scan = lambda x: lax.scan(lambda c, _: (jax.jit(step)(c), None), x, length=5)[0]  # noqa: E731
    assert multiply_adds(scan, array(4, 4)) == 5 * product
    assert (
        multiply_adds(lambda x: lax.fori_loop(0, 3, lambda _, c: c @ c, x), array(4, 4))
        == 3 * product
    )
    branches = lambda x: lax.cond(x[0, 0] > 0, step, lambda x: x @ x @ x, x)  # noqa: E731
    assert multiply_adds(branches, array(4, 4)) == 2 * product
    assert multiply_adds(jax.checkpoint(step), array(4, 4)) == product


def test_a_loop_of_unknown_length_is_rejected_only_if_it_multiplies():
    loop = lambda body: lambda x: lax.while_loop(lambda x: x[0, 0] < 9, body, x)  # noqa: E731
    with pytest.raises(ValueError, match="while loop"):
        multiply_adds(loop(lambda x: x @ x), array(4, 4))
    assert multiply_adds(loop(lambda x: x + 1), array(4, 4)) == 0


def test_efficientnet_b0_has_its_published_cost():
    model = abstract(
        lambda: EfficientNet(
            EfficientNetConfig.named("b0", in_channels=2, num_classes=101), rngs=nnx.Rngs(0)
        )
    )
    count = multiply_adds(lambda m, x: m(x), model, array(1, 224, 224, 2))
    # Published: 0.39 G for RGB and 1000 classes; here with one channel and 899 classes less.
    assert count == pytest.approx(0.39e9, rel=0.03)
    rgb = abstract(lambda: EfficientNet(EfficientNetConfig.named("b0"), rngs=nnx.Rngs(0)))
    assert multiply_adds(lambda m, x: m(x), rgb, array(1, 224, 224, 3)) - count == (
        112 * 112 * 32 * 9 + 1280 * 899
    )


def test_efficientnet_lite0_costs_what_a_hand_count_gives():
    # Of RGB at 224: side of the output, then channels in, inside and out, kernel size, blocks.
    stages = [
        (112, 32, 32, 16, 3, 1),
        (56, 16, 96, 24, 3, 2),
        (28, 24, 144, 40, 5, 2),
        (14, 40, 240, 80, 3, 3),
        (14, 80, 480, 112, 5, 3),
        (7, 112, 672, 192, 5, 4),
        (7, 192, 1152, 320, 3, 1),
    ]
    count = 112**2 * 9 * 3 * 32 + 7**2 * 320 * 1280 + 1280 * 1000
    side = 112
    for after, channels, inner, out, kernel, blocks in stages:
        for _ in range(blocks):
            count += side**2 * channels * inner if inner != channels else 0
            count += after**2 * (kernel**2 * inner + inner * out)
            side, channels, inner = after, out, 6 * out
    lite0 = abstract(lambda: EfficientNet(EfficientNetConfig.named("lite0"), rngs=nnx.Rngs(0)))
    assert multiply_adds(lambda m, x: m(x), lite0, array(1, 224, 224, 3)) == count
    assert count == pytest.approx(0.40e9, rel=0.05)


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("b0", 5.29, 0.386), ("lite0", 4.65, 0.385), ("lite1", 5.42, 0.502), ("lite2", 6.09, 0.577)],
)
def test_the_table_of_backbones(name, millions, gmacs):
    model = abstract(lambda: EfficientNet(EfficientNetConfig.named(name), rngs=nnx.Rngs(0)))
    count = multiply_adds(lambda m, x: m(x), model, array(1, 224, 224, 3))
    print(f"| `{name}` | {count_parameters(model) / 1e6:.2f} M | {count / 1e9:.3f} |")
    assert (count_parameters(model) / 1e6, count / 1e9) == pytest.approx(
        (millions, gmacs), abs=5e-3
    )


def test_fusion_head_has_its_published_parameters_and_one_multiply_add_a_weight():
    head = abstract(lambda: FusionHead(FusionConfig(), rngs=nnx.Rngs(0)))
    assert count_parameters(head) == 969_829
    count = multiply_adds(lambda h, m, a: h(m, a), head, array(1, 1280), array(1, 512))
    assert count == 969_829 - 512 - 101


def test_parameters_of_a_module_do_not_count_its_statistics():
    model = EfficientNet(EfficientNetConfig.named("tiny", num_classes=3), rngs=nnx.Rngs(0))
    assert count_parameters(model) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
    )
    assert count_parameters(model.stem_norm) == 2 * model.config.stem_channels
