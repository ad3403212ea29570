"""Weights that others trained, and the embedded tiny CLIP, as our models: strictly one to one."""

from moclip_jax.pretrained.hf_clip import TINY_CLIP, load_clip, load_tokenizer, save_clip, tokenize
from moclip_jax.pretrained.timm_efficientnet import load_efficientnet, save_efficientnet

__all__ = [
    "TINY_CLIP",
    "load_clip",
    "load_efficientnet",
    "load_tokenizer",
    "save_clip",
    "save_efficientnet",
    "tokenize",
]
