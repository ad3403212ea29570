"""CLIP and SigLIP: an image tower and a text tower that meet in one embedding space.

Architecture: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision" (arXiv 2103.00020), and Zhai et al. 2023, "Sigmoid Loss for Language Image
Pre-Training" (arXiv 2303.15343). The numbers agree with `CLIPModel`, `MetaClip2Model` and
`SiglipModel` of Hugging Face transformers and with open_clip's `CLIP`, whose weights
`moclip_jax.pretrained.load_tower` reads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING, ImagePreprocessing
from moclip_jax.models.transformer import AttentionPooling, Encoder, embedding, layer_norm, linear


def normalize_images(
    images: jax.Array | np.ndarray, preprocessing: ImagePreprocessing = DEFAULT_PREPROCESSING
) -> jax.Array:
    """Scale images for `CLIP.encode_image`.

    Args:
      images: uint8 [..., 3], RGB.
      preprocessing: that of the CLIP, `clip.config.preprocessing`.

    Returns:
      float32 [..., 3], (x * rescale_factor - mean) / std; by default (x / 255 - mean) / std.

    Raises:
      ValueError: if the images are not uint8, as floats may be scaled already.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"normalize_images takes uint8 images, not {images.dtype}")
    shape = (1,) * (images.ndim - 1) + (3,)
    mean = jnp.array(preprocessing.mean, jnp.float32).reshape(shape)
    std = jnp.array(preprocessing.std, jnp.float32).reshape(shape)
    # Divided by 255 rather than multiplied by its inverse, as the published code does.
    divisor = 1 / preprocessing.rescale_factor
    return (jnp.asarray(images, jnp.float32) / divisor - mean) / std


class VisionTower(nnx.Module):
    """Images in, embeddings out.

    A SigLIP has `pooling` in place of `class_embedding`, `pre_norm` and `projection`.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        vision = config.vision
        width = vision.hidden_size
        scale = width**-0.5
        siglip = config.is_siglip
        self.config = vision
        self.dtype = config.dtype
        # A convolution whose stride is its kernel is a product over patches.
        self.patch_embedding = linear(
            3 * vision.patch_size**2, width, 0.02, config, rngs, use_bias=siglip
        )
        if not siglip:
            self.class_embedding = embedding((width,), scale, rngs)
        self.position_embedding = embedding((vision.grid**2 + (not siglip), width), scale, rngs)
        if not siglip:
            self.pre_norm = layer_norm(width, config, rngs)
        self.encoder = Encoder(vision, config, causal=False, rngs=rngs)
        self.post_norm = layer_norm(width, config, rngs)
        if siglip:
            self.pooling = AttentionPooling(config, rngs=rngs)
        else:
            self.projection = linear(
                width, config.projection_dim, scale, config, rngs, use_bias=False
            )

    def embed(self, images: jax.Array) -> jax.Array:
        """Return what enters the first block, [N, tokens, width], for [N, H, W, 3].

        The tokens are the patches, row by row; before them the class token, if there is one.
        """
        side, patch = self.config.image_size, self.config.patch_size
        batch = images.shape[0]
        if images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images are {images.shape}; this CLIP takes [N, {side}, {side}, 3]: "
                "resize and crop them first"
            )
        grid = self.config.grid
        images = images[:, : grid * patch, : grid * patch]
        patches = images.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch_embedding(patches.reshape(batch, grid * grid, patch * patch * 3))
        positions = self.position_embedding[...].astype(self.dtype)[None]
        if self.config.pooling == "attention":
            return x + positions
        first = jnp.broadcast_to(self.class_embedding[...], (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
        return self.pre_norm(x + positions)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Float [N, H, W, 3], normalised -> float32 [N, projection_dim]."""
        return self.project(self.pooled(images))

    def pooled(self, images: jax.Array) -> jax.Array:
        """Float [N, H, W, 3], normalised -> float32 [N, width]: what `project` takes."""
        x = self.embed(images)
        if self.config.pooling == "attention":
            return self._pool(self.encoder(x))
        return self.post_norm(self.encoder.first_token(x)).astype(jnp.float32)

    def project(self, pooled: jax.Array) -> jax.Array:
        """Float32 [N, width] -> float32 [N, projection_dim]; a SigLIP's are the same."""
        if self.config.pooling == "attention":
            return pooled
        return self.projection(pooled).astype(jnp.float32)

    def with_tokens(self, images: jax.Array, num_layers: int) -> tuple[jax.Array, jax.Array]:
        """As `CLIP.image_features_with_tokens`, with pooled features."""
        x = self.embed(images)
        kept = []
        for layer in range(self.config.num_layers):
            x, query, key = self.encoder.block(layer).with_heads(x)
            if layer >= self.config.num_layers - num_layers:
                kept.append(jnp.stack([x, query, key], axis=1))
        return self._pool(x), jnp.stack(kept, axis=1)

    def _pool(self, x: jax.Array) -> jax.Array:
        if self.config.pooling == "attention":
            return self.pooling(self.post_norm(x)).astype(jnp.float32)
        return self.post_norm(x[:, 0]).astype(jnp.float32)


class TextTower(nnx.Module):
    """Tokens in, embeddings out."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        text = config.text
        width = text.hidden_size
        self.config = text
        self.dtype = config.dtype
        self.token_embedding = embedding((text.vocab_size, width), 0.02, rngs)
        self.position_embedding = embedding((text.max_length, width), 0.01, rngs)
        self.encoder = Encoder(text, config, causal=not config.is_siglip, rngs=rngs)
        self.final_norm = layer_norm(width, config, rngs)
        self.projection = linear(
            width, config.projection_dim, width**-0.5, config, rngs, use_bias=config.is_siglip
        )

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Return what enters the first block: [N, L, width] for [N, L]."""
        length = tokens.shape[1]
        if length > self.config.max_length:
            raise ValueError(
                f"texts of {length} tokens; this CLIP takes at most {self.config.max_length}"
            )
        x = self.token_embedding[...][tokens] + self.position_embedding[...][None, :length]
        return x.astype(self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [N, L] -> float32 [N, projection_dim]."""
        x = self.final_norm(self.encoder(self.embed(tokens)))
        if self.config.pooling == "last_token":
            return self.projection(x[:, -1]).astype(jnp.float32)
        if self.config.pooling == "highest_id":
            end = jnp.argmax(tokens, axis=-1)
        else:
            end = jnp.argmax(tokens == self.config.eos_token_id, axis=-1)
        # What follows the end, padding included, cannot reach it: attention is causal.
        pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.projection(pooled).astype(jnp.float32)


class CLIP(nnx.Module):
    """Both towers; drop `vision` or `text` when only the other is needed."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = VisionTower(config, rngs=rngs)
        self.text = TextTower(config, rngs=rngs)
        # Where the papers start training.
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(10 if config.is_siglip else 1 / 0.07)))
        if config.is_siglip:
            self.logit_bias = nnx.Param(jnp.float32(-10))

    def encode_image(self, images: jax.Array) -> jax.Array:
        """Embed images: float32 [N, image_size, image_size, 3] from `normalize_images`.

        Returns float32 [N, projection_dim], not L2-normalised.

        Raises:
          ValueError: if the images have another size.
        """
        return self.vision(images)

    def image_features(self, images: jax.Array) -> jax.Array:
        """Return what heads read of images, float32 [N, num_features]: `config.features` of them.

        Args:
          images: as `encode_image`.
        """
        return self._features(self.vision.pooled(images))

    def image_features_with_tokens(
        self, images: jax.Array, num_layers: int
    ) -> tuple[jax.Array, jax.Array]:
        """Return `image_features`, and what the last layers make of the tokens.

        Args:
          images: as `encode_image`.
          num_layers: Of the image tower, counted from its end.

        Returns:
          The features, and [N, num_layers, 3, tokens, width]: of each layer the output, query and
          key. The tokens are as `VisionTower.embed` orders them.
        """
        pooled, tokens = self.vision.with_tokens(images, num_layers)
        return self._features(pooled), tokens

    def _features(self, pooled: jax.Array) -> jax.Array:
        return pooled if self.config.features == "pooled" else self.vision.project(pooled)

    def embeddings(self, features: jax.Array) -> jax.Array:
        """Return the embeddings float32 [N, projection_dim] of `image_features`."""
        return self.vision.project(features) if self.config.features == "pooled" else features

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """Embed texts: int32 [N, L] from `moclip_jax.pretrained.tokenize`, L <= max_length.

        A SigLIP was trained on texts padded to `max_length`, as that function pads them.

        Returns float32 [N, projection_dim], not L2-normalised.

        Raises:
          ValueError: if the texts are too long.
        """
        return self.text(tokens)

    def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """Return the logits float32 [N images, M texts]: `logits_per_image`.

        They are the scaled cosines. A SigLIP adds its bias, and their sigmoid is the probability
        that a text describes an image.
        """
        image = _l2_normalize(self.encode_image(images))
        text = _l2_normalize(self.encode_text(tokens))
        logits = jnp.exp(self.logit_scale[...]) * (image @ text.T)
        return logits + self.logit_bias[...] if self.config.is_siglip else logits


def _l2_normalize(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
