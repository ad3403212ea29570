"""Heads that see the order of segments and frames; `fusion.py` has the one that does not."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.attention import attention
from moclip_jax.models.fusion import FusionConfig, FusionHead, drop_units
from moclip_jax.models.initializers import normal, symmetric_uniform
from moclip_jax.models.linear import torch_linear

_KERNEL = 3
ATTENTION_HEADS = 4


def equal_parts(features: jax.Array, parts: int) -> jax.Array:
    """Average ordered segments over equal parts of the video.

    A head is trained on as many parts as the training has segments, and sees the same parts of the
    video whatever number of segments a test protocol has.

    Args:
      features: float [B, S, D]; each segment covers 1 / S of the video.
      parts: 1 / parts of the video each.

    Returns:
      float [B, parts, D]; the features themselves where S is `parts`.
    """
    segments = features.shape[1]
    if segments == parts:
        return features
    borders = np.arange(parts + 1)[:, None] * segments / parts
    first = np.arange(segments)[None]
    overlap = np.minimum(borders[1:], first + 1) - np.maximum(borders[:-1], first)
    weights = np.maximum(overlap, 0) * parts / segments
    return jnp.einsum("ps,bsd->bpd", weights.astype(np.float32), features)


@dataclass(frozen=True)
class TemporalConfig:
    """What the temporal residual is made of.

    Attributes:
      num_features: length of the feature vector of a segment.
      num_segments: equal parts of the video that it sees.
      num_classes: number of action classes.
      width: channels of its convolutions.
      num_layers: number of its convolutions.
    """

    num_features: int
    num_segments: int
    num_classes: int
    width: int = 64
    num_layers: int = 2

    def __post_init__(self):
        if self.num_segments < 2:
            raise ValueError(
                f"a temporal head needs at least 2 segments, got {self.num_segments}: one has no "
                "order; raise motion.num_segments"
            )


class TemporalResidual(nnx.Module):
    """Logits to add to those of the averaged features; zero before training.

    Linear to `width`, then convolutions of three segments, each x + conv(ReLU(LayerNorm(x))), and a
    linear layer over all parts and channels, which starts at zero.
    """

    def __init__(self, config: TemporalConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        bound = (_KERNEL * width) ** -0.5
        self.input_norm = layer_norm(config.num_features, rngs)
        self.reduce = torch_linear(config.num_features, width, rngs=rngs)
        self.norms = nnx.List([layer_norm(width, rngs) for _ in range(config.num_layers)])
        self.convs = nnx.List(
            [
                nnx.Conv(
                    width,
                    width,
                    (_KERNEL,),
                    kernel_init=symmetric_uniform(bound),
                    bias_init=symmetric_uniform(bound),
                    rngs=rngs,
                )
                for _ in range(config.num_layers)
            ]
        )
        self.output_norm = layer_norm(width, rngs)
        self.classifier = nnx.Linear(
            config.num_segments * width,
            config.num_classes,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, features: jax.Array) -> jax.Array:
        """Features float [B, S, num_features] in order -> float32 [B, num_classes]."""
        x = equal_parts(features, self.config.num_segments)
        x = self.reduce(self.input_norm(x))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(nnx.relu(norm(x)))
        return self.classifier(nnx.relu(self.output_norm(x)).reshape(x.shape[0], -1))


class TemporalHead(FusionHead):
    """`FusionHead` plus a `TemporalResidual` on the motion; equal to the former before training."""

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.temporal = TemporalResidual(
            TemporalConfig(config.motion_features, config.num_segments, config.num_classes),
            rngs=rngs,
        )

    def __call__(
        self, motion: jax.Array | None, appearance: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """As `FusionHead`; motion is [B, segments, motion_features]."""
        logits = super().__call__(motion, appearance, rngs=rngs)
        assert motion is not None  # `FusionHead` has checked it.
        return logits + self.temporal(motion)


class AttentionBlock(nnx.Module):
    """A pre-norm block of a transformer encoder: attention, then an MLP of twice the width."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = layer_norm(width, rngs), layer_norm(width, rngs)
        self.qkv = torch_linear(width, 3 * width, rngs=rngs)
        self.out = torch_linear(width, width, rngs=rngs)
        self.fc1 = torch_linear(width, 2 * width, rngs=rngs)
        self.fc2 = torch_linear(2 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, width] -> [B, T, width]."""
        heads = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3 * ATTENTION_HEADS, -1)
        mixed = attention(*jnp.split(heads, 3, axis=2), causal=False)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x))))


class AttentionHead(nnx.Module):
    """A small transformer encoder over the tokens of motion segments and of frames.

    Each stream's features are normalised (LayerNorm), brought to `hidden` channels, and get a
    learned position; a learned class query is the first token. The linear classifier sees its
    output, normalised and with dropout.
    """

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs, num_layers: int = 2):
        if config.hidden <= 0 or config.hidden % ATTENTION_HEADS:
            raise ValueError(
                f"the attention head needs a width (fusion.hidden) that {ATTENTION_HEADS} divides, "
                f"got {config.hidden}"
            )
        self.config = config
        self.batch_axes: tuple[str, ...] = ()
        width = config.hidden
        sizes = (config.motion_features, config.appearance_features)
        self.norms = nnx.List([layer_norm(size, rngs) for size in sizes])
        self.inputs = nnx.List([torch_linear(size, width, rngs=rngs) for size in sizes])
        tokens = 1 + config.num_segments + config.num_frames
        self.positions = nnx.Param(normal(0.02)(rngs.params(), (tokens, width)))
        self.blocks = nnx.List([AttentionBlock(width, rngs) for _ in range(num_layers)])
        self.output_norm = layer_norm(width, rngs)
        self.classifier = torch_linear(width, config.num_classes, rngs=rngs)

    def __call__(
        self, motion: jax.Array, appearance: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Classify videos from the features of their segments and frames.

        Args:
          motion: float [B, segments, motion_features], in order.
          appearance: float [B, num_frames, appearance_features], in order.
          rngs: with a stream `dropout`, for training; None switches dropout off.

        Returns:
          Logits, float32 [B, num_classes].

        Raises:
          ValueError: another shape.
        """
        config = self.config
        shapes = motion.shape[2:], appearance.shape[1:]
        if shapes != ((config.motion_features,), (config.num_frames, config.appearance_features)):
            raise ValueError(
                f"AttentionHead needs motion [B, segments, {config.motion_features}] and "
                f"appearance [B, {config.num_frames}, {config.appearance_features}], got "
                f"{motion.shape} and {appearance.shape}"
            )
        streams = equal_parts(motion, config.num_segments), appearance
        tokens = [
            layer(norm(x)) for layer, norm, x in zip(self.inputs, self.norms, streams, strict=True)
        ]
        query = jnp.zeros((motion.shape[0], 1, config.hidden))
        x = jnp.concatenate([query, *tokens], axis=1) + self.positions[...][None]
        for block in self.blocks:
            x = block(x)
        first = self.output_norm(x[:, 0])
        return self.classifier(drop_units(first, config.dropout, rngs, self.batch_axes))


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a LayerNorm whose variance does not lose digits, with torch's epsilon."""
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
