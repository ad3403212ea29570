"""ImageNet classifiers as frozen image towers: features of images, and no texts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.image_preprocessing import ImagePreprocessing

# The value of model_type in the metadata of exports, as Hugging Face's are in those of CLIPs.
KIND = "efficientnet"


@dataclasses.dataclass(frozen=True)
class ImageNetConfig:
    """What an ImageNet tower is made of.

    Attributes:
      variant: name of an `EfficientNetConfig`.
      image_size: side of the square images, in pixels.
      preprocessing: from an RGB image to the input.
      dtype: of the computation; the parameters are float32.
    """

    variant: str
    image_size: int
    preprocessing: ImagePreprocessing
    dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def backbone(self) -> EfficientNetConfig:
        """The network."""
        return EfficientNetConfig.named(self.variant, dtype=self.dtype)

    @property
    def num_features(self) -> int:
        """Length of the feature of an image, that of `ImageNetTower.image_features`."""
        return self.backbone.num_features

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], *, dtype: Any = jnp.float32
    ) -> "ImageNetConfig":
        """Read what `to_hf` and `ImagePreprocessing.to_hf` gave."""
        size = config["image_size"]
        return cls(
            config["variant"], size, ImagePreprocessing.from_hf(preprocessor, size), dtype=dtype
        )

    def to_hf(self) -> dict[str, Any]:
        """Return what an export's metadata says of the tower."""
        return {"model_type": KIND, "variant": self.variant, "image_size": self.image_size}


class ImageNetTower(nnx.Module):
    """An EfficientNet without its classifier, in the place of a `CLIP`.

    Attributes:
      config: its `ImageNetConfig`.
      vision: `EfficientNet`.
    """

    def __init__(self, config: ImageNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = EfficientNet(config.backbone, rngs=rngs)
        del self.vision.classifier

    def image_features(self, images: jax.Array) -> jax.Array:
        """Return pooled features: float32 [N, image_size, image_size, 3] -> [N, num_features].

        Args:
          images: from `normalize_images`.

        Raises:
          ValueError: if the images have another size.
        """
        side = self.config.image_size
        if images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images are {images.shape}; this tower takes [N, {side}, {side}, 3]: "
                "resize and crop them first"
            )
        return self.vision.features(images)
