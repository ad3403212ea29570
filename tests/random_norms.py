"""Networks that have seen something, for tests that compare features."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.batch_norm import BatchNorm


def randomize_norms(network: nnx.Module) -> None:
    """Gives every BatchNorm of a backbone other scales and statistics than it begins with.

    With those it begins with, features of random weights are some millionths: less than the
    absolute tolerance of a comparison, which then could not fail.
    """
    rng = np.random.default_rng(0)
    for path, norm in nnx.iter_modules(network):
        if isinstance(norm, BatchNorm) and path != ("input_norm",):
            for variable, low, high in (
                (norm.scale, 0.5, 1.5), (norm.bias, -1, 1), (norm.mean, -1, 1), (norm.var, 0.5, 2)
            ):  # fmt: skip
                variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32)
