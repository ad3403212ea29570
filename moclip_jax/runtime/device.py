"""Choose dtypes, batch sizes and compiler options for the device that JAX runs on."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

AUTO = "auto"
# Largest batch, and a multiple of every batch size: features are stored in files of this many.
MAX_BATCH_SIZE = 256
# Share of a device's free memory for one batch; the rest is for weights and the next batch.
_SHARE_OF_MEMORY = 0.25


def computation_dtype(setting: str, backend: str = "") -> jnp.dtype:
    """Return the dtype of a network's computation; parameters are always float32.

    'auto' is bfloat16 on a GPU or TPU, and float32 on a CPU, where only matmuls may be faster in
    bfloat16 (see `matmul_dtype`). An empty backend is the one that JAX runs on.
    """
    if setting == AUTO:
        on_cpu = (backend or jax.default_backend()) == "cpu"
        return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
    return jnp.dtype(setting)


def matmul_dtype(setting: str) -> jnp.dtype:
    """Return the dtype of the matmul inputs of a frozen network on a CPU.

    'auto' is bfloat16 if the processor has matrix units for it (Intel AMX), where matmuls take a
    fifth of the time, and float32 otherwise. Accumulation and everything else stay in float32.
    """
    if setting == AUTO:
        return jnp.dtype(jnp.bfloat16 if "amx_bf16" in _processor_flags() else jnp.float32)
    return jnp.dtype(setting)


def compiler_options() -> dict[str, int]:
    """Return the options of `jax.jit` for programs whose speed matters.

    XLA's CPU backend uses half of an AVX-512 register by default, because older processors lower
    their clock for full ones; processors that support bfloat16 do not.
    """
    if jax.default_backend() == "cpu" and "avx512_bf16" in _processor_flags():
        return {"xla_cpu_prefer_vector_width": 512}
    return {}


@functools.cache
def _processor_flags() -> frozenset[str]:
    """Return the instruction sets of the host's processor, under Linux's names."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def batch_size_for_memory(bytes_per_example: int, memory: int, devices: int) -> int:
    """Return the largest batch size that fits in memory, for `config.features.batch_size=0`.

    It is a power of two for each device, whose examples take at most a quarter of its free memory;
    at least one example for each device, and at most `MAX_BATCH_SIZE` in all.
    """
    per_device = 1
    while (
        2 * per_device * devices <= MAX_BATCH_SIZE
        and 2 * per_device * bytes_per_example <= _SHARE_OF_MEMORY * memory
    ):
        per_device *= 2
    return per_device * devices


def free_memory(devices: Sequence[jax.Device]) -> int:
    """Return the free bytes of the device with the least; CPU devices share the host's memory."""
    free = []
    for device in devices:
        stats = device.memory_stats()
        if stats and "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
        else:
            free.append(_free_host_memory() // len(devices))
    return min(free)


def _free_host_memory() -> int:
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # Systems other than Linux: an amount that any machine has.
    return 2 * 2**30
