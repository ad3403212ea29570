"""EVL's decoder and its training against torch, live: twenty steps of AdamW with dropout."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn import functional

from moclip_jax.models.evl import EVLHead
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.training.optimizers import head_optimizer
from tests.parity.head_training import train_ours
from tests.parity.noise import report
from tests.reference.evl_names import set_weights
from tests.reference.evl_torch import EVLHeadTorch

BATCH, LAYERS, WIDTH, GRID, HEADS, FRAMES, MOTION, HIDDEN, CLASSES = 4, 2, 24, 3, 3, 4, 10, 16, 5


def train(model, batches, kept):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    dtype = model.positions.dtype
    losses = []
    for batch, masks in zip(batches, kept, strict=True):
        inputs = (torch.from_numpy(batch[name]).to(dtype) for name in ("motion", "tokens"))
        logits = model(*inputs, [torch.from_numpy(mask) for mask in masks], 0.5)
        loss = functional.cross_entropy(logits, torch.from_numpy(batch["label"]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_logits_and_twenty_steps_follow_torch():
    config = FusionConfig(
        motion_features=MOTION,
        hidden=HIDDEN,
        num_classes=CLASSES,
        head="evl",
        num_frames=FRAMES,
        token_layers=LAYERS,
        token_width=WIDTH,
        token_grid=GRID,
        token_heads=HEADS,
    )
    head = EVLHead(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    shape = (BATCH, FRAMES, LAYERS, 3, 1 + GRID**2, WIDTH)
    batches = [
        {
            "motion": rng.standard_normal((BATCH, 4, MOTION), np.float32),
            "appearance": np.zeros((BATCH, FRAMES, 512), np.float32),
            "tokens": rng.standard_normal(shape, np.float32),
            "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        }
        for _ in range(20)
    ]
    reference = EVLHeadTorch(LAYERS, WIDTH, GRID, HEADS, FRAMES, MOTION, HIDDEN, CLASSES)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.tensor(0.2 * rng.standard_normal(parameter.shape, np.float32)))
    set_weights(head, {name: p.numpy() for name, p in reference.state_dict().items()})
    double = copy.deepcopy(reference).double()

    first = batches[0]
    inputs = [torch.from_numpy(first[name]).double() for name in ("motion", "tokens")]
    exact = double(*inputs).detach().numpy()
    ours = np.asarray(head(jnp.asarray(first["motion"]), jnp.asarray(first["tokens"])))
    error = np.abs(ours - exact).max() / np.abs(exact).max()
    report("EVL, logits, from torch in float64", error=error)
    assert error < 1e-5

    key = jax.random.key(7)
    kept = []
    for step in range(20):
        rngs = nnx.Rngs(dropout=jax.random.fold_in(key, step))
        shapes = [(BATCH, 1, 4 * WIDTH)] * LAYERS + [(BATCH, HIDDEN)]
        masks = [np.array(jax.random.bernoulli(rngs.dropout(), 0.5, s)) for s in shapes]
        kept.append([mask.reshape(BATCH, -1) for mask in masks])
    losses32, losses64 = (train(model, batches, kept) for model in (reference, double))

    losses, _ = train_ours(head, head_optimizer(learning_rate=1e-3), batches, key)
    noise = {
        "losses_ours": np.abs(np.subtract(losses, losses64)).max(),
        "losses_torch": np.abs(np.subtract(losses32, losses64)).max(),
    }
    report("EVL, 20 steps, from torch in float64", **noise)
    assert noise["losses_ours"] < 1e-5
