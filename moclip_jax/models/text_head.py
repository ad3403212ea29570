"""A head that starts from the words: zero-shot CLIP before training, and for new classes after it.

The image embedding plus a linear map of the motion features is scored against class weights, which
start as the text embeddings of the classes. Everything trained is a difference from that start, so
`alpha` interpolates the weights between zero-shot CLIP and the trained head: Wortsman et al.,
"Robust Fine-Tuning of Zero-Shot Models" (WiSE-FT, arXiv 2109.01903), and Weng et al., "Open-VCLIP"
(arXiv 2302.00624), here with a frozen CLIP.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.clip import CLIP
from moclip_jax.models.fusion import FusionConfig, averaged, unit_length
from moclip_jax.models.towers import Tower


class Constant(nnx.Variable):
    """An array of a head that is stored with it and not trained."""


class ClassText(NamedTuple):
    """What zero-shot CLIP scores an image embedding with.

    Attributes:
      embeddings: float32 [classes, D], of unit length.
      scale: factor of the cosines.
      bias: added to them; 0 but for towers of a sigmoid loss.
    """

    embeddings: np.ndarray
    scale: float
    bias: float

    @classmethod
    def of_clip(cls, clip: Tower, embeddings: np.ndarray) -> "ClassText":
        """Return the text embeddings with the scale and the bias of their CLIP."""
        assert isinstance(clip, CLIP)  # As `fusion_config` has checked.
        bias = float(clip.logit_bias[...]) if clip.config.is_siglip else 0.0
        return cls(embeddings, float(jnp.exp(clip.logit_scale[...])), bias)


class TextHead(nnx.Module):
    """scale * (image / |image| + alpha M motion) . (text + alpha delta) + bias.

    With `alpha` 0, and before training, the logits are those of zero-shot CLIP, bit for bit.

    Attributes:
      config: its `FusionConfig`; `hidden` and `dropout` are not used, `normalize` is of the motion.
      text: float32 [classes, D], the text embeddings.
      scale, bias: of CLIP, float32 scalars.
      alpha: float32 scalar, from 0 (zero-shot) to 1 (as trained); 1 in training.
      delta: float32 [classes, D], zero before training.
      motion: float32 [motion_features, D], M transposed, zero before training.
    """

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs):
        del rngs  # Nothing is random.
        self.config = config
        classes, width = config.num_classes, config.appearance_features
        self.text = Constant(jnp.zeros((classes, width)))
        self.scale, self.bias = Constant(jnp.ones(())), Constant(jnp.zeros(()))
        self.alpha = Constant(jnp.ones(()))
        self.delta = nnx.Param(jnp.zeros((classes, width)))
        self.motion = nnx.Param(jnp.zeros((config.motion_features, width)))

    def start_from(self, text: ClassText) -> None:
        """Set the words of the classes, in the order of the logits."""
        self.text[...] = jnp.asarray(text.embeddings)
        self.scale[...], self.bias[...] = jnp.float32(text.scale), jnp.float32(text.bias)

    def embed(self, motion: jax.Array, appearance: jax.Array) -> jax.Array:
        """Return what is compared with words: float32 [B, D]; arguments as in a call."""
        motion = averaged(motion)
        if self.config.normalize:
            motion = unit_length(motion)
        return unit_length(averaged(appearance)) + self.alpha[...] * (motion @ self.motion[...])

    def __call__(
        self, motion: jax.Array, appearance: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Return logits, float32 [B, classes]; arguments as `FusionHead` takes them."""
        del rngs  # Nothing is dropped.
        weights = self.text[...] + self.alpha[...] * self.delta[...]
        scaled = self.scale[...] * self.embed(motion, appearance)
        return scaled @ weights.T + self.bias[...]

    def interpolated(self, alpha: float) -> "TextHead":
        """Return a copy with another `alpha`."""
        head = nnx.clone(self)
        head.alpha[...] = jnp.float32(alpha)
        return head

    def for_classes(self, embeddings: np.ndarray, trained: Sequence[int]) -> "TextHead":
        """Return a head of the same motion map and `alpha` for other classes.

        Args:
          embeddings: their text embeddings, float32 [n, D], of unit length.
          trained: for each of them the position of the class of this head whose trained weights it
            takes; -1 for a new class, whose weights are its words.
        """
        head = nnx.clone(self)
        head.config = dataclasses.replace(self.config, num_classes=len(embeddings))
        head.text = Constant(jnp.asarray(embeddings))
        known = np.asarray(trained)[:, None] >= 0
        head.delta = nnx.Param(jnp.where(known, self.delta[...][np.maximum(trained, 0)], 0.0))
        return head
