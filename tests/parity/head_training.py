"""Our training of a head on given batches, for comparison with torch's."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from moclip_jax.models.heads import Head
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training.heads import head_logits
from moclip_jax.training.trainer import Batch, TrainState, make_train_step


def train_ours(
    head: Head, optimizer: optax.GradientTransformation, batches: Iterable[Batch], key: jax.Array
) -> tuple[list[float], Head]:
    """Return the loss of each step, one a batch, and the trained head."""
    graph, params, stats = nnx.split(head, nnx.Param, ...)
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
    train_step = make_train_step(graph, head_logits, optimizer, make_mesh(jax.devices()[:1]))
    losses = []
    for batch in batches:
        state, sums = train_step(state, batch, key)
        losses.append(float(sums["loss"] / sums["count"]))
    return losses, nnx.merge(graph, state.params, state.stats)
