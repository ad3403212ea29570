"""Weights and inputs of the golden EfficientNets, from numpy and names alone."""

import zlib

import numpy as np


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name only."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a timm name: activations of size one in every layer, no parameter trivial."""
    z = normal(name, shape)
    if name.endswith("running_var"):
        return np.exp(z / 4)
    if len(shape) == 1:
        is_scale = name.endswith("weight")
        return z / 4 + np.float32(is_scale)
    return z / np.sqrt(np.prod(shape[1:], dtype=np.float32))


def projections(name: str, array: np.ndarray) -> np.ndarray:
    """The Euclidean norm and two random projections of an array: float64 [3].

    A stored gradient of millions of numbers shrinks to this, and still every entry counts.
    """
    flat = np.asarray(array, np.float64).ravel()
    directions = [normal(f"{name}/{k}", flat.shape) for k in range(2)]
    return np.array([np.linalg.norm(flat), *(flat @ direction for direction in directions)])


def scale(projected: np.ndarray) -> np.ndarray:
    """What an error in rows of `projections` is to be measured by: [n, 3] -> [n, 1].

    The norm, but not less than a hundredth of the largest: some gradients are zero by nature
    (of a shift that the next BatchNorm takes away) and consist of rounding errors only.
    """
    norms = projected[:, :1]
    return np.maximum(norms, 1e-2 * norms.max())
