"""The decoder of "Frozen CLIP Models are Efficient Video Learners" (EVL, arXiv 2208.03550).

A learned query reads the tokens of the last layers of CLIP's frozen image tower, of all frames at
once, in as many decoder layers. To the tokens of each layer is added first what the order of the
frames tells: a depthwise convolution over time, a position in time, and the attention between
neighbouring frames, by the tower's own queries and keys.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.attention import attention
from moclip_jax.models.fusion import FusionConfig, FusionHead, drop_units
from moclip_jax.models.initializers import normal, symmetric_uniform
from moclip_jax.models.temporal import layer_norm

_MLP_FACTOR = 4


class TemporalCrossAttention(nnx.Module):
    """Where the patches of a frame find themselves in the frames before and after it.

    A patch attends to the patches of the neighbouring frame by the tower's query and key, averaged
    over the heads, and gets the learned vectors of their offsets, so weighted.
    """

    def __init__(self, width: int, grid: int):
        self.grid = grid
        offsets = (2 * grid - 1) ** 2
        self.before = nnx.Param(jnp.zeros((offsets, width)))
        self.after = nnx.Param(jnp.zeros((offsets, width)))

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """[N, frames, 1 + patches, heads, head size], both -> [N, frames, 1 + patches, width]."""
        query, key = query[:, :, 1:], key[:, :, 1:]
        before = self._half(query[:, 1:], key[:, :-1], self.before[...])
        after = self._half(query[:, :-1], key[:, 1:], self.after[...])
        # The class token, the first, gets nothing; nor is there a frame beyond either end.
        before = jnp.pad(before, ((0, 0), (1, 0), (1, 0), (0, 0)))
        return before + jnp.pad(after, ((0, 0), (0, 1), (1, 0), (0, 0)))

    def _half(self, query: jax.Array, key: jax.Array, vectors: jax.Array) -> jax.Array:
        y, x = np.divmod(np.arange(self.grid**2), self.grid)
        rows, columns = (place[:, None] - place[None] + self.grid - 1 for place in (y, x))
        scores = jnp.einsum("ntqhd,ntkhd->nthqk", query * query.shape[-1] ** -0.5, key)
        weights = jax.nn.softmax(scores, axis=-1).mean(axis=2)
        offsets = vectors[rows * (2 * self.grid - 1) + columns]
        return jnp.einsum("ntqk,qkc->ntqc", weights, offsets)


class DecoderLayer(nnx.Module):
    """One query attends to tokens, then an MLP; pre-norm."""

    def __init__(self, config: FusionConfig, rngs: nnx.Rngs):
        width, self.num_heads = config.token_width, config.token_heads
        self.dropout = config.dropout

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            # Glorot's bound.
            init = symmetric_uniform((6 / (inputs + outputs)) ** 0.5)
            return nnx.Linear(inputs, outputs, kernel_init=init, rngs=rngs)

        self.query_norm, self.token_norm, self.mlp_norm = (
            layer_norm(width, rngs) for _ in range(3)
        )
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        self.fc1 = linear(width, _MLP_FACTOR * width)
        self.fc2 = linear(_MLP_FACTOR * width, width)

    def __call__(
        self,
        x: jax.Array,
        tokens: jax.Array,
        rngs: nnx.Rngs | None,
        batch_axes: tuple[str, ...],
    ) -> jax.Array:
        """X [N, 1, width], tokens [N, T, width] -> [N, 1, width]."""

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        tokens = self.token_norm(tokens)
        query = heads(self.query(self.query_norm(x)))
        mixed = attention(query, heads(self.key(tokens)), heads(self.value(tokens)), causal=False)
        x = x + self.out(mixed.reshape(x.shape))
        hidden = self.fc1(self.mlp_norm(x))
        hidden = hidden * nnx.sigmoid(1.702 * hidden)
        return x + self.fc2(drop_units(hidden, self.dropout, rngs, batch_axes))


class EVLDecoder(nnx.Module):
    """Tokens of the tower's last layers -> one feature vector of a video.

    Attributes:
      batch_axes: as `FusionHead`.
    """

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.batch_axes: tuple[str, ...] = ()
        layers, width = config.token_layers, config.token_width
        bound = 3**-0.5  # torch's, of a depthwise convolution over three frames.
        self.query = nnx.Param(normal(0.02)(rngs.params(), (width,)))
        self.conv_kernel = nnx.Param(symmetric_uniform(bound)(rngs.params(), (layers, 3, width)))
        self.conv_bias = nnx.Param(symmetric_uniform(bound)(rngs.params(), (layers, width)))
        self.positions = nnx.Param(jnp.zeros((layers, config.num_frames, width)))
        self.cross = nnx.List(
            [TemporalCrossAttention(width, config.token_grid) for _ in range(layers)]
        )
        self.layers = nnx.List([DecoderLayer(config, rngs) for _ in range(layers)])

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Read the tokens.

        Args:
          tokens: floating [N, frames, layers, 3, 1 + patches, width]: of each layer the output,
            query and key, as `CLIP.image_features_with_tokens` returns them.
          rngs: with a stream `dropout`, for training.

        Returns:
          float32 [N, width].

        Raises:
          ValueError: another shape.
        """
        config = self.config
        patches = config.token_grid**2
        shape = (config.num_frames, config.token_layers, 3, 1 + patches, config.token_width)
        if tokens.shape[1:] != shape:
            raise ValueError(f"EVLDecoder needs tokens [N, {shape}], got {tokens.shape}")
        batch, frames = tokens.shape[:2]
        x = jnp.broadcast_to(self.query[...], (batch, 1, config.token_width))
        for number, (cross, layer) in enumerate(zip(self.cross, self.layers, strict=True)):
            out, query, key = jnp.moveaxis(tokens[:, :, number].astype(jnp.float32), 2, 0)
            kernel = self.conv_kernel[...][number].reshape(3, 1, 1, 1, -1)
            padded = jnp.pad(out, ((0, 0), (1, 1), (0, 0), (0, 0)))
            convolved = sum(kernel[tap] * padded[:, tap : tap + frames] for tap in range(3))
            seen = out + convolved + self.conv_bias[...][number].reshape(1, 1, 1, -1)
            seen += self.positions[...][number].reshape(1, frames, 1, -1)
            heads = (*out.shape[:3], config.token_heads, -1)
            seen += cross(query.reshape(heads), key.reshape(heads))
            x = layer(x, seen.reshape(batch, -1, config.token_width), rngs, self.batch_axes)
        return x[:, 0]


class EVLHead(nnx.Module):
    """The decoder's feature vector, normalised, takes the place of CLIP's embedding in the fusion.

    Attributes:
      decoder: `EVLDecoder`.
      norm: LayerNorm of its output.
      fusion: `FusionHead` on the averaged motion and that.
    """

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.decoder = EVLDecoder(config, rngs=rngs)
        self.norm = layer_norm(config.token_width, rngs)
        mean = dataclasses.replace(config, appearance_features=config.token_width, head="mean")
        self.fusion = FusionHead(mean, rngs=rngs)

    def __call__(
        self, motion: jax.Array, tokens: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Motion [B, segments, motion_features], tokens as `EVLDecoder` -> float32 [B, classes]."""
        return self.fusion(motion, self.norm(self.decoder(tokens, rngs=rngs)), rngs=rngs)
