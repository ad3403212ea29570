"""Frozen image networks by what their folder holds: `load_tower` finds out which kind it is."""

import os
from typing import Any

import jax.numpy as jnp

from moclip_jax.models.clip import CLIP
from moclip_jax.pretrained.folders import find_folder
from moclip_jax.pretrained.hf_clip import load_hf_clip


def load_tower(source: str | os.PathLike[str], *, dtype: Any = jnp.float32) -> tuple[CLIP, Any]:
    """Load a frozen image network, with the text network and the tokenizer that belong to it.

    Args:
      source: "tiny" or `TINY_CLIP` for the embedded CLIP; a local folder in Hugging Face's format;
        or a hub id such as "openai/clip-vit-large-patch14", followed by "@" and a revision
        unless the main branch is wanted ("openai/clip-vit-base-patch32@refs/pr/15").
      dtype: of the computation; the parameters are float32.

    Returns:
      The model, and its transformers tokenizer.

    Raises:
      OSError: if there is no such folder and it cannot be downloaded, or the folder lacks a file.
      ValueError: if the folder holds a network of a kind that is not known here, or the weights are
        pickles, or damaged, or not those that its config describes, or the tokenizer is that of
        another model.
    """
    folder = find_folder(source)
    try:
        return load_hf_clip(folder, dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
