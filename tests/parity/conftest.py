"""Settings of the comparisons with torch."""

import pytest
import torch

from benchmarks.torch_timm import import_timm

# Before TensorFlow, beside whose libraries torchvision's do not load; it may not load at all.
try:
    import torchvision  # noqa: F401

    HAS_TORCHVISION = True
except Exception:
    HAS_TORCHVISION = False

# torch's threads wait for each other by turning, which is slow where others compute too.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def timm():
    """timm; its networks do not use torchvision, for which there is a stand-in."""
    return import_timm()


@pytest.fixture
def needs_torchvision():
    """Skip a test of timm's transforms where only the stand-in can be had."""
    if not HAS_TORCHVISION:
        pytest.skip("torchvision does not load beside this build of torch")
