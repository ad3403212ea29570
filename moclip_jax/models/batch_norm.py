"""Batch normalisation with exactly torch's semantics, and the activation that follows it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.activations import silu, silu_derivative


class BatchNorm(nnx.Module):
    """`torch.nn.BatchNorm2d` for channels-last arrays.

    Two departures from `nnx.BatchNorm`, both of which a network loaded from torch needs: the
    running variance is updated with the unbiased variance of the batch (the batch itself is
    normalised with the biased one), and `momentum` is the weight of the new value (torch's 0.1 is
    0.9 in Flax's convention).

    The statistics are those of the global batch: under `jax.jit` with the batch sharded over a mesh
    the compiler sees to it, inside `jax.shard_map` it must be told `batch_axes`.

    Attributes:
        scale: parameter, float32 [C].
        bias: parameter, float32 [C].
        mean: running mean, `nnx.BatchStat`, float32 [C].
        var: running variance, `nnx.BatchStat`, float32 [C].
        batch_axes: inside `jax.shard_map`, the mesh axes that the batch is split over, evenly; else
            empty.
    """

    def __init__(self, num_channels: int, *, momentum: float = 0.1, eps: float = 1e-5):
        self.momentum = momentum
        self.eps = eps
        self.batch_axes: tuple[str, ...] = ()
        # Through numpy, so that no shape needs a compilation.
        zeros, ones = np.zeros(num_channels, np.float32), np.ones(num_channels, np.float32)
        self.scale = nnx.Param(jnp.array(ones))
        self.bias = nnx.Param(jnp.array(zeros))
        self.mean = nnx.BatchStat(jnp.array(zeros))
        self.var = nnx.BatchStat(jnp.array(ones))

    def __call__(self, x: jax.Array, *, train: bool, silu: bool = False) -> jax.Array:
        """Normalises x over all axes but the last.

        Args:
            x: [..., C] of a floating dtype. The statistics are computed in float32 whatever it is.
            train: normalise with the statistics of the batch and fold them into the running ones,
                in place; else normalise with the running ones.
            silu: apply `activations.silu` to the result. The gradient is taken through both at
                once, and of everything in between only x is kept for it.

        Returns:
            An array of the shape and dtype of x.

        Raises:
            ValueError: the channels do not fit, or `train` with one value per channel, which has no
                variance.
        """
        if x.shape[-1] != self.scale.shape[0]:
            raise ValueError(
                f"BatchNorm of {self.scale.shape[0]} channels was given an array {x.shape}"
            )
        if not train:
            return _apply(
                x, self.scale[...], self.bias[...], self.mean[...], self.var[...], self.eps, silu
            )
        count = _count(x, self.batch_axes)
        if count < 2:
            raise ValueError(
                f"BatchNorm in training needs more than one value per channel, got {x.shape}; "
                "use a larger batch or larger fields"
            )
        y, mean, var = _train(x, self.scale[...], self.bias[...], self.eps, silu, self.batch_axes)
        unbiased = var * (count / (count - 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            old = running[...]
            running[...] = old + self.momentum * (jax.lax.stop_gradient(new) - old)
        return y


def _apply(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    eps: float,
    use_silu: bool,
) -> jax.Array:
    # The mean goes first: folded into the bias it would cancel where it is large.
    y = _centred(x, mean) * _spread(scale * jax.lax.rsqrt(var + eps), x) + _spread(bias, x)
    return (silu(y) if use_silu else y).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _train(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    eps: float,
    use_silu: bool,
    batch_axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns y, and the mean and (biased) variance that it was normalised with.

    Mean and variance are for the running statistics: no gradient flows through them.
    """
    mean, var = _statistics(x, batch_axes)
    return _apply(x, scale, bias, mean, var, eps, use_silu), mean, var


def _train_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *how: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    y, mean, var = _train(x, scale, bias, *how)
    return (y, mean, var), (x, scale, bias, mean, var)


def _train_backward(
    eps: float,
    use_silu: bool,
    batch_axes: tuple[str, ...],
    kept: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, Any, Any],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient by x, scale and bias (Ioffe and Szegedy 2015, arXiv 1502.03167).

    JAX's own would keep the centred values, the normalised ones and the sigmoid besides x: on a
    CPU, where reading and writing them is what takes the time, three maps too many.
    """
    # Behind the barrier, or XLA would find what the forward pass computed, and keep it after all.
    x, scale, bias, mean, var = jax.lax.optimization_barrier(kept)
    inverse = jax.lax.rsqrt(var + eps)
    centred = _centred(x, mean)
    by_y = cotangents[0].astype(jnp.float32)
    if use_silu:
        by_y *= silu_derivative(centred * _spread(scale * inverse, x) + _spread(bias, x))
    axes = tuple(range(x.ndim - 1))
    # Of this device's rows, as the gradients of all parameters are.
    by_bias, by_scale = jnp.sum(by_y, axes), jnp.sum(by_y * centred, axes) * inverse
    sums = jnp.stack([by_bias, by_scale])
    if batch_axes:
        sums = jnp.sum(jax.lax.all_gather(sums, batch_axes), axis=0)
    shift, slope = sums / _count(x, batch_axes)
    by_x = _spread(scale * inverse, x) * (
        by_y - _spread(shift, x) - centred * _spread(inverse * slope, x)
    )
    return by_x.astype(x.dtype), by_scale, by_bias


_train.defvjp(_train_forward, _train_backward)


def _statistics(x: jax.Array, batch_axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, float32 [C] each."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, dtype=jnp.float32)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large beside the deviation.
    var = jnp.mean(jnp.square(_centred(x, mean)), axes)
    if batch_axes:
        # Chan et al. 1979, for parts of one size; one exchange where mean, then variance, needs
        # two. Gathered, not summed: that leaves one all-reduce in a step, the gradient's.
        parts = jax.lax.all_gather(jnp.stack([mean, var]), batch_axes)
        mean = jnp.mean(parts[:, 0], axis=0)
        var = jnp.mean(parts[:, 1] + jnp.square(parts[:, 0] - mean[None]), axis=0)
    return mean, var


def _count(x: jax.Array, batch_axes: tuple[str, ...]) -> int:
    """Values of a channel in the whole batch."""
    devices = jax.lax.axis_size(batch_axes) if batch_axes else 1
    return devices * (x.size // x.shape[-1])


def _centred(x: jax.Array, mean: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) - _spread(mean, x)


def _spread(vector: jax.Array, x: jax.Array) -> jax.Array:
    """[C] -> [1, ..., 1, C], of as many dimensions as x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
