"""Settings of the comparisons with torch."""

import contextlib

import torch

# Before TensorFlow, beside whose libraries torchvision's do not load; it may not load at all.
with contextlib.suppress(ImportError, RuntimeError):
    import timm  # noqa: F401

# torch's threads wait for each other by turning, which is slow where others compute too.
torch.set_num_threads(1)
