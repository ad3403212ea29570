"""Batch normalisation with exactly torch's semantics."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


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

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x over all axes but the last.

        Args:
            x: [..., C] of a floating dtype. The statistics are computed in float32 whatever it is.
            train: normalise with the statistics of the batch and fold them into the running ones,
                in place; else normalise with the running ones.

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
        values = x.astype(jnp.float32)
        mean, var = self._batch_statistics(values) if train else (self.mean[...], self.var[...])
        scale = self.scale[...] * jax.lax.rsqrt(var + self.eps)

        def broadcast(vector: jax.Array) -> jax.Array:
            return vector.reshape((1,) * (x.ndim - 1) + (-1,))

        # The mean goes first: folded into the bias it would cancel where it is large.
        y = (values - broadcast(mean)) * broadcast(scale) + broadcast(self.bias[...])
        return y.astype(x.dtype)

    def _batch_statistics(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        devices = jax.lax.axis_size(self.batch_axes) if self.batch_axes else 1
        count = devices * (values.size // values.shape[-1])
        if count < 2:
            raise ValueError(
                f"BatchNorm in training needs more than one value per channel, got {values.shape}; "
                "use a larger batch or larger fields"
            )
        axes = tuple(range(values.ndim - 1))
        mean = jnp.mean(values, axes)
        # Two passes: E[x^2] - E[x]^2 cancels where the mean is large beside the deviation.
        centred = values - mean.reshape((1,) * len(axes) + (-1,))
        var = jnp.mean(jnp.square(centred), axes)
        if self.batch_axes:
            # Chan et al. 1979, for parts of one size; one exchange where mean, then variance, needs
            # two. Gathered, not summed: that leaves one all-reduce in a step, the gradient's.
            parts = jax.lax.all_gather(jnp.stack([mean, var]), self.batch_axes)
            mean = jnp.mean(parts[:, 0], axis=0)
            var = jnp.mean(parts[:, 1] + jnp.square(parts[:, 0] - mean[None]), axis=0)
        unbiased = var * (count / (count - 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            old = running[...]
            running[...] = old + self.momentum * (jax.lax.stop_gradient(new) - old)
        return mean, var
