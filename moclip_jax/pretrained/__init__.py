"""Weights that others trained, and the embedded tiny CLIP, as our models: strictly one to one."""

from moclip_jax.pretrained.folders import TINY_CLIP
from moclip_jax.pretrained.timm_efficientnet import load_efficientnet, save_efficientnet
from moclip_jax.pretrained.tokenizers import load_tokenizer, tokenize
from moclip_jax.pretrained.towers import load_tower, save_tower

__all__ = [
    "TINY_CLIP",
    "load_efficientnet",
    "load_tokenizer",
    "load_tower",
    "save_efficientnet",
    "save_tower",
    "tokenize",
]
