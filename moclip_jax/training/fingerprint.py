"""Identify the weights that a result was made with, by their source and a hash."""

import hashlib
from typing import Any

import jax
import numpy as np


def sha256_of(tree: Any) -> str:
    """Return the hexadecimal SHA-256 of the paths, shapes, dtypes and bytes of all arrays.

    Args:
      tree: A pytree of arrays, such as `nnx.state` of a network. The hash does not depend on the
        devices that hold them.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def weights_fingerprint(source: str, tree: Any) -> dict[str, str]:
    """Return `source` (a hub id or path) and `sha256` of the weights of a network."""
    return {"source": source, "sha256": sha256_of(tree)}
