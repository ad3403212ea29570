"""The loss of a classifier, for one label a video or several.

Labels are int `[B]`, the class of each video, or multi-hot float `[B, classes]`, 1 for each of its
classes and 0 for the others.
"""

from typing import Any

import jax
import numpy as np
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the loss of each video, float32 `[B]`.

    It is softmax cross-entropy for one label a video; for several, the sum over the classes of
    binary cross-entropy, each class being a yes or no of its own.

    Args:
      logits: float32 `[B, classes]`.
      labels: see above.
    """
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)


def is_right(logits: Any, labels: Any) -> Any:
    """Return whether the likeliest class of each video is its label, or one of these, bool `[B]`.

    Arguments as `cross_entropy`, of JAX or NumPy.
    """
    best = logits.argmax(axis=-1)
    return best == labels if labels.ndim == 1 else labels[np.arange(len(labels)), best] > 0
