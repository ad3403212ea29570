"""Keep host memory that XLA frees after each step, for the next step.

An XLA program on a CPU allocates all its buffers as one block: 1.3 GB in a training step of B0 on
12 motion fields. glibc maps so large a block and unmaps it when it is freed, so the kernel clears
every page of it in every step. GPUs and TPUs are not affected.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def computes_on_cpu() -> bool:
    """Return whether JAX will run on the CPU, before JAX is imported.

    The first platform in `JAX_PLATFORMS` decides; without it, whether a plugin for another device
    is installed.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, if JAX runs on the CPU and the C library is glibc.

    Call it before JAX is imported, because threads that have allocated keep their arenas. The
    process then never returns memory to the system.
    """
    if sys.platform != "linux" or not computes_on_cpu():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # The C library is not glibc.
        return False
    # One arena, because others are too small for such a block and would map it.
    return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
