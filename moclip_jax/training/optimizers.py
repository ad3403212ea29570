"""Make the two optimizers of the recipe, each with PyTorch's arithmetic."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import optax
from flax import nnx

# Learning rates of MoCLIP-Lite's published training: new layers learn fast, layers pretrained on
# images slowly.
DEFAULT_MULTIPLIERS: Mapping[str, float] = MappingProxyType(
    {"classifier": 1.0, "stem": 0.1, "rest": 0.01}
)

# Start of the path of each parameter of a MotionNetwork -> its group. The stem's normalisation is
# pretrained and belongs to the rest; the normalisation of the input is new and goes with the stem.
_GROUPS: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("input_norm",): "stem",
        ("backbone", "stem"): "stem",
        ("backbone", "stem_norm"): "rest",
        ("backbone", "blocks"): "rest",
        ("backbone", "head"): "rest",
        ("backbone", "head_norm"): "rest",
        ("backbone", "classifier"): "classifier",
        ("temporal",): "classifier",
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
    """Return `torch.optim.Adam` with a learning rate per parameter group and step decay.

    PyTorch's `weight_decay` is coupled: it is added to the gradient before Adam's moments, for
    every parameter including BatchNorm and biases (as in the published code, whose exemptions have
    no effect).

    Args:
      params: The `nnx.Param` leaves of a `MotionNetwork`, to check that each has a group.
      learning_rate: Base rate, before the first boundary and any multiplier.
      boundaries: Increasing steps, from 0, at which the rate is multiplied by `decay_factor`.
      decay_factor: See `boundaries`.
      eps: Added to the root of the second moment.
      multipliers: Of the learning rate of 'classifier', of 'stem' (the stem's convolution and the
        normalisation of the input) and of the 'rest'.

    Returns:
      A transformation whose `update` needs the parameters.

    Raises:
      ValueError: A parameter belongs to no group, a multiplier is missing or unknown, or the
        boundaries do not increase.
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

    # Traced once to raise now, not in the first step, for a parameter without a group.
    jax.eval_shape(scale_by_group, params)
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
    """Return `torch.optim.AdamW`: betas 0.9 and 0.999, eps 1e-8, decay of every parameter.

    The weight decay is decoupled: it is multiplied by the learning rate in each step.
    """
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


def parameter_group(path: tuple[Any, ...]) -> str:
    """Return the learning-rate group of a parameter: 'classifier', 'stem' or 'rest'.

    `path` is its key path in `jax.tree_util.tree_map_with_path`.

    Raises:
      ValueError: The path belongs to no group.
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
