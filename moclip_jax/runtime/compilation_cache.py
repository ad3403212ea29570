"""Keep programs that XLA has compiled on disk, so that the next start need not compile them.

Nothing heavy is imported here: every command calls `use_compilation_cache` before it imports JAX.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

# Folder of the cache; an empty value disables it.
FOLDER_VARIABLE = "MOCLIP_JAX_CACHE"
# JAX's own variable has priority.
JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SETTINGS = {
    # Seconds; programs that compile faster are not cached.
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    # Bytes; the least recently used program is removed first.
    "jax_compilation_cache_max_size": 4 * 2**30,
}


def use_compilation_cache() -> Path | None:
    """Enable JAX's compilation cache, for this process and its children.

    The cache is `$MOCLIP_JAX_CACHE`, by default `~/.cache/moclip_jax` (or below
    `$XDG_CACHE_HOME`), with a folder for each kind of processor: machines share home folders, and a
    program compiled for one processor may not run on another. JAX's own variables
    (`JAX_COMPILATION_CACHE_DIR` and others) have priority.

    Returns:
      The folder; None if the cache is disabled, is JAX's own, or cannot be written (a warning).
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if JAX_VARIABLE in os.environ or named == "":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(named).expanduser() if named else home / "moclip_jax") / processor_kind()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        print(
            f"compiled programs are not cached: {existing} cannot be written; set "
            f"{FOLDER_VARIABLE} to another folder",
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
    """Return a name that two processors share only if they have the same instructions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    text = "\n".join(sorted(set(flags))) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
