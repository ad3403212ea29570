"""Which weights a result was made with: a source, and a hash of every number."""

import hashlib
from typing import Any

import jax
import numpy as np


def sha256_of(tree: Any) -> str:
    """Returns the SHA-256, in hexadecimal, of the paths, shapes, dtypes and bytes of all arrays.

    Args:
      tree: a pytree of arrays, such as `nnx.state` of a network; wherever they are, and on however
        many devices, the hash is the same.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def weights_fingerprint(source: str, tree: Any) -> dict[str, str]:
    """Returns how frozen weights are referred to: `source` (a hub id or path) and `sha256`."""
    return {"source": source, "sha256": sha256_of(tree)}
