"""Classes as words: prompts, their text features, and scores of images against them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.inference.class_phrases import PHRASES, class_phrase
from moclip_jax.models.clip import CLIP


def class_phrases(class_names: Sequence[str], known: str = "") -> list[Sequence[str]]:
    """Return the phrases that name each class.

    Args:
      known: data set whose phrases `moclip_jax.inference.class_phrases` holds; empty for none. A
        class that it does not hold is called by its name in words.
    """
    phrases = PHRASES[known] if known else {}
    return [phrases.get(name, (class_phrase(name),)) for name in class_names]


def class_embeddings(
    clip: CLIP, tokenizer: Any, phrases: Sequence[Sequence[str]], templates: Sequence[str]
) -> np.ndarray:
    """Return one text feature for each class: float32 `[classes, projection_dim]`, unit length.

    The features of all prompts of a class (each template with each phrase) are averaged, then
    normalised (published recipe).
    """
    # Imported late: only who has texts to embed needs transformers.
    from moclip_jax.pretrained import tokenize

    graphdef, state = nnx.split(clip)

    @jax.jit
    def encode(state: nnx.State, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).encode_text(tokens).astype(jnp.float32)

    prompts, owners = [], []
    for owner, names in enumerate(phrases):
        for name in names:
            for template in templates:
                prompts.append(template.format(name))
                owners.append(owner)
    tokens = np.asarray(tokenize(tokenizer, prompts, clip.config.text.max_length))
    # Chunks of one size, so that the program is compiled once.
    chunk = 64
    padded = np.concatenate([tokens, np.repeat(tokens[-1:], -len(tokens) % chunk, axis=0)])
    embeds = np.concatenate(
        [np.asarray(encode(state, padded[i : i + chunk])) for i in range(0, len(padded), chunk)]
    )[: len(tokens)]
    means = np.stack([embeds[np.equal(owners, c)].mean(axis=0) for c in range(len(phrases))])
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


def zero_shot_logits(
    appearance: np.ndarray, text: np.ndarray, logit_scale: float = 1.0
) -> np.ndarray:
    """Return scaled cosines `[videos, classes]` of `appearance [videos, D]` and `text [C, D]`."""
    appearance = appearance / np.linalg.norm(appearance, axis=-1, keepdims=True)
    return logit_scale * appearance @ text.T
