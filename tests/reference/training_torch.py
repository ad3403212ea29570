"""The two trainings once more, in torch, written from the method and not from our JAX code.

Used by `make parity` only: torch is no dependency of the project.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


class FusionHeadTorch(nn.Module):
    """concat(motion, appearance) -> linear -> ReLU -> dropout -> linear."""

    def __init__(self, in_features, hidden, num_classes):
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.classifier = nn.Linear(hidden, num_classes)
        # Smallest magnitude that any kept unit had before its ReLU.
        self.relu_margin = float("inf")

    def forward(self, motion, appearance, kept, keep):
        """Return logits; `kept` bool [B, hidden] says which units dropout keeps."""
        hidden = self.hidden(torch.cat([motion, appearance], -1))
        self.relu_margin = min(self.relu_margin, hidden.detach()[kept].abs().min().item())
        return self.classifier(functional.relu(hidden) * kept / keep)


def motion_groups(model, learning_rate):
    """Adam's three groups: new parts learn fast, pretrained ones slowly."""
    stem, rest = [], []
    for name, parameter in model.named_parameters():
        # The stem's convolution and the normalisation of the input take the other two channels.
        if name.startswith("input_norm.") or name == "backbone.0.0.weight":
            stem.append(parameter)
        elif not name.startswith("classifier."):
            rest.append(parameter)
    return [
        {"params": list(model.classifier.parameters()), "lr": learning_rate},
        {"params": stem, "lr": 0.1 * learning_rate},
        {"params": rest, "lr": 0.01 * learning_rate},
    ]


def train_motion(
    model: nn.Module, batches: Iterable, *, learning_rate: float, boundaries: tuple[int, ...]
) -> list[float]:
    """Trains in place, a step a batch, and returns the loss of each step.

    Args:
      model: a `MotionNetworkTorch`; its dtype is that of the computation.
      batches: `(fields, labels)`, uint8 [B, S, H, W, 2] and int [B], NumPy.
      learning_rate: of the classifier.
      boundaries: steps from which on the rate is a tenth of what it was.
    """
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.Adam(
        motion_groups(model, learning_rate), betas=(0.9, 0.999), eps=1e-3, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(boundaries), gamma=0.1)
    model.train()
    losses = []
    for fields, labels in batches:
        inputs = torch.from_numpy(fields).to(dtype).permute(0, 1, 4, 2, 3) / 255 - 0.5
        loss = functional.cross_entropy(model(inputs), torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def train_head(model: nn.Module, batches: Iterable, *, keep: float) -> list[float]:
    """Trains in place, a step a batch, and returns the loss of each step.

    Args:
      model: a `FusionHeadTorch`; its dtype is that of the computation.
      batches: `(motion, appearance, labels, kept)`, NumPy; `kept` is dropout's choice.
      keep: share of the hidden units that dropout keeps.
    """
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    losses = []
    for motion, appearance, labels, kept in batches:
        logits = model(
            torch.from_numpy(motion).to(dtype),
            torch.from_numpy(appearance).to(dtype),
            torch.from_numpy(kept),
            keep,
        )
        loss = functional.cross_entropy(logits, torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
