"""The versions of the packages and of our own code that a result was made with."""

import hashlib
import importlib.metadata
from pathlib import Path

PACKAGES = (
    "moclip-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "av",
    "transformers",
    "tensorflow-datasets",
)


def package_versions() -> dict[str, str]:
    """Return the version of each package that results may depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "(not installed)"
    return versions


def code_digests() -> dict[str, str]:
    """Return the first 12 hexadecimal digits of the SHA-256 of each of our source files."""
    import moclip_jax
    from moclip_jax import configs, input_pipeline

    digests = {}
    for package in (configs, input_pipeline, moclip_jax):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            name = f"{root.name}/{path.relative_to(root).as_posix()}"
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return digests
