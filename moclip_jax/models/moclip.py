"""MoCLIP: a motion network and a frozen CLIP whose features a small head fuses.

Architecture: "MoCLIP-Lite: Efficient Video Recognition by Fusing CLIP with Motion Vectors" (arXiv
2509.17084).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.clip import CLIP, normalize_images
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fisher_vectors import FisherConfig, FisherNetwork
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.heads import Head, apply_head, build_head
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.models.text_head import TextHead
from moclip_jax.models.towers import Tower, TowerConfig, build_tower

MotionModel = MotionNetwork | FisherNetwork


@dataclass(frozen=True)
class MoCLIPConfig:
    """Architecture of the three parts.

    Attributes:
      motion: the motion network.
      clip: the frozen image network: CLIP with both towers, or one without texts.
      fusion: the head; its feature lengths and classes must be those of the two networks.
    """

    motion: MotionNetworkConfig | FisherConfig
    clip: TowerConfig
    fusion: FusionConfig

    def __post_init__(self):
        for field, needed in (
            ("motion_features", self.motion.num_features),
            ("appearance_features", self.clip.num_features),
            ("num_classes", self.motion.num_classes),
        ):
            if getattr(self.fusion, field) != needed:
                raise ValueError(
                    f"MoCLIPConfig.fusion.{field} must be {needed}, as the networks give, got "
                    f"{getattr(self.fusion, field)}"
                )

    @classmethod
    def published(cls, num_classes: int = 101) -> "MoCLIPConfig":
        """Return the published model: EfficientNet-B0, CLIP ViT-B/32, a head of width 512."""
        backbone = EfficientNetConfig.named("b0", in_channels=2, num_classes=num_classes)
        return cls(
            MotionNetworkConfig(backbone),
            CLIPConfig.named("vit_b32"),
            FusionConfig(num_classes=num_classes),
        )


class MoCLIP(nnx.Module):
    """Classifies a video from its motion fields and a few RGB frames.

    Attributes:
      config: its `MoCLIPConfig`.
      motion: `MotionNetwork` or `FisherNetwork`.
      clip: a `Tower`; its text side is not used here and may be deleted.
      head: `FusionHead`, or another of `moclip_jax.models.heads`.
    """

    def __init__(self, config: MoCLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.motion = motion_network(config.motion, rngs=rngs)
        self.clip = build_tower(config.clip, rngs=rngs)
        self.head = build_head(config.fusion, rngs=rngs)

    def motion_features(self, fields: jax.Array) -> jax.Array:
        """Return `motion_features` of the motion network."""
        return motion_features(self.motion, fields)

    def appearance_features(self, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Return `appearance_features` of CLIP, with the tokens that the head sees."""
        return appearance_features(self.clip, images, self.head.config.token_layers)

    def label_features(self, motion: jax.Array, appearance: jax.Array) -> jax.Array:
        """Return what labels in words are compared with, float32 [B, D].

        It is CLIP's embedding, of an ImageNet tower its features; with a head that has learned what
        motion adds to the embedding, the sum.

        Args:
          motion: as `fused_logits` takes it; so is `appearance`.
        """
        if isinstance(self.head, TextHead):
            return self.head.embed(motion.mean(axis=1), appearance)
        mean = appearance.mean(axis=1)
        return self.clip.embeddings(mean) if isinstance(self.clip, CLIP) else mean

    def __call__(self, motion: jax.Array, images: jax.Array) -> jax.Array:
        """Return the logits, float32 [B, num_classes].

        Args:
          motion: uint8 [B, views, S, H, W, 2], motion fields (x, y); 128 is no motion.
          images: uint8 [B, frames, H, W, 3], RGB of the size that CLIP takes.
        """
        return fused_logits(
            self.head, self.motion_features(motion), *self.appearance_features(images)
        )


def motion_network(config: MotionNetworkConfig | FisherConfig, *, rngs: nnx.Rngs) -> MotionModel:
    """Return a motion network of an architecture, with initial weights."""
    if isinstance(config, FisherConfig):
        return FisherNetwork(config, rngs=rngs)
    return MotionNetwork(config, rngs=rngs)


def motion_features(network: MotionModel, fields: jax.Array) -> jax.Array:
    """Return features float32 [B, views, S, D] of uint8 fields [B, views, S, H, W, 2].

    One view at a time, so that memory does not grow with the number of views.
    """
    if fields.shape[1] == 1:
        return network.features(fields[:, 0])[:, None]
    graphdef, state = nnx.split(network)

    def one_view(view: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).features(view)

    return jnp.moveaxis(jax.lax.map(one_view, jnp.moveaxis(fields, 1, 0)), 0, 1)


def appearance_features(
    clip: Tower, images: jax.Array, token_layers: int = 0
) -> tuple[jax.Array, jax.Array | None]:
    """Return features float32 [B, frames, D] of uint8 images [B, frames, H, W, 3], and tokens.

    The tokens are float16, of the image tower's last `token_layers` layers; None if that is 0. See
    `CLIP.image_features_with_tokens`.
    """
    batch, frames = images.shape[:2]
    pixels = normalize_images(images.reshape(-1, *images.shape[2:]), clip.config.preprocessing)
    if not token_layers:
        return clip.image_features(pixels).reshape(batch, frames, -1), None
    assert isinstance(clip, CLIP)  # As `fusion_config` has checked.
    features, tokens = clip.image_features_with_tokens(pixels, token_layers)
    tokens = tokens.astype(jnp.float16).reshape(batch, frames, *tokens.shape[1:])
    return features.reshape(batch, frames, -1), tokens


def fused_logits(
    head: Head, motion: jax.Array, appearance: jax.Array, tokens: jax.Array | None = None
) -> jax.Array:
    """Return a head's logits float32 [B, classes].

    Args:
      head: also one on CLIP alone, which leaves the motion out.
      motion: float32 [B, views, S, D], from `motion_features`; averaged over the views.
      appearance: float32 [B, frames, D], from `appearance_features`.
      tokens: from the same, if the head sees them.
    """
    return apply_head(head, motion.mean(axis=1), appearance, tokens)
