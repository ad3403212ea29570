"""Probabilities over the trained classes, or over labels of the user's own."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moclip_jax.inference.class_phrases import class_phrase

if TYPE_CHECKING:
    from moclip_jax.models.towers import Tower

# Prompts around the user's own labels, which may be a thing, a person or a whole scene.
WORD_TEMPLATES = ("{}", "a photo of {}.", "a video of {}.")
# Of the user's own, in a page or a service.
MOST_LABELS = 50


def parse_labels(text: str) -> tuple[str, ...]:
    """Return the labels in a text, separated by commas or lines, each once.

    Raises:
      ValueError: there is a single one, which is no choice, or there are too many.
    """
    words = tuple(dict.fromkeys(w.strip() for w in re.split(r"[,\n]", text) if w.strip()))
    if len(words) == 1:
        raise ValueError("One label is no choice: give at least two, separated by commas, or none.")
    if len(words) > MOST_LABELS:
        raise ValueError(f"{len(words)} labels are too many; at most {MOST_LABELS}.")
    return words


class LabelSet:
    """Turns a model's outputs into probabilities.

    Labels of the user's own are recognised in the RGB frame (zero-shot CLIP). Those that name a
    trained class (see `match_words`) are distinguished by the trained head, which knows the
    motion too.

    Attributes:
      labels: the trained classes, or the user's labels, in the order of the probabilities.
      trained_as: for each of the user's labels the trained class that it names, or ''; all are ''
        for the trained classes themselves.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        words: Sequence[str] = (),
        clip: "Tower | None" = None,
        tokenizer: Any = None,
        multi_label: bool = False,
    ):
        """Prepare the labels.

        Args:
          words: the user's labels; none means the classes.
          clip: with its text tower; needed for words.
          tokenizer: of that CLIP; needed for words.
          multi_label: whether a video may have several of the trained classes, each then with a
            probability of its own (sigmoid).

        Raises:
          ValueError: there are words, and `clip` is an image network without a text side.
        """
        self.labels = tuple(words) or tuple(class_names)
        self.trained_as = ("",) * len(self.labels)
        self._owners: np.ndarray | None = None
        self._multi_label = multi_label
        if words:
            # Imported late, with JAX and Flax: trained classes need no text.
            from moclip_jax.inference.zero_shot import class_embeddings
            from moclip_jax.models.imagenet_tower import ImageNetTower

            assert clip is not None
            if isinstance(clip, ImageNetTower):
                raise ValueError(
                    "this model's image network has no text side, so it knows its trained classes "
                    "alone: leave out labels of your own, or train with a CLIP as "
                    "config.clip.source"
                )
            names = [class_phrase(name) for name in class_names]
            self._text, class_text = (
                class_embeddings(clip, tokenizer, [[phrase] for phrase in phrases], WORD_TEMPLATES)
                for phrases in (words, names)
            )
            self._owners = match_words(words, class_names, self._text, class_text)
            self.trained_as = tuple(
                class_names[owner] if owner >= 0 else "" for owner in self._owners
            )
            self._logit_scale = float(np.exp(np.asarray(clip.logit_scale[...])))

    def probabilities(
        self, logits: np.ndarray, appearance: np.ndarray, *, use_head: bool = True
    ) -> np.ndarray:
        """Return float64 `[labels]` from the head's logits `[classes]` and CLIP's feature `[D]`.

        Without the head, the user's labels are distinguished by the RGB frame alone.
        """
        logits, appearance = (np.asarray(x, np.float64) for x in (logits, appearance))
        if self._owners is None:
            return _sigmoid(logits) if self._multi_label else _softmax(logits)
        appearance = appearance / np.linalg.norm(appearance)
        zero_shot = _softmax(self._logit_scale * (self._text @ appearance))
        return word_probabilities(zero_shot, logits, self._owners) if use_head else zero_shot


def match_words(
    words: Sequence[str], class_names: Sequence[str], word_text: np.ndarray, class_text: np.ndarray
) -> np.ndarray:
    """Return which words name a trained class.

    A word does if it is the class's name (capitals, `_` and CamelCase aside), or if CLIP's text
    tower finds it nearer to that class than any two of the trained classes are to each other.

    Args:
      word_text: unit-length text features `[words, D]`.
      class_text: unit-length text features `[classes, D]`, by the same templates.

    Returns:
      int `[words]`, the position of the class, or -1.
    """
    names = {class_phrase(name): position for position, name in enumerate(class_names)}
    between = class_text @ class_text.T
    np.fill_diagonal(between, -np.inf)
    cosines = word_text @ class_text.T
    nearest = cosines.argmax(axis=1)
    # Above rounding: if CLIP cannot distinguish two classes, words match by name alone.
    limit = between.max() + 1e-4 if len(class_names) > 1 else np.inf
    near = cosines.max(axis=1) > limit
    return np.array(
        [
            names.get(class_phrase(word), position if is_near else -1)
            for word, position, is_near in zip(words, nearest.tolist(), near, strict=True)
        ]
    )


def word_probabilities(zero_shot: np.ndarray, logits: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Combine zero-shot CLIP and the trained head over words.

    How likely the words that name trained classes are together, against all others, only zero-shot
    CLIP can say: the head was trained on nothing else than its classes. How this share divides
    among them the head says, which saw motion and frames in training. Several words for one class
    divide its part as zero-shot CLIP does. So words that name no class leave zero-shot as it is,
    and the names of all classes give the trained head's own probabilities.

    Args:
      zero_shot: probabilities `[words]`.
      logits: of the trained head `[classes]`.
      owners: from `match_words`.

    Returns:
      float64 `[words]` that sum to 1.
    """
    known = owners >= 0
    if not known.any():
        return zero_shot
    classes, position = np.unique(owners[known], return_inverse=True)
    share = zero_shot[known]
    of_class = np.bincount(position, share)[position]
    same = np.divide(share, of_class, out=np.zeros_like(share), where=of_class > 0)
    combined = zero_shot.astype(np.float64)
    combined[known] = share.sum() * _softmax(logits[classes])[position] * same
    return combined / combined.sum()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()
