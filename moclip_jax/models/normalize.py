"""Batch normalization as plain functions: the definition that `BatchNorm` and its kernel share."""

import jax
import jax.numpy as jnp

from moclip_jax.models.activations import Activation, activate


def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    eps: float,
    activation: Activation | None,
) -> jax.Array:
    """Normalize x with given statistics, and apply an activation if asked.

    Args:
      x: [..., C] of a floating dtype.
      scale: float32 [C].
      bias: float32 [C].
      mean: float32 [C].
      var: float32 [C].
      eps: added to the variance.
      activation: what follows, or None.

    Returns:
      An array of the shape and dtype of x; computed in float32.
    """
    # The mean is subtracted first: folded into the bias it would cancel where it is large.
    y = centred(x, mean) * spread(scale * jax.lax.rsqrt(var + eps), x) + spread(bias, x)
    return activate(y, activation).astype(x.dtype)


def batch_statistics(x: jax.Array, batch_axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the mean and biased variance over all axes but the last, float32 [C] each."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, dtype=jnp.float32)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large beside the deviation.
    var = jnp.mean(jnp.square(centred(x, mean)), axes)
    if batch_axes:
        # Chan et al. 1979, for parts of one size; one exchange where mean, then variance, needs
        # two. Gathered, not summed: that leaves one all-reduce in a step, the gradient's.
        parts = jax.lax.all_gather(jnp.stack([mean, var]), batch_axes)
        mean = jnp.mean(parts[:, 0], axis=0)
        var = jnp.mean(parts[:, 1] + jnp.square(parts[:, 0] - mean[None]), axis=0)
    return mean, var


def values_per_channel(x: jax.Array, batch_axes: tuple[str, ...]) -> int:
    """Return the number of values of a channel in the whole batch."""
    devices = jax.lax.axis_size(batch_axes) if batch_axes else 1
    return devices * (x.size // x.shape[-1])


def centred(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Subtract the mean [C] from x [..., C], in float32."""
    return x.astype(jnp.float32) - spread(mean, x)


def spread(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape [C] to [1, ..., 1, C], with as many dimensions as x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
