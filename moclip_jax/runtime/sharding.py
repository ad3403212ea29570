"""Place arrays on a mesh of all devices: split batches, replicate or split parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moclip_jax.runtime import distributed

# Devices along the first axis hold different rows of a batch; devices along the second, different
# parts of the frozen CLIP. Work without CLIP splits its batch over both axes.
DATA_AXIS, MODEL_AXIS = "data", "model"
BATCH_AXES = (DATA_AXIS, MODEL_AXIS)

# End of a parameter's path in CLIP -> the dimension that is split: wide layers of a block by
# output, the layers after them by input (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053).
_SPLIT_DIMENSIONS: dict[tuple[Any, ...], int] = {
    ("qkv", "kernel"): -1,
    ("qkv", "bias"): -1,
    ("out", "kernel"): -2,
    ("fc1", "kernel"): -1,
    ("fc1", "bias"): -1,
    ("fc2", "kernel"): -2,
}


def make_mesh(devices: list[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """Return a mesh with the axes `data` and `model` over all devices of all processes.

    Devices are ordered by process, so that each process holds one block of the rows of a batch, and
    devices that share a model belong to one process.

    Args:
      devices: The devices; None takes all.
      model: Number of devices that share one copy of the frozen CLIP (`config.mesh.model`).

    Raises:
      ValueError: The devices of a process cannot be split into groups of `model`.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    per_process: dict[int, int] = {}
    for device in devices:
        per_process[device.process_index] = per_process.get(device.process_index, 0) + 1
    if len(set(per_process.values())) > 1:
        raise ValueError(f"processes have different numbers of devices: {per_process}")
    local = next(iter(per_process.values()))
    if model < 1 or local % model:
        raise ValueError(
            f"config.mesh.model={model} does not divide the {local} devices of a process; "
            "set it to 1, or to a divisor of their number"
        )
    grid = np.array(devices).reshape(-1, model)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def connect(mesh: Mesh) -> None:
    """Open the connections between the devices of several processes, while all wait for it.

    If the first training step opened them, all processes would have to reach it within half a
    minute, and one host may compile that step much longer than another.
    """
    if jax.process_count() == 1:
        return
    distributed.run_on_main(lambda: None)
    ones = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec(BATCH_AXES)), np.ones(len(mesh.local_devices), np.float32)
    )
    for axes, left in ((BATCH_AXES, PartitionSpec()), (DATA_AXIS, PartitionSpec(MODEL_AXIS))):
        add = jax.shard_map(
            functools.partial(jax.lax.psum, axis_name=axes),
            mesh=mesh,
            in_specs=PartitionSpec(BATCH_AXES),
            out_specs=left,
        )
        jax.block_until_ready(jax.jit(add)(ones))
    multihost_utils.process_allgather(np.ones(1))


def check_batch_size(mesh: Mesh, field: str, batch_size: int) -> None:
    """Raise ValueError if a global batch cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        below, above = batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size
        raise ValueError(
            f"config.{field}={batch_size} cannot be split over {mesh.size} devices; "
            f"set it to a multiple, such as {below or above} or {above}"
        )


def shard_batch(
    batch: dict[str, np.ndarray], mesh: Mesh, axes: tuple[str, ...] = BATCH_AXES
) -> dict[str, jax.Array]:
    """Put this process's rows `[rows, ...]` of a global batch on its devices, in global order.

    `axes` of the mesh split the rows; the others repeat them. Returns `[rows * processes, ...]`.
    """
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a copy of every array of `tree` on each device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def split_over_model(tree: Any, mesh: Mesh) -> Any:
    """Put the parameters of a CLIP tower on the mesh, wide layers split over the `model` axis.

    Args:
      tree: Its `nnx.state`. A layer whose size the axis does not divide is replicated.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _place(leaf, NamedSharding(mesh, partition_spec(path, leaf, mesh))), tree
    )


def partition_spec(path: tuple[Any, ...], leaf: Any, mesh: Mesh) -> PartitionSpec:
    """Return the PartitionSpec of the parameter of a CLIP tower at a key path; `P()` replicates."""
    names: list[Any] = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    # The path of an nnx.State ends with the `value` of the variable.
    dimension = _SPLIT_DIMENSIONS.get(tuple(names[-3:-1]))
    if dimension is None or leaf.shape[dimension] % mesh.shape[MODEL_AXIS]:
        return PartitionSpec()
    spec: list[str | None] = [None] * leaf.ndim
    spec[dimension] = MODEL_AXIS
    return PartitionSpec(*spec)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        # A copy, because training donates its state, which would delete the caller's array. On the
        # leaf's own device first: sent to several devices, one of them may share its memory.
        own = jax.device_put(leaf, getattr(leaf, "sharding", None), may_alias=False)
        return jax.device_put(own, sharding)
    # Every process has the same values and takes the part of its own devices; `device_put` would
    # compare the values over the network.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
