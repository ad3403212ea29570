"""InfoNCE against torch: losses and gradients of both clips' vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from moclip_jax.training.losses import cross_entropy
from moclip_jax.training.pretraining import TEMPERATURE, info_nce_logits


def test_losses_and_gradients_of_info_nce_are_torchs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 48, 64)).astype(np.float32)

    def loss(first, second):
        first, second = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second))
        logits = info_nce_logits(first, second, jnp.arange(48))
        return cross_entropy(logits, jnp.zeros(48, jnp.int32)).mean()

    ours, gradients = jax.value_and_grad(loss, (0, 1))(first, second)
    vectors = [torch.tensor(x, requires_grad=True) for x in (first, second)]
    units = [functional.normalize(x, dim=-1) for x in vectors]
    theirs = functional.cross_entropy(units[0] @ units[1].T / TEMPERATURE, torch.arange(48))
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)
    for gradient, vector in zip(gradients, vectors, strict=True):
        np.testing.assert_allclose(gradient, vector.grad.numpy(), atol=1e-7)
