"""The motion network against torch, live: forward, gradients, statistics, and a whole run."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.pretrained.timm_efficientnet import timm_arrays
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training.optimizers import motion_optimizer
from moclip_jax.training.trainer import TrainState, make_train_step
from tests.parity.noise import relative_error, report
from tests.reference.motion_network_torch import (
    MotionNetworkTorch,
    arrays_in_order,
    set_arrays_in_order,
)
from tests.reference.training_torch import train_motion

CLASSES = 101


def smooth_fields(seed: int, batch: int, segments: int, side: int) -> np.ndarray:
    """uint8 [B, S, side, side, 2]: patches of motion, as fields have, around 128."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, segments, side // 8, side // 8, 2), np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


@pytest.fixture(scope="module")
def pair() -> tuple[MotionNetwork, MotionNetworkTorch]:
    """The full-size network with the same weights on both sides, statistics included."""
    config = MotionNetworkConfig(EfficientNetConfig.named("b0", in_channels=2, num_classes=CLASSES))
    ours = nnx.jit(lambda: MotionNetwork(config, rngs=nnx.Rngs(0)))()
    theirs = MotionNetworkTorch(CLASSES)
    set_arrays_in_order(theirs, our_arrays(ours))
    return ours, theirs


def our_arrays(network: MotionNetwork) -> list[np.ndarray]:
    """In the order of the reference: the input's normalisation, then timm's order."""
    norm = network.input_norm
    first = [np.asarray(leaf[...]) for leaf in (norm.scale, norm.bias, norm.mean, norm.var)]
    return first + list(timm_arrays(network.backbone).values())


@jax.jit
def training_step(network, inputs, labels):
    """Returns logits, and the network with gradients in place of parameters and new statistics."""
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def loss_fn(params):
        network = nnx.merge(graph, params, rest, copy=True)
        logits = network(inputs, train=True)
        loss = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()
        return loss, (logits, nnx.state(network, nnx.BatchStat))

    gradients, (logits, statistics) = jax.grad(loss_fn, has_aux=True)(params)
    # The gradients stand where the parameters stood, so that one order serves both.
    return logits, nnx.merge(graph, gradients, statistics)


def worst_differences(model: torch.nn.Module, arrays: list[np.ndarray]) -> dict[str, float]:
    """Compares gradients and statistics, in the order of the modules, with a torch module's own."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("tracked")}
    parameters = dict(model.named_parameters())
    worst = {"gradients": 0.0, "statistics": 0.0}
    # Some gradients are zero but for rounding (biases before a normalisation), so the scale is that
    # of the largest gradient of all.
    scale = max(p.grad.abs().max().item() for p in parameters.values())
    for (name, value), array in zip(state.items(), arrays, strict=True):
        if name in parameters:
            error = np.abs(array - parameters[name].grad.numpy()).max() / scale
            worst["gradients"] = max(worst["gradients"], error)
        else:
            # A mean may be zero but for rounding; a tenth is what a step adds of a unit spread.
            error = relative_error(array, value, floor=0.1)
            worst["statistics"] = max(worst["statistics"], error)
    return worst


def test_inference_at_the_published_size(pair):
    ours, theirs = pair
    fields = smooth_fields(0, 2, 3, 224)
    with torch.no_grad():
        inputs = torch.from_numpy(fields).float().permute(0, 1, 4, 2, 3) / 255 - 0.5
        expected = copy.deepcopy(theirs).eval()(inputs).numpy()
    logits = jax.jit(lambda model, x: model(x))(ours, fields)
    error = relative_error(logits, expected)
    report("B0 on 2 x 3 x 224 x 224, inference", logits=error)
    assert error < 1e-5


def test_a_training_step_gives_torchs_gradients_and_statistics(pair):
    ours, theirs = pair
    fields, labels = smooth_fields(1, 4, 3, 96), np.arange(4)
    model = copy.deepcopy(theirs).double().train()
    inputs = torch.from_numpy(fields).double().permute(0, 1, 4, 2, 3) / 255 - 0.5
    functional.cross_entropy(model(inputs), torch.from_numpy(labels)).backward()

    _, result = training_step(ours, fields, labels)
    worst = worst_differences(model, our_arrays(result))
    report("B0, a training step, against torch in float64", **worst)
    assert worst["gradients"] < 2e-5
    assert worst["statistics"] < 1e-5


def test_twenty_steps_of_training_follow_torch(pair):
    """Losses, parameters and statistics of a run with three groups and two decays of the rate.

    Three runs: ours (float32), torch's (float32) and torch's in float64, which is the exact run.
    The gradient of a deep network multiplies rounding, and twenty steps feed it back; so the
    limit is not a number for all machines but the noise that torch itself shows in float32.
    """
    network, theirs = pair
    steps, rate, boundaries = 20, 0.01, (8, 16)
    batches = [
        (smooth_fields(10 + i, 4, 3, 64), np.random.default_rng(i).integers(0, CLASSES, 4))
        for i in range(steps)
    ]
    single, double = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    losses32 = train_motion(single, batches, learning_rate=rate, boundaries=boundaries)
    losses64 = train_motion(double, batches, learning_rate=rate, boundaries=boundaries)

    graph, params, stats = nnx.split(nnx.clone(network), nnx.Param, ...)
    optimizer = motion_optimizer(params, learning_rate=rate, boundaries=boundaries)
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
    train_step = make_train_step(
        graph,
        lambda model, batch, train, key: model(batch["motion"], train=train),
        optimizer,
        make_mesh(jax.devices()[:1]),
    )
    losses = []
    for fields, labels in batches:
        batch = {"motion": fields, "label": labels.astype(np.int32)}
        state, sums = train_step(state, batch, jax.random.key(0))
        losses.append(float(sums["loss"] / sums["count"]))
    trained = our_arrays(nnx.merge(graph, state.params, state.stats))

    def distance(run) -> float:
        """Of all weights and statistics from the exact run's, as a share of the way it went."""
        start, exact = arrays_in_order(theirs), arrays_in_order(double)

        def squares(arrays) -> float:
            pairs = zip(arrays, exact, strict=True)
            return sum(((np.asarray(a) - np.asarray(e)) ** 2).sum() for a, e in pairs)

        return float((squares(run) / squares(start)) ** 0.5)

    noise = {
        "losses_ours": np.abs(np.subtract(losses, losses64)).max(),
        "losses_torch": np.abs(np.subtract(losses32, losses64)).max(),
        "weights_ours": distance(trained),
        "weights_torch": distance(arrays_in_order(single)),
    }
    report("motion network, 20 steps, from torch in float64", **noise)
    assert losses64[-1] != pytest.approx(losses64[0], abs=0.1)  # it did train
    assert noise["losses_ours"] < max(3 * noise["losses_torch"], 1e-4)
    assert noise["weights_ours"] < max(3 * noise["weights_torch"], 1e-4)


def test_the_reference_is_timms_network_parameter_by_parameter(timm):
    torch.manual_seed(0)
    theirs = timm.create_model("efficientnet_b0", in_chans=2, num_classes=CLASSES).eval()
    ours = MotionNetworkTorch(CLASSES).eval()
    norm = [torch.ones(2), torch.zeros(2), torch.zeros(2), torch.ones(2)]
    set_arrays_in_order(ours, [v.numpy() for v in norm + arrays_in_order(theirs)])
    fields = torch.rand(2, 3, 2, 96, 96) - 0.5
    with torch.no_grad():
        expected = theirs(ours.input_norm(fields.flatten(0, 1))).view(2, 3, -1).mean(1)
        torch.testing.assert_close(ours(fields), expected, rtol=1e-5, atol=1e-6)


def test_the_rgb_network_of_1000_classes_in_both_modes():
    """The pretrained form: its logits, and a training step's gradients and statistics."""
    config = EfficientNetConfig.named("b0")
    ours = nnx.jit(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))()
    whole = MotionNetworkTorch(1000, in_channels=3).double()
    theirs = torch.nn.Sequential(whole.backbone, whole.classifier)
    set_arrays_in_order(theirs, list(timm_arrays(ours).values()))
    images = np.random.default_rng(3).standard_normal((4, 96, 96, 3)).astype(np.float32)
    inputs = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    labels = np.arange(4)
    with torch.no_grad():
        expected = theirs.eval()(inputs).numpy()
    inference = relative_error(jax.jit(lambda model, x: model(x))(ours, images), expected)
    assert inference < 1e-5

    outputs = theirs.train()(inputs)
    functional.cross_entropy(outputs, torch.from_numpy(labels)).backward()
    logits, result = training_step(ours, images, labels)
    differences = worst_differences(theirs, list(timm_arrays(result).values()))
    differences["logits"] = relative_error(logits, outputs.detach().numpy())
    report("B0, RGB, 1000 classes", inference=inference, **differences)
    assert differences["logits"] < 1e-5
    assert differences["gradients"] < 2e-5
    assert differences["statistics"] < 1e-5
