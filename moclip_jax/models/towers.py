"""Frozen image networks of all kinds, by their configurations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.imagenet_tower import KIND, ImageNetConfig, ImageNetTower

Tower = CLIP | ImageNetTower
TowerConfig = CLIPConfig | ImageNetConfig


def build_tower(config: TowerConfig, *, rngs: nnx.Rngs) -> Tower:
    """Return a tower with initial weights."""
    if isinstance(config, ImageNetConfig):
        return ImageNetTower(config, rngs=rngs)
    return CLIP(config, rngs=rngs)


def tower_config(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    *,
    dtype: Any = jnp.float32,
    features: str = "projected",
) -> TowerConfig:
    """Read what an export's metadata says of its tower, as `to_hf` of the configuration gave it.

    Args:
      config: from `to_hf`.
      preprocessor: from `ImagePreprocessing.to_hf`.
      dtype: of the computation.
      features: of a `CLIPConfig`.

    Raises:
      ValueError: it is of a kind that is not known here.
    """
    if config.get("model_type") == KIND:
        assert preprocessor is not None
        return ImageNetConfig.from_hf(config, preprocessor, dtype=dtype)
    clip = CLIPConfig.from_hf(config, preprocessor, dtype=dtype)
    return dataclasses.replace(clip, features=features)
