"""Random initial values that are cheap to compile."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]
Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]

_SMALLEST_DRAW = 4096


def normal(deviation: float) -> Initializer:
    """Return an initializer `(key, shape, dtype=float32)` of N(0, deviation^2)."""
    return partial(_initial_values, jax.random.normal, deviation)


def symmetric_uniform(bound: float) -> Initializer:
    """Return an initializer `(key, shape, dtype=float32)` of U(-bound, bound)."""
    return partial(_initial_values, _uniform, bound)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _initial_values(
    draw: Draw,
    factor: float,
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
    # Flax passes it; parameters here are placed after they were made.
    out_sharding: None = None,
) -> jax.Array:
    del out_sharding
    size = math.prod(shape)
    # Every shape of a random draw is a compilation of its own, 0.3 s on CPU and some thirty of them
    # in a network; drawn by powers of two they are a few. So is every shape that is cut from them,
    # but for NumPy, which has the same values where they exist already.
    drawn = draw(key, (max(_SMALLEST_DRAW, 1 << (size - 1).bit_length()),))
    values = drawn if isinstance(drawn, jax.core.Tracer) else np.asarray(drawn)
    return jax.device_put((values[:size].reshape(shape) * np.float32(factor)).astype(dtype))
