"""EfficientNet against timm.

The golden file was made by tests/golden/make_efficientnet.py in float64 (torch and timm; versions
inside), so a difference is the float32 noise of our side alone.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.cost import count_parameters
from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.pretrained.timm_efficientnet import _entries, load_efficientnet
from tests.golden.efficientnet_recipe import normal, projections, scale, weight

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet.npz"
