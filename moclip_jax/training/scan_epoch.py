"""Run an epoch as one compiled `lax.scan`, over data that stays on the devices.

This is for small networks on cached features, where sending a batch takes as long as its step.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moclip_jax.runtime.device import compiler_options
from moclip_jax.runtime.sharding import BATCH_AXES, replicate

# Share of a device's memory that data may take; the rest is for the network.
_SHARE_OF_MEMORY = 0.5


@dataclasses.dataclass(frozen=True)
class DeviceData:
    """Data on the devices, and how each step takes its batch from the data.

    Attributes:
      data: Arrays, replicated on every device of the mesh (`place_data`).
      choices: `(epoch, first_step) -> int32 [steps, rows]` by name: the indices of this process's
        rows of each remaining step of the epoch; a pure function of its arguments.
      batch: `(data, choices of one step) -> batch` of arrays `[rows, ...]`, traced.
    """

    data: dict[str, jax.Array]
    choices: Callable[[int, int], dict[str, np.ndarray]]
    batch: Callable[[dict[str, jax.Array], dict[str, jax.Array]], dict[str, Any]]


def place_data(data: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array] | None:
    """Replicate the data on every device; return None if too little memory would be left.

    Devices that do not report their memory (a CPU, whose host holds the data already) are assumed
    to have enough.
    """
    size = sum(values.nbytes for values in data.values())
    for device in mesh.local_devices:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit is not None and size > _SHARE_OF_MEMORY * limit:
            return None
    return replicate(data, mesh)


def place_choices(choices: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put `[steps, rows of this process]` on the mesh, with rows split like those of a batch."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in choices.items()
    }


def make_epoch_step(train_step: Callable, batch: Callable, mesh: Mesh) -> Callable:
    """Return the jitted loop `(state, data, choices, key) -> (state, sums)` over all steps.

    Args:
      train_step: From `moclip_jax.training.trainer.make_train_step`.
      batch: See `DeviceData`; a choice named `stop` is passed on as it is.

    Returns:
      A function whose `sums` are those of `train_step`, added over the steps.
    """
    # Without its own `jax.jit`, because compiler options belong to the outermost program.
    train_step = inspect.unwrap(train_step)

    def epoch_step(state: Any, data: dict[str, jax.Array], choices: Any, key: jax.Array):
        def step(state: Any, chosen: dict[str, jax.Array]):
            chosen = dict(chosen)
            stop = {name: chosen.pop(name) for name in ("stop",) if name in chosen}
            return train_step(state, batch(data, chosen) | stop, key)

        state, sums = jax.lax.scan(step, state, choices)
        return state, jax.tree.map(jnp.sum, sums)

    return jax.jit(
        epoch_step,
        donate_argnums=0,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(),
    )
