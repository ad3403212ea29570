"""The two optimizers of the recipe, each with torch's arithmetic."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import optax
from flax import nnx

# Of MoCLIP-Lite's published training: what is new learns fast, what was pretrained on pictures
# slowly.
DEFAULT_MULTIPLIERS: Mapping[str, float] = MappingProxyType(
    {"classifier": 1.0, "stem": 0.1, "rest": 0.01}
)

# The start of the path of every parameter of a MotionNetwork, and its group. The stem's own
# normalisation belongs to the pretrained rest, the normalisation of the input (which is new) goes
# with the stem.
_GROUPS: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("input_norm",): "stem",
        ("backbone", "stem"): "stem",
        ("backbone", "stem_norm"): "rest",
        ("backbone", "blocks"): "rest",
        ("backbone", "head"): "rest",
        ("backbone", "head_norm"): "rest",
        ("backbone", "classifier"): "classifier",
    }
)


def motion_optimizer(
    params: nnx.State,
    *,
    learning_rate: float,
    boundaries: Sequence[int] = (),
    decay_factor: float = 0.1,
    eps: float = 1e-3,
    weight_decay: float = 1e-4,
    multipliers: Mapping[str, float] = DEFAULT_MULTIPLIERS,
) -> optax.GradientTransformation:
    """`torch.optim.Adam` with one learning rate per group of parameters, falling in steps.

    torch's `weight_decay` is coupled: it is added to the gradient before Adam's moments, on every
    parameter, BatchNorm and biases included (as in the published code, whose exemptions have no
    effect).

    Args:
        params: the `nnx.Param` leaves of a `MotionNetwork`, to check that each has a group.
        learning_rate: before the first boundary and any multiplier.
        boundaries: steps, counted from 0 and rising, from which on the rate is multiplied by
            `decay_factor` once more.
        decay_factor: see `boundaries`.
        eps: added to the root of the second moment.
        weight_decay: of the L2 penalty.
        multipliers: of the learning rate of 'classifier', of 'stem' (the stem's convolution and the
            normalisation of the input) and of the 'rest'.

    Returns:
        A transformation whose `update` needs the parameters.

    Raises:
        ValueError: a parameter belongs to no group, a multiplier is missing or unknown, or the
            boundaries do not rise.
    """
    if set(multipliers) != set(_GROUPS.values()):
        raise ValueError(
            f"multipliers must name exactly {sorted(set(_GROUPS.values()))}, "
            f"got {sorted(multipliers)}"
        )
    if list(boundaries) != sorted(set(boundaries)):
        raise ValueError(f"boundaries must rise, got {tuple(boundaries)}")
    multipliers = dict(multipliers)

    def scale_by_group(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, update: update * multipliers[parameter_group(path)], updates
        )

    # Only to raise now, and not in the first training step, for a parameter without a group.
    scale_by_group(params)
    schedule = optax.piecewise_constant_schedule(
        learning_rate, dict.fromkeys(boundaries, decay_factor)
    )
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=eps),
        optax.stateless(scale_by_group),
        optax.scale_by_learning_rate(schedule),
    )


def head_optimizer(
    *, learning_rate: float = 1e-4, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """`torch.optim.AdamW`: betas 0.9 and 0.999, eps 1e-8, decoupled decay on every parameter.

    Args:
        learning_rate: constant.
        weight_decay: times the learning rate, the share of each parameter taken off in a step.

    Returns:
        A transformation whose `update` needs the parameters.
    """
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


def parameter_group(path: tuple[Any, ...]) -> str:
    """The learning-rate group of the parameter of a `MotionNetwork` that stands at a key path.

    Args:
        path: keys as `jax.tree_util.tree_map_with_path` gives them.

    Returns:
        'classifier', 'stem' or 'rest'.

    Raises:
        ValueError: the path belongs to no group.
    """
    names = tuple(getattr(key, "key", getattr(key, "name", None)) for key in path)
    for start, group in _GROUPS.items():
        if names[: len(start)] == start:
            return group
    raise ValueError(
        f"parameter {jax.tree_util.keystr(path)} has no learning-rate group: motion_optimizer "
        "takes the nnx.Param leaves of a MotionNetwork; a new part of the network needs a line in "
        "moclip_jax.training.optimizers"
    )
