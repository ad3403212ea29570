"""Memory of the host that XLA gives back after each step, kept for the next one.

XLA's CPU programs hold all their maps in one piece of fresh memory: 1.3 GB in a training step of
B0 on 12 fields. glibc takes so large a piece from the system and returns it when it is freed, so
the system clears every page of it at every step. On a GPU or TPU none of this matters.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def computes_on_cpu() -> bool:
    """Tells, before JAX is imported, whether it will compute on the CPU.

    That is what `JAX_PLATFORMS` names first; without it, whether no plugin for another device is
    installed.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def keep_freed_memory() -> bool:
    """Makes this program keep what it frees, where JAX computes on the CPU and glibc is there.

    Call it before JAX is imported: threads that have allocated keep their ways. The program then
    never holds less than at its peak.

    Returns:
      Whether it was done.
    """
    if sys.platform != "linux" or not computes_on_cpu():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # Another C library.
        return False
    # One arena, because the others are too small for such a piece and ask the system for it.
    return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
