"""The optimizers against torch's, and the coverage of the learning-rate groups.

The golden file was made by tests/golden/make_optimizers.py in float64 (torch; version inside).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.training.optimizers import head_optimizer, motion_optimizer, parameter_group
from tests.golden.optimizers_recipe import (
    ADAM,
    ADAMW,
    BOUNDARIES,
    NUM_STEPS,
    PARAMETERS,
    gradient,
    initial_value,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "optimizers.npz"


def nested(values):
    """{'a/b': x} -> the state {'a': {'b': Param(x)}}."""
    return nnx.from_flat_state(
        {tuple(path.split("/")): nnx.Param(jnp.asarray(x)) for path, x in values.items()}
    )


def check_trajectory(name, optimizer, params, tolerance):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    with np.load(GOLDEN) as golden:
        for step in range(NUM_STEPS):
            gradients = nested({path: gradient(path, step) for path in PARAMETERS})
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            for path, value in nnx.to_flat_state(params):
                expected = golden[f"{name}:{'/'.join(path)}"][step]
                np.testing.assert_allclose(
                    value[...], expected, rtol=1e-6, atol=tolerance, err_msg=f"{path}, step {step}"
                )


def test_motion_optimizer_follows_torch_adam_with_groups_and_steps():
    params = nested({path: initial_value(path) for path in PARAMETERS})
    optimizer = motion_optimizer(params, boundaries=BOUNDARIES, **ADAM)
    check_trajectory("adam", optimizer, params, 1e-6)


def test_head_optimizer_follows_torch_adamw():
    params = nested({path: initial_value(path) for path in PARAMETERS})
    check_trajectory("adamw", head_optimizer(**ADAMW), params, 1e-6)


def motion_params(name="tiny"):
    config = MotionNetworkConfig(EfficientNetConfig.named(name, in_channels=2, num_classes=101))
    return nnx.state(nnx.eval_shape(lambda: MotionNetwork(config, rngs=nnx.Rngs(0))), nnx.Param)


def test_every_parameter_of_a_motion_network_has_one_group():
    groups = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(motion_params("b0")):
        groups[parameter_group(path)] = groups.get(parameter_group(path), 0) + leaf.size
    assert groups == {
        "stem": 3 * 3 * 2 * 32 + 4,
        "classifier": 1280 * 101 + 101,
        # All of B0 without its stem's kernel and its classifier.
        "rest": 5_288_548 - 3 * 3 * 3 * 32 - 1281 * 1000,
    }


def test_multipliers_scale_the_first_step():
    """Adam's first step is the learning rate itself, whatever the gradient."""
    params = nested({path: np.ones(shape) for path, (shape, _) in PARAMETERS.items()})
    optimizer = motion_optimizer(params, learning_rate=0.5, eps=0.0, weight_decay=0.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    rates = {"classifier": 0.5, "stem": 0.05, "rest": 0.005}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        np.testing.assert_allclose(update, -rates[parameter_group(path)], rtol=1e-5)


def test_weight_decay_reaches_normalisations_and_biases():
    params = nested({path: np.ones(shape) for path, (shape, _) in PARAMETERS.items()})
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = motion_optimizer(params, learning_rate=0.1)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert all(np.all(update < 0) for update in jax.tree.leaves(updates))


def test_a_parameter_without_a_group_is_rejected_by_name():
    params = nested({"backbone/stem/kernel": np.ones(2), "backbone/new_part/kernel": np.ones(2)})
    with pytest.raises(ValueError, match=r"new_part.*no learning-rate group"):
        motion_optimizer(params, learning_rate=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": {"classifier": 1.0, "stem": 0.1}}, "multipliers must name exactly"),
        ({"boundaries": (5, 3)}, "boundaries must rise"),
        ({"boundaries": (3, 3)}, "boundaries must rise"),
    ],
)
def test_wrong_settings_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        motion_optimizer(motion_params(), learning_rate=0.1, **options)
