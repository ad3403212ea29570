"""A fully connected layer that starts as torch's does."""

import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.initializers import symmetric_uniform


def torch_linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Return an `nnx.Linear` of float32 with the initial values of `torch.nn.Linear`.

    torch's kaiming_uniform(a=sqrt(5)) comes to U(-b, b), b = 1 / sqrt(in_features), and the bias
    has the same range (`torch.nn.Linear.reset_parameters`).
    """
    init = symmetric_uniform(in_features**-0.5)
    return nnx.Linear(
        in_features, out_features, kernel_init=init, bias_init=init, dtype=jnp.float32, rngs=rngs
    )
