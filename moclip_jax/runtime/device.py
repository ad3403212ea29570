"""What is left to the machine: the dtype of CLIP, batches of features, how XLA compiles."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from moclip_jax.models.efficientnet import EfficientNetConfig

AUTO = "auto"
# Videos in a step at most, and a multiple of every size: features are kept in files of this many.
MOST_VIDEOS = 256
# Of a device's free memory; the rest is for weights, the next batch, and what was not counted.
_SHARE_OF_MEMORY = 0.25
# Largest maps that are alive at once: a layer's input, its output, and a padded copy.
_MAPS_ALIVE = 3


def computation_dtype(setting: str, backend: str = "") -> jnp.dtype:
    """Returns the dtype that a network computes in; parameters are always float32.

    Args:
      setting: 'float32', 'bfloat16', or 'auto': bfloat16 on a GPU or TPU, float32 on a CPU, where
        only products may be faster in bfloat16 (see `matmul_dtype`).
      backend: 'cpu', 'gpu' or 'tpu'; empty means the one that JAX runs on.
    """
    if setting == AUTO:
        on_cpu = (backend or jax.default_backend()) == "cpu"
        return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
    return jnp.dtype(setting)


def matmul_dtype(setting: str) -> jnp.dtype:
    """Returns the dtype that a frozen network on a CPU multiplies in (`models/frozen.py`).

    Everything but the products is float32 there, and sums of products are.

    Args:
      setting: `config.clip.dtype` or `config.features.motion_dtype`; 'auto' is bfloat16 where the
        processor has matrix units for it (Intel's AMX), in which products take a fifth of the time,
        and else float32.
    """
    if setting == AUTO:
        return jnp.dtype(jnp.bfloat16 if "amx_bf16" in _processor_flags() else jnp.float32)
    return jnp.dtype(setting)


def compiler_options() -> dict[str, int]:
    """Returns options for `jax.jit` of programs whose time counts.

    XLA's CPU backend uses half of an AVX-512 register unless it is told otherwise, because older
    processors lower their clock for whole ones; those that know bfloat16 do not.
    """
    if jax.default_backend() == "cpu" and "avx512_bf16" in _processor_flags():
        return {"xla_cpu_prefer_vector_width": 512}
    return {}


@functools.cache
def _processor_flags() -> frozenset[str]:
    """Names of the instructions that the host's processor knows, as Linux calls them."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def bytes_of_a_video(
    backbone: EfficientNetConfig, *, side: int, segments: int, views: int, images: int
) -> int:
    """Returns what one video takes of a device while its features are computed.

    The fields of all its views, as bytes; and for the segments of one view, as views go one after
    the other, `_MAPS_ALIVE` times the largest map of the motion network. Beside that the image
    tower's own maps are small.

    Args:
      backbone: of the motion network.
      side: of its fields in pixels.
      segments: fields of a view.
      views: of a video.
      images: pictures of a video that CLIP sees.
    """
    fields = views * segments * side**2 * 2 + images * 224**2 * 3
    scale, largest = 2, backbone.stem_channels * (side // 2) ** 2
    for stage in backbone.stages:
        for block in stage:
            largest = max(largest, block.inner_channels * (side // scale) ** 2)
            scale *= block.stride
    itemsize = backbone.map_dtype.itemsize
    return fields + segments * _MAPS_ALIVE * largest * itemsize


def extraction_batch_size(bytes_of_one: int, memory: int, devices: int) -> int:
    """Returns how many videos go through the networks in a step (`config.features.batch_size=0`).

    The largest power of two for each device whose videos take at most a quarter of its free memory,
    at least one video for each device, and at most 256 in all.

    Args:
      bytes_of_one: from `bytes_of_a_video`.
      memory: free bytes of the smallest device.
      devices: over which the videos are split.
    """
    of_each = 1
    while (
        2 * of_each * devices <= MOST_VIDEOS
        and 2 * of_each * bytes_of_one <= _SHARE_OF_MEMORY * memory
    ):
        of_each *= 2
    return of_each * devices


def free_memory(devices: Sequence[jax.Device]) -> int:
    """Returns free bytes of the device with the least; CPU devices share the host's."""
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
    # Where the system does not tell: what any machine has.
    return 2 * 2**30
