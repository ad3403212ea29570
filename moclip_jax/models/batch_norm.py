"""Batch normalization with torch's semantics, and the activation that follows it."""

import jax
import numpy as np
from flax import nnx

from moclip_jax.models.activations import Activation
from moclip_jax.models.kernels import normalize_batch
from moclip_jax.models.normalize import normalize, values_per_channel


class BatchNorm(nnx.Module):
    """`torch.nn.BatchNorm2d` for channels-last arrays.

    Two departures from `nnx.BatchNorm`, both of which a network loaded from torch needs: the
    running variance is updated with the unbiased variance of the batch (the batch itself is
    normalised with the biased one), and `momentum` is the weight of the new value (torch's 0.1 is
    0.9 in Flax's convention).

    The statistics are those of the global batch: under `jax.jit` with the batch sharded over a mesh
    the compiler reduces over all devices; inside `jax.shard_map`, set `batch_axes`.

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
        # Put, not `jnp.array`, so that no shape needs a compilation.
        zeros, ones = np.zeros(num_channels, np.float32), np.ones(num_channels, np.float32)
        self.scale = nnx.Param(jax.device_put(ones))
        self.bias = nnx.Param(jax.device_put(zeros))
        self.mean = nnx.BatchStat(jax.device_put(zeros))
        self.var = nnx.BatchStat(jax.device_put(ones))

    def __call__(
        self, x: jax.Array, *, train: bool, activation: Activation | None = None
    ) -> jax.Array:
        """Normalise x over all axes but the last.

        Args:
          x: [..., C] of a floating dtype. The statistics are computed in float32 whatever it is.
          train: normalise with the statistics of the batch and fold them into the running ones,
            in place; else normalise with the running ones.
          activation: applied to the result. The gradient is taken through both at once, and of
            everything in between only x is kept for it.

        Raises:
          ValueError: the channels do not fit, or `train` with one value per channel, which has no
            variance.
        """
        if x.shape[-1] != self.scale.shape[0]:
            raise ValueError(
                f"BatchNorm of {self.scale.shape[0]} channels was given an array {x.shape}"
            )
        if not train:
            return normalize(
                x,
                self.scale[...],
                self.bias[...],
                self.mean[...],
                self.var[...],
                self.eps,
                activation,
            )
        count = values_per_channel(x, self.batch_axes)
        if count < 2:
            raise ValueError(
                f"BatchNorm in training needs more than one value per channel, got {x.shape}; "
                "use a larger batch or larger fields"
            )
        y, mean, var = normalize_batch(
            x, self.scale[...], self.bias[...], self.eps, activation, self.batch_axes
        )
        unbiased = var * (count / (count - 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            old = running[...]
            running[...] = old + self.momentum * (jax.lax.stop_gradient(new) - old)
        return y
