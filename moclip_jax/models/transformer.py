"""Pre-norm transformer blocks, and the layers that the towers of a CLIP are made of."""

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.attention import attention
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

_ACTIVATIONS = {
    # OpenAI trained with this cheap form of GELU.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(
        self,
        tower: CLIPVisionConfig | CLIPTextConfig,
        config: CLIPConfig,
        *,
        causal: bool,
        rngs: nnx.Rngs,
    ):
        width = tower.hidden_size
        # The initial scales are those of OpenAI's code.
        narrow = width**-0.5 * (2 * tower.num_layers) ** -0.5
        self.num_heads = tower.num_heads
        self.causal = causal
        self.activation = config.activation
        self.norm1 = layer_norm(width, config, rngs)
        # Query, key and value in one product; torch's three weights side by side.
        self.qkv = linear(width, 3 * width, width**-0.5, config, rngs)
        self.out = linear(width, width, narrow, config, rngs)
        self.norm2 = layer_norm(width, config, rngs)
        self.fc1 = linear(width, tower.mlp_size, (2 * width) ** -0.5, config, rngs)
        self.fc2 = linear(tower.mlp_size, width, narrow, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, T, width]."""
        query, key, value = self._heads(x)
        mixed = attention(query, key, value, causal=self.causal)
        return self._after_attention(x, mixed)

    def first_token(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, width]: the block's output at the first token, and no other.

        Of the other tokens only the keys and values are needed.
        """
        query, key, value = self._heads(x)
        mixed = attention(query[:, :1], key, value, causal=self.causal)
        return self._after_attention(x[:, :1], mixed)[:, 0]

    def with_heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[N, T, width] -> the block's output, its query and its key, each [N, T, width]."""
        query, key, value = self._heads(x)
        mixed = attention(query, key, value, causal=self.causal)
        return self._after_attention(x, mixed), query.reshape(x.shape), key.reshape(x.shape)

    def _heads(self, x: jax.Array) -> list[jax.Array]:
        """Query, key and value, each [N, T, heads, head size]."""
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, length, 3 * self.num_heads, -1)
        return jnp.split(heads, 3, axis=2)

    def _after_attention(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.fc2(_ACTIVATIONS[self.activation](self.fc1(self.norm2(x))))


class Encoder(nnx.Module):
    """The blocks of a tower, their parameters stacked along a first axis of layers."""

    def __init__(
        self,
        tower: CLIPVisionConfig | CLIPTextConfig,
        config: CLIPConfig,
        *,
        causal: bool,
        rngs: nnx.Rngs,
    ):
        def create(rngs: nnx.Rngs) -> Block:
            return Block(tower, config, causal=causal, rngs=rngs)

        self._num_layers = tower.num_layers
        self.layers = nnx.vmap(create)(rngs.split(tower.num_layers))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, T, width]."""
        graph, layers = nnx.split(self.layers)
        # Scanned, not unrolled: compiles in a third of the time and runs as fast or faster.
        x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x), None), x, layers)
        return x

    def first_token(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, width]: the first token of the output.

        The last block, of a ViT-B/32 a sixteenth of the work, is computed for that token alone.
        """
        last = self._num_layers - 1
        # Not scanned over all layers but the last: those would be copied out of the stack first.
        x = jax.lax.fori_loop(0, last, lambda layer, x: self.block(layer)(x), x)
        return self.block(last).first_token(x)

    def block(self, layer: jax.Array | int) -> Block:
        """One of the blocks, with arrays taken out of the stack."""
        graph, layers = nnx.split(self.layers)
        return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[layer], layers))


class AttentionPooling(nnx.Module):
    """A learned query that attends to all patches, then an MLP: SigLIP's pooling.

    Architecture: the MAP head of Zhai et al. 2022, "Scaling Vision Transformers" (arXiv
    2106.04560).
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        vision = config.vision
        width = vision.hidden_size
        scale = width**-0.5
        self.num_heads = vision.num_heads
        self.activation = config.activation
        self.probe = embedding((width,), scale, rngs)
        self.query = linear(width, width, scale, config, rngs)
        self.key_value = linear(width, 2 * width, scale, config, rngs)
        self.out = linear(width, width, scale, config, rngs)
        self.norm = layer_norm(width, config, rngs)
        self.fc1 = linear(width, vision.mlp_size, (2 * width) ** -0.5, config, rngs)
        self.fc2 = linear(vision.mlp_size, width, scale, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, width]."""
        batch, length, width = x.shape
        query = self.query(self.probe[...].astype(x.dtype)[None])
        query = jnp.broadcast_to(
            query.reshape(1, 1, self.num_heads, -1),
            (batch, 1, self.num_heads, width // self.num_heads),
        )
        heads = self.key_value(x).reshape(batch, length, 2 * self.num_heads, -1)
        key, value = jnp.split(heads, 2, axis=2)
        mixed = self.out(attention(query, key, value, causal=False).reshape(batch, width))
        return mixed + self.fc2(_ACTIVATIONS[self.activation](self.fc1(self.norm(mixed))))


def embedding(shape: tuple[int, ...], scale: float, rngs: nnx.Rngs) -> nnx.Param:
    """Return a table of float32 normal numbers of a standard deviation."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


def layer_norm(width: int, config: CLIPConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a LayerNorm that computes in the config's dtype."""
    return nnx.LayerNorm(
        width,
        epsilon=config.layer_norm_eps,
        dtype=config.dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits
        rngs=rngs,
    )


def linear(
    inputs: int,
    outputs: int,
    scale: float,
    config: CLIPConfig,
    rngs: nnx.Rngs,
    *,
    use_bias: bool = True,
) -> nnx.Linear:
    """Return a linear layer of normal numbers that computes in the config's dtype."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=nnx.initializers.normal(scale),
        dtype=config.dtype,
        rngs=rngs,
    )
