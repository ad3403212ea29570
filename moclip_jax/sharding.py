"""Where arrays live: one mesh of all devices, batches split over it, parameters on each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a one-dimensional mesh named `data` over all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def check_batch_size(mesh: Mesh, field: str, batch_size: int) -> None:
    """Raises ValueError if a global batch cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        below, above = batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size
        raise ValueError(
            f"config.{field}={batch_size} cannot be split over {mesh.size} devices; "
            f"set it to a multiple, such as {below or above} or {above}"
        )


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices.

    Args:
      batch: arrays `[rows, ...]` with the rows of this process, in global order.
      mesh: the mesh of all devices.

    Returns:
      Global arrays `[rows * processes, ...]`, split over the data axis.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of every array of `tree` on each device of the mesh."""
    # Copied first: training donates its state, and to donate an alias deletes the caller's array.
    return jax.device_put(jax.tree.map(jnp.copy, tree), NamedSharding(mesh, PartitionSpec()))
