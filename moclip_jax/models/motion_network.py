"""The motion network: a temporal segment network on fields of accumulated motion vectors.

TSN (Wang et al., 2016, arXiv 1608.00859) with a two-channel EfficientNet, as in MoCLIP-Lite (arXiv
2509.17084).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.batch_norm import BatchNorm
from moclip_jax.models.depthwise import map_in_chunks
from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.temporal import TemporalConfig, TemporalResidual

# Fields of a block in inference: memory does not grow with more of them, and products do not gain.
_FIELDS_PER_CHUNK = 32
MOTION_HEADS = ("mean", "temporal")


@dataclass(frozen=True)
class MotionNetworkConfig:
    """What a motion network is made of.

    Attributes:
      backbone: its EfficientNet, with `in_channels=2` and one output per action class.
      head: one of `MOTION_HEADS`: logits averaged over the segments, or these plus a temporal
        residual.
      num_segments: equal parts of the video that `temporal` sees.
    """

    backbone: EfficientNetConfig
    head: str = "mean"
    num_segments: int = 0

    def __post_init__(self):
        if self.head not in MOTION_HEADS:
            raise ValueError(
                f"MotionNetworkConfig.head='{self.head}' is unknown; there are "
                f"{', '.join(MOTION_HEADS)}"
            )
        if self.backbone.in_channels != 2:
            raise ValueError(
                "MotionNetworkConfig.backbone.in_channels must be 2 (x and y of the motion), got "
                f"{self.backbone.in_channels}"
            )

    @property
    def num_classes(self) -> int:
        """Number of action classes."""
        return self.backbone.num_classes

    @property
    def num_features(self) -> int:
        """Length of the feature vector of one segment."""
        return self.backbone.num_features


class MotionNetwork(nnx.Module):
    """Classifies a video from the motion fields of its segments.

    Attributes:
      config: its `MotionNetworkConfig`.
      input_norm: `BatchNorm` of the two channels of the input.
      backbone: `EfficientNet`.
      temporal: `TemporalResidual` on the features of the segments; None without.
    """

    def __init__(self, config: MotionNetworkConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.input_norm = BatchNorm(2)
        self.backbone = EfficientNet(config.backbone, rngs=rngs)
        sizes = config.num_features, config.num_segments, config.num_classes
        self.temporal = (
            TemporalResidual(TemporalConfig(*sizes), rngs=rngs)
            if config.head == "temporal"
            else None
        )

    @property
    def classifier(self) -> nnx.Module:
        """The linear layer from the features of a segment to the classes."""
        return self.backbone.classifier

    def features(self, fields: jax.Array, *, train: bool = False) -> jax.Array:
        """The features of every segment.

        Args:
          fields: [B, S, H, W, 2] (x, y), either uint8 (0..255, 128 is no motion), scaled here to
            x / 255 - 0.5, or floating and already scaled so.
          train: BatchNorm uses the statistics of all B * S fields and updates its running ones in
            place.

        Returns:
          float32 [B, S, num_features].

        Raises:
          ValueError: another shape, or an integer dtype other than uint8.
        """
        if fields.ndim != 5 or fields.shape[4] != 2:
            raise ValueError(f"MotionNetwork needs fields [B, S, H, W, 2], got {fields.shape}")
        if fields.dtype != jnp.uint8 and not jnp.issubdtype(fields.dtype, jnp.floating):
            raise ValueError(f"MotionNetwork needs uint8 or floating fields, got {fields.dtype}")
        batch, segments = fields.shape[:2]
        flat = fields.reshape(batch * segments, *fields.shape[2:])
        if train:
            features = self._features_of_fields(flat, train=True)
        else:
            features = map_in_chunks(self._features_of_fields, flat, _FIELDS_PER_CHUNK)
        return features.reshape(batch, segments, -1)

    def _features_of_fields(self, fields: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, H, W, 2] -> [N, num_features]."""
        if fields.dtype == jnp.uint8:
            fields = fields.astype(jnp.float32) / 255.0 - 0.5
        return self.backbone.features(self.input_norm(fields, train=train), train=train)

    def __call__(self, fields: jax.Array, *, train: bool = False) -> jax.Array:
        """Return logits, float32 [B, num_classes]; the rest as `features`."""
        return self.logits(self.features(fields, train=train))

    def logits(self, features: jax.Array) -> jax.Array:
        """Features of the segments in order, [B, S, num_features] -> float32 [B, num_classes]."""
        logits = jnp.mean(self.backbone.classifier(features), axis=1)
        return logits if self.temporal is None else logits + self.temporal(features)
