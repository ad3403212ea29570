"""Parameters and gradients of the golden optimizer runs, from numpy and names alone."""

import zlib

import numpy as np

NUM_STEPS = 20
# Path in a MotionNetwork: shape and learning-rate multiplier.
PARAMETERS = {
    "input_norm/scale": ((2,), 0.1),
    "backbone/stem/kernel": ((3, 2), 0.1),
    "backbone/stem_norm/bias": ((3,), 0.01),
    "backbone/blocks/kernel": ((2, 4), 0.01),
    "backbone/classifier/kernel": ((4, 3), 1.0),
    "backbone/classifier/bias": ((3,), 1.0),
}
ADAM = {"learning_rate": 0.01, "eps": 1e-3, "weight_decay": 1e-4}
# Multiplied by 0.1 from these steps on, counted from 0.
BOUNDARIES = (8, 15)
ADAMW = {"learning_rate": 1e-4, "weight_decay": 0.01}


def initial_value(path: str) -> np.ndarray:
    """The parameter before the first step, float32."""
    return _normal(path, PARAMETERS[path][0])


def gradient(path: str, step: int) -> np.ndarray:
    """The gradient in one step, float32, of a size that changes by orders of magnitude."""
    size = 10.0 ** (zlib.crc32(f"{path}{step}".encode()) % 5 - 4)
    return (size * _normal(f"{path}/{step}", PARAMETERS[path][0])).astype(np.float32)


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
