"""The published fusion head, on averaged features, and what all heads are made of."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.linear import torch_linear


@dataclass(frozen=True)
class FusionConfig:
    """What a fusion head is made of; the defaults are MoCLIP-Lite's, 969,829 parameters.

    Attributes:
      motion_features: length of the motion feature vector; 0 makes a head on CLIP alone.
      appearance_features: length of the CLIP image embedding.
      hidden: width of the hidden layer; 0 makes the head linear. Of the attention head: width of
        its tokens.
      num_classes: number of action classes.
      dropout: probability of dropping a hidden unit in training.
      normalize: brings each stream's features to unit length first; the published head does not.
      head: one of `moclip_jax.models.heads.HEADS`: `mean` averages features over segments and
        frames; `temporal` adds a temporal residual; `attention` sees a token of each; `evl` sees
        the tokens of CLIP's image tower; `text` starts from the words of the classes.
      num_segments: equal parts of the video that `temporal` and `attention` see.
      num_frames: frames that `attention` and `evl` see.
      token_layers: last layers of the tower whose tokens `evl` sees; 0 for the other heads.
      token_width: channels of these tokens.
      token_grid: patches along a side of an image.
      token_heads: attention heads of the tower, and of `evl`.
    """

    motion_features: int = 1280
    appearance_features: int = 512
    hidden: int = 512
    num_classes: int = 101
    dropout: float = 0.5
    normalize: bool = False
    head: str = "mean"
    num_segments: int = 0
    num_frames: int = 0
    token_layers: int = 0
    token_width: int = 0
    token_grid: int = 0
    token_heads: int = 0

    def __post_init__(self):
        if self.head != "mean" and not self.motion_features:
            raise ValueError(f"FusionConfig.head='{self.head}' needs motion features")
        for field in ("appearance_features", "num_classes"):
            if getattr(self, field) <= 0:
                raise ValueError(
                    f"FusionConfig.{field} must be positive, got {getattr(self, field)}"
                )
        for field in ("motion_features", "hidden"):
            if getattr(self, field) < 0:
                raise ValueError(
                    f"FusionConfig.{field} must be 0 (none) or more, got {getattr(self, field)}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"FusionConfig.dropout must lie in [0, 1), got {self.dropout}")


class FusionHead(nnx.Module):
    """concat(motion, appearance) -> linear -> ReLU -> dropout -> linear.

    Attributes:
      config: its `FusionConfig`.
      hidden: `nnx.Linear` from the concatenated features; None in a linear head.
      classifier: `nnx.Linear` to the classes.
      batch_axes: inside `jax.shard_map`, the mesh axes that the batch is split over, evenly; else
        empty.
    """

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.batch_axes: tuple[str, ...] = ()
        in_features = config.motion_features + config.appearance_features
        self.hidden = torch_linear(in_features, config.hidden, rngs=rngs) if config.hidden else None
        self.classifier = torch_linear(config.hidden or in_features, config.num_classes, rngs=rngs)

    def __call__(
        self, motion: jax.Array | None, appearance: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Classify videos from their features.

        Args:
          motion: float [B, motion_features], or [B, segments, motion_features] to average over the
            segments; None for a head on CLIP alone.
          appearance: float [B, appearance_features], the CLIP image embedding, not normalised; or
            [B, frames, appearance_features] to average over the frames.
          rngs: with a stream `dropout`, for training; None switches dropout off.

        Returns:
          Logits, float32 [B, num_classes].

        Raises:
          ValueError: a feature is missing, unwanted or of another length than configured.
        """
        config = self.config
        if appearance.shape[-1] != config.appearance_features:
            raise ValueError(
                f"FusionHead needs {config.appearance_features} appearance features, got "
                f"{appearance.shape}"
            )
        if (motion is None) != (config.motion_features == 0):
            state = "was given no" if motion is None else "takes no"
            raise ValueError(
                f"FusionHead with motion_features={config.motion_features} {state} motion features"
            )
        appearance = averaged(appearance)
        motion = None if motion is None else averaged(motion)
        if config.normalize:
            appearance = unit_length(appearance)
            motion = None if motion is None else unit_length(motion)
        features = appearance
        if motion is not None:
            if motion.shape[-1] != config.motion_features:
                raise ValueError(
                    f"FusionHead needs {config.motion_features} motion features, got {motion.shape}"
                )
            features = jnp.concatenate([motion, appearance], axis=-1)
        if self.hidden is None:
            return self.classifier(features)
        hidden = nnx.relu(self.hidden(features))
        return self.classifier(drop_units(hidden, config.dropout, rngs, self.batch_axes))


def drop_units(
    x: jax.Array, rate: float, rngs: nnx.Rngs | None, batch_axes: tuple[str, ...]
) -> jax.Array:
    """Drop units of `x [B, ...]` with a probability, and scale the others up; dropout.

    Args:
      x: this device's rows of the batch.
      rate: the probability.
      rngs: with a stream `dropout`; None drops nothing.
      batch_axes: mesh axes that the batch is split over, see `FusionHead`.
    """
    if rngs is None or rate == 0:
        return x
    keep = 1.0 - rate
    return jnp.where(_draw(rngs.dropout(), keep, x.shape, batch_axes), x / keep, 0.0)


def _draw(
    key: jax.Array, keep: float, shape: tuple[int, ...], batch_axes: tuple[str, ...]
) -> jax.Array:
    if not batch_axes:
        return jax.random.bernoulli(key, keep, shape)
    # Every device draws for the whole batch and takes its own rows: what is dropped must not
    # depend on how many devices there are.
    devices = jax.lax.axis_size(batch_axes)
    whole = jax.random.bernoulli(key, keep, (devices * shape[0], *shape[1:]))
    first = jax.lax.axis_index(batch_axes) * shape[0]
    return jax.lax.dynamic_slice_in_dim(whole, first, shape[0])


def averaged(features: jax.Array) -> jax.Array:
    """Return `[B, D]`, the average over segments or frames of `[B, n, D]`, if there are any."""
    return features.mean(axis=1) if features.ndim == 3 else features


def unit_length(features: jax.Array) -> jax.Array:
    """Return `[B, D]` of unit length."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
