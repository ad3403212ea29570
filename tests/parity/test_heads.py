"""The fusion head's training against torch, live: twenty steps of AdamW with dropout."""

import copy

import jax
import numpy as np
import torch
from flax import nnx

from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.training.optimizers import head_optimizer
from tests.parity.head_training import train_ours
from tests.parity.noise import report
from tests.reference.training_torch import FusionHeadTorch, train_head

# Where a unit is within rounding of zero before its ReLU, float32 may switch it the other way than
# float64, which changes a whole row of gradients. The inputs of this seed have no such unit.
SEED = 3
ROUNDING = 1e-6


def test_twenty_steps_of_the_published_head_follow_torch():
    """969,829 parameters, batch 64, dropout one half: both sides drop the same units."""
    config = FusionConfig()
    head = FusionHead(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(SEED)
    key = jax.random.key(7)
    batches = [
        {
            "motion": rng.random((64, 1280), np.float32),
            "appearance": rng.standard_normal((64, 512), np.float32),
            "label": rng.integers(0, 101, 64).astype(np.int32),
        }
        for _ in range(20)
    ]
    # What dropout keeps is a draw and no arithmetic, so the reference is told it.
    kept = [
        np.array(
            jax.random.bernoulli(
                nnx.Rngs(dropout=jax.random.fold_in(key, step)).dropout(), 0.5, (64, config.hidden)
            )
        )
        for step in range(20)
    ]

    reference = FusionHeadTorch(1280 + 512, config.hidden, config.num_classes)
    for layer, ours in ((reference.hidden, head.hidden), (reference.classifier, head.classifier)):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.array(ours.kernel[...].T)))
            layer.bias.copy_(torch.tensor(np.array(ours.bias[...])))
    assert sum(p.numel() for p in reference.parameters()) == 969_829
    double = copy.deepcopy(reference).double()
    rows = [
        (b["motion"], b["appearance"], b["label"], k) for b, k in zip(batches, kept, strict=True)
    ]
    losses32 = train_head(reference, rows, keep=0.5)
    losses64 = train_head(double, rows, keep=0.5)
    assert double.relu_margin > ROUNDING, "choose another SEED"

    losses, trained = train_ours(head, head_optimizer(), batches, key)

    def distance(weights) -> float:
        exact = [double.hidden.weight, double.hidden.bias]
        exact += [double.classifier.weight, double.classifier.bias]
        return max(
            np.abs(np.asarray(ours) - theirs.detach().numpy()).max()
            for ours, theirs in zip(weights, exact, strict=True)
        )

    ours = [trained.hidden.kernel[...].T, trained.hidden.bias[...]]
    ours += [trained.classifier.kernel[...].T, trained.classifier.bias[...]]
    noise = {
        "losses_ours": np.abs(np.subtract(losses, losses64)).max(),
        "losses_torch": np.abs(np.subtract(losses32, losses64)).max(),
        "weights_ours": distance(ours),
        "weights_torch": distance([p.detach() for p in reference.parameters()]),
    }
    report("fusion head, 20 steps, from torch in float64", **noise)
    assert noise["losses_ours"] < 1e-5
    # A weight whose gradient is near zero goes a whole step of 1e-4 in a direction that rounding
    # decides (Adam divides by the gradient's own size): torch's float32 shows the same.
    assert noise["weights_ours"] < max(3 * noise["weights_torch"], 1e-6)
