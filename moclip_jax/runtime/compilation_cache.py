"""Programs that XLA has compiled once are kept on disk, so that the next start does not wait.

Nothing heavy is imported here: every command calls `use_compilation_cache` before it imports JAX.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

# The folder to keep them in; empty switches the cache off.
FOLDER_VARIABLE = "MOCLIP_JAX_CACHE"
# JAX's own variable comes first where it is set.
JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SETTINGS = {
    # What compiles faster than this is compiled again.
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    # Bytes; what was not used for longest goes first.
    "jax_compilation_cache_max_size": 4 * 2**30,
}


def use_compilation_cache() -> Path | None:
    """Lets JAX keep compiled programs, in this process and in its children.

    They lie in `$MOCLIP_JAX_CACHE`, or else in `~/.cache/moclip_jax` (`$XDG_CACHE_HOME` where that
    is set), in a folder for each kind of processor: homes are shared between machines, and a
    program that was compiled for one may not run on another. JAX's own settings
    (`JAX_COMPILATION_CACHE_DIR` and others) are left as they are where they are set.

    Returns:
      The folder; None where the cache is off, is JAX's own, or cannot be written (which is told).
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if JAX_VARIABLE in os.environ or named == "":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(named).expanduser() if named else home / "moclip_jax") / processor_kind()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        print(
            f"compiled programs are not kept: {existing} cannot be written; name another folder "
            f"in {FOLDER_VARIABLE}",
            file=sys.stderr,
        )
        return None
    settings = {JAX_VARIABLE.lower(): str(folder)} | _SETTINGS
    if "jax" in sys.modules:
        import jax

        if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
            for name, value in settings.items():
                if name.upper() not in os.environ:
                    jax.config.update(name, value)
    for name, value in settings.items():
        os.environ.setdefault(name.upper(), str(value))
    return folder


def processor_kind() -> str:
    """Returns a name that processors share only if they have the same instructions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    told = "\n".join(sorted(set(flags))) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
