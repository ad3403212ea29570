"""Weights that others trained, and the embedded tiny CLIP, as our models: strictly one to one."""

from moclip_jax.pretrained.hf_clip import TINY_CLIP, load_clip, load_tokenizer, save_clip, tokenize

__all__ = [
    "TINY_CLIP",
    "load_clip",
    "load_tokenizer",
    "save_clip",
    "tokenize",
]
