"""The activations of EfficientNets and their derivatives: SiLU, and ReLU6 of the Lite family."""

from typing import Literal

import jax
import jax.numpy as jnp

Activation = Literal["silu", "relu6"]


def activate(x: jax.Array, activation: Activation | None) -> jax.Array:
    """Return the activation of x, of any shape and floating dtype; None leaves x as it is."""
    if activation is None:
        return x
    return silu(x) if activation == "silu" else jnp.clip(x, 0, 6)


def activation_derivative(x: jax.Array, activation: Activation | None) -> jax.Array:
    """Return the derivative of `activate` at x, of the shape and dtype of x."""
    if activation is None:
        return jnp.ones_like(x)
    # Zero at both corners of ReLU6, as torch has it.
    return silu_derivative(x) if activation == "silu" else ((x > 0) & (x < 6)).astype(x.dtype)


def silu(x: jax.Array) -> jax.Array:
    """Multiply x by its sigmoid (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    Written as x / 2 * (1 + tanh(x / 2)), the same function: XLA's CPU backend computes tanh as one
    rational function, where a sigmoid takes an exponential and a division.
    """
    half = 0.5 * x
    return half + half * jnp.tanh(half)


def silu_derivative(x: jax.Array) -> jax.Array:
    """Return the derivative of `silu` at x, of the shape and dtype of x."""
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return sigmoid * (1 + x * (1 - sigmoid))
