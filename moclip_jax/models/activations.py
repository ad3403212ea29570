"""SiLU, spelled so that XLA computes it fast on a CPU."""

import jax
import jax.numpy as jnp


def silu(x: jax.Array) -> jax.Array:
    """Multiplies x by its sigmoid (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    By the hyperbolic tangent, which XLA's CPU backend computes as one rational function, where a
    sigmoid takes an exponential and a division: a B0 takes a few per cent less.

    Args:
        x: of a floating dtype and any shape.

    Returns:
        An array of the shape and dtype of x.
    """
    half = 0.5 * x
    return half + half * jnp.tanh(half)


def silu_derivative(x: jax.Array) -> jax.Array:
    """The derivative of `silu` at x, of its shape and dtype."""
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return sigmoid * (1 + x * (1 - sigmoid))
