"""Makes optimizers.npz: what torch's Adam and AdamW do with given gradients.

Run it in an environment of its own (torch is no dependency of this project):

    python -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.14.1 numpy==2.4.6
    /tmp/torchenv/bin/python tests/golden/make_optimizers.py tests/golden/optimizers.npz

Stored: every parameter after every step, [steps, ...], computed in float64; the parameters and
gradients themselves come from `optimizers_recipe.py` on both sides.
"""

import sys

import numpy as np
import torch
from optimizers_recipe import (
    ADAM,
    ADAMW,
    BOUNDARIES,
    NUM_STEPS,
    PARAMETERS,
    gradient,
    initial_value,
)


def run(make_optimizer, multipliers, boundaries):
    parameters = {
        path: torch.nn.Parameter(torch.tensor(initial_value(path)).double()) for path in PARAMETERS
    }
    optimizer = make_optimizer(
        [{"params": [p], "multiplier": multipliers[path]} for path, p in parameters.items()]
    )
    base = optimizer.param_groups[0]["lr"]
    trajectory = {path: [] for path in PARAMETERS}
    for step in range(NUM_STEPS):
        decay = 0.1 ** sum(step >= boundary for boundary in boundaries)
        for group in optimizer.param_groups:
            group["lr"] = base * decay * group["multiplier"]
        for path, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient(path, step)).double()
        optimizer.step()
        for path, parameter in parameters.items():
            trajectory[path].append(parameter.detach().numpy().copy())
    return {path: np.stack(values) for path, values in trajectory.items()}


def adam(groups):
    return torch.optim.Adam(
        groups, lr=ADAM["learning_rate"], eps=ADAM["eps"], weight_decay=ADAM["weight_decay"]
    )


def adamw(groups):
    return torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], weight_decay=ADAMW["weight_decay"])


def main(path):
    runs = {
        "adam": run(adam, {path: m for path, (_, m) in PARAMETERS.items()}, BOUNDARIES),
        "adamw": run(adamw, dict.fromkeys(PARAMETERS, 1.0), ()),
    }
    stored = {f"{name}:{key}": value for name, run in runs.items() for key, value in run.items()}
    np.savez_compressed(path, versions=np.array(f"torch {torch.__version__}"), **stored)


if __name__ == "__main__":
    main(sys.argv[1])
