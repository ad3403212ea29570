"""Makes evl.npz: what torch gives for EVL's decoder and fusion, and over twenty steps of AdamW.

Run it from the repository in an environment of its own (torch is no dependency of this project):

    python -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 numpy==2.4.6
    PYTHONPATH=.:tests/golden /tmp/torchenv/bin/python tests/golden/make_evl.py tests/golden/evl.npz

Inputs are not stored: `evl_recipe.py` makes them on both sides.
"""

import json
import sys

import numpy as np
import torch
from evl_recipe import (
    CLASSES,
    FRAMES,
    GRID,
    HEADS,
    HIDDEN,
    LAYERS,
    LEARNING_RATE,
    MOTION,
    WIDTH,
    make_batches,
    make_weights,
)

from tests.reference.evl_torch import EVLHeadTorch


def main(path):
    model = EVLHeadTorch(LAYERS, WIDTH, GRID, HEADS, FRAMES, MOTION, HIDDEN, CLASSES)
    weights = make_weights({name: tuple(p.shape) for name, p in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    logits, losses = [], []
    for batch in make_batches():
        outputs = model(torch.from_numpy(batch["motion"]), torch.from_numpy(batch["tokens"]))
        loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(batch["label"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logits.append(outputs.detach().numpy())
        losses.append(loss.item())
    versions = json.dumps({lib.__name__: lib.__version__ for lib in (torch, np)})
    named = {f"weights/{name}": array for name, array in weights.items()}
    np.savez_compressed(path, versions=versions, logits=logits, losses=losses, **named)


if __name__ == "__main__":
    main(sys.argv[1])
