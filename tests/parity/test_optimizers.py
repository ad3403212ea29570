"""Both optimizers against torch's in float32, live, on the same gradients of twenty steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from moclip_jax.training.optimizers import head_optimizer, motion_optimizer, parameter_group
from tests.parity.noise import report

SHAPES = {
    ("input_norm", "scale"): (2,),
    ("backbone", "stem", "kernel"): (3, 3, 2, 32),
    ("backbone", "blocks", "kernel"): (96, 24),
    ("backbone", "classifier", "kernel"): (1280, 101),
}
MULTIPLIERS = {"classifier": 1.0, "stem": 0.1, "rest": 0.01}


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_twenty_steps(kind):
    rng = np.random.default_rng(0)
    # As large as trained weights are: near 1 each step's rounding alone is 1e-7.
    start = {
        path: 0.05 * rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()
    }
    params = nnx.from_flat_state({k: nnx.Param(jnp.asarray(v)) for k, v in start.items()})
    theirs = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    if kind == "adam":
        ours = motion_optimizer(params, learning_rate=0.01, boundaries=(8, 16))
        groups = {
            parameter_group(tuple(jax.tree_util.DictKey(k) for k in path)): value
            for path, value in theirs.items()
            if path[0] != "input_norm"
        }
        rows = [{"params": [v], "lr": 0.01 * MULTIPLIERS[name]} for name, v in groups.items()]
        rows[0]["params"].append(theirs["input_norm", "scale"])  # goes with the stem
        assert list(groups) == ["stem", "rest", "classifier"]
        optimizer = torch.optim.Adam(rows, eps=1e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 16], gamma=0.1)
    else:
        ours = head_optimizer()
        optimizer = torch.optim.AdamW(theirs.values(), lr=1e-4, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    state = ours.init(params)
    update = jax.jit(ours.update)
    for _ in range(20):
        gradients = {
            path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()
        }
        tree = nnx.from_flat_state({k: nnx.Param(jnp.asarray(v)) for k, v in gradients.items()})
        updates, state = update(tree, state, params)
        params = optax.apply_updates(params, updates)
        for path, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[path])
        optimizer.step()
        schedule.step()
    worst = max(
        np.abs(np.asarray(leaf[...]) - theirs[path].detach().numpy()).max()
        for path, leaf in nnx.to_flat_state(params)
    )
    report(f"{kind}, 20 steps", largest=worst)
    assert worst <= 1e-6
