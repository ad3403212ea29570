"""EfficientNet against timm, and its sizes.

The golden files were made by tests/golden/make_efficientnet.py and make_efficientnet_lite.py in
float64 (torch and timm; versions inside), so a difference is the float32 noise of our side alone.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.flops import count_parameters
from moclip_jax.pretrained.timm_efficientnet import load_efficientnet, timm_arrays
from tests.golden.efficientnet_recipe import normal, projections, scale, weight

GOLDEN = Path(__file__).parents[1] / "golden"
# name: variant, input channels, classes, input shape [N, H, W], as in those scripts.
MODELS = {
    "b0_rgb": ("b0", 3, 1000, (2, 64, 64)),
    "b0_motion": ("b0", 2, 101, (4, 128, 128)),
    "tiny_motion": ("tiny", 2, 7, (4, 45, 70)),
    "lite0_rgb": ("lite0", 3, 1000, (2, 64, 64)),
    "lite0_224": ("lite0", 3, 1000, (1, 224, 224)),
    "lite2_odd": ("lite2", 3, 1000, (2, 45, 70)),
    "lite0_motion": ("lite0", 2, 101, (4, 96, 96)),
}


def golden_case(name):
    """Returns the stored results, our model with the recipe's weights, and the input."""
    variant, in_channels, num_classes, (batch, height, width) = MODELS[name]
    file_name = "efficientnet_lite.npz" if "lite" in name else "efficientnet.npz"
    with np.load(GOLDEN / file_name) as file:
        golden = {key.split("/")[1]: file[key] for key in file if key.startswith(name + "/")}
    shapes = json.loads(str(golden["shapes"]))
    weights = {key: weight(key, tuple(shape)) for key, shape in shapes.items()}
    checksum = sum(np.abs(array).sum() for array in weights.values())
    assert checksum == pytest.approx(golden["checksum"], rel=1e-6), "the recipe has changed"
    model = load_efficientnet(weights, in_channels, num_classes, variant=variant)
    x = normal(f"{name}/input", (batch, in_channels, height, width))
    return golden, model, jnp.asarray(x.transpose(0, 2, 3, 1))


@jax.jit
def evaluated(model, x):
    return model.features(x), model(x)


@jax.jit
def train_step(model, x):
    """Returns logits, the model after its statistics were updated, and one that holds gradients."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    labels = jnp.arange(x.shape[0])

    def loss_fn(params):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(x, train=True)
        loss = -jnp.mean(jax.nn.log_softmax(logits)[labels, labels])
        return loss, (logits, nnx.state(model, nnx.BatchStat))

    gradients, (logits, statistics) = jax.grad(loss_fn, has_aux=True)(params)
    return logits, nnx.merge(graph, params, statistics), nnx.merge(graph, gradients, rest)


@pytest.mark.parametrize(
    "name",
    [
        "tiny_motion",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("b0_motion", "lite0_motion")),
    ],
)
def test_training_step_equals_timm(name):
    golden, model, x = golden_case(name)
    logits, updated, gradients = train_step(model, x)
    np.testing.assert_allclose(logits, golden["train_logits"], rtol=0, atol=1e-5)
    stored = timm_arrays(updated)
    ours = np.stack([projections(key, a) for key, a in stored.items() if "running" in key])
    error = np.abs(ours - golden["statistics"]) / scale(golden["statistics"])
    assert error.max() < 1e-5
    stored = timm_arrays(gradients)
    ours = np.stack([projections(key, a) for key, a in stored.items() if "running" not in key])
    error = np.abs(ours - golden["gradients"]) / scale(golden["gradients"])
    # The noise of float32 itself: torch's differs from its float64 by 1e-5 (tiny) and 4e-5 (b0). By
    # 0.02 for the Lites: where rounding takes a value over a corner of ReLU6, its gradient jumps.
    assert error.max() < (2e-5 if model.config.activation == "silu" else 0.03)
    assert np.median(error) < 1e-5


@pytest.mark.parametrize("name", ["b0_rgb", "tiny_motion", "lite0_rgb", "lite0_224", "lite2_odd"])
def test_inference_equals_timm(name):
    golden, model, x = golden_case(name)
    features, logits = evaluated(model, x)
    assert features.dtype == logits.dtype == jnp.float32
    np.testing.assert_allclose(features, golden["eval_features"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(logits, golden["eval_logits"], rtol=0, atol=5e-6)


@pytest.mark.four_devices
def test_training_on_a_mesh_uses_the_statistics_of_the_whole_batch():
    _, model, x = golden_case("tiny_motion")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    forward = jax.jit(lambda model, x: model(x, train=True))
    np.testing.assert_allclose(forward(model, sharded), forward(model, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "num_parameters", "num_features"),
    [
        # b0 to b3 and the Lites as timm 1.0.31 counts them.
        ("b0", 5_288_548, 1280),
        ("b1", 7_794_184, 1280),
        ("b2", 9_109_994, 1408),
        ("b3", 12_233_232, 1536),
        ("lite0", 4_652_008, 1280),
        ("lite1", 5_416_680, 1280),
        ("lite2", 6_092_072, 1280),
        ("small", 1_298_120, 640),
        ("tiny", 444_612, 320),
    ],
)
def test_full_size_shapes_and_parameter_counts(name, num_parameters, num_features):
    config = EfficientNetConfig.named(name)
    model = nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))
    assert count_parameters(model) == num_parameters
    assert config.num_features == num_features
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, images).shape == (2, 1000)


def test_motion_backbone_of_ucf101_has_the_expected_parameters():
    config = EfficientNetConfig.named("b0", in_channels=2, num_classes=101)
    model = nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))
    # One channel less in the stem (3 * 3 * 32), 899 classes less in the classifier.
    assert count_parameters(model) == 5_288_548 - 288 - 899 * 1281


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_results_in_float32():
    config = EfficientNetConfig.named("tiny", num_classes=3, dtype=jnp.bfloat16)
    model = nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, x).dtype == jnp.float32
    block = jax.ShapeDtypeStruct((2, 16, 16, config.stem_channels), jnp.bfloat16)
    apply = lambda m, x: m.blocks[0][0](x, train=False)  # noqa: E731
    assert jax.eval_shape(apply, model, block).dtype == jnp.bfloat16


def test_initial_values_have_timms_spread():
    model = EfficientNet(EfficientNetConfig.named("tiny", num_classes=50), rngs=nnx.Rngs(0))
    block = model.blocks[5][0]
    for kernel, fan_out in (
        (model.head.kernel, 320),
        (block.expand.kernel, 192),
        (block.depthwise.kernel, 25),
        (block.squeeze_excite.reduce.kernel, 8),
    ):
        assert np.std(kernel[...]) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    bound = 50**-0.5
    assert np.max(np.abs(model.classifier.kernel[...])) == pytest.approx(bound, rel=0.01)
    assert np.max(np.abs(model.classifier.kernel[...])) <= bound


def test_wrong_input_and_configurations_are_rejected():
    model = EfficientNet(EfficientNetConfig.named("tiny"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"needs \[N, H, W, 3\]"):
        model(jnp.zeros((1, 32, 32, 2)))
    with pytest.raises(ValueError, match="floating"):
        model(jnp.zeros((1, 32, 32, 3), jnp.uint8))
    with pytest.raises(ValueError, match="no EfficientNet 'b9'"):
        EfficientNetConfig.named("b9")
    with pytest.raises(ValueError, match="num_classes must be positive"):
        EfficientNetConfig(num_classes=0)
