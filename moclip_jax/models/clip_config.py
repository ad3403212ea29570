"""The sizes of a CLIP, by OpenAI's names and as Hugging Face's `config.json` has them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING, ImagePreprocessing

ACTIVATIONS = ("quick_gelu", "gelu")

# The values of model_type in the config.json of Hugging Face's folders that are read.
HF_KINDS = ("clip",)

# Hugging Face wrote this id into the configurations of OpenAI's models although their end token is
# another one. It stands for "pool at the highest id", which is where their end token is.
LEGACY_EOS_TOKEN_ID = 2


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the image tower.

    Attributes:
      image_size: side of the square images, in pixels.
      patch_size: side of a patch, in pixels; divides `image_size`.
      hidden_size: width of the transformer.
      num_layers: number of transformer blocks.
      num_heads: attention heads; divides `hidden_size`.
      mlp_size: width of the hidden layer of each block's MLP.
    """

    image_size: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int

    def __post_init__(self):
        _check_divides("vision num_heads", self.num_heads, "hidden_size", self.hidden_size)
        _check_divides("patch_size", self.patch_size, "image_size", self.image_size)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of the text tower.

    Attributes:
      vocab_size: number of token ids.
      max_length: longest text, in tokens, with its start and end.
      hidden_size: width of the transformer.
      num_layers: number of transformer blocks.
      num_heads: attention heads; divides `hidden_size`.
      mlp_size: width of the hidden layer of each block's MLP.
      eos_token_id: the token whose first place in a text is pooled; `LEGACY_EOS_TOKEN_ID` pools
        at the highest id of the text instead.
    """

    vocab_size: int
    max_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    eos_token_id: int

    def __post_init__(self):
        _check_divides("text num_heads", self.num_heads, "hidden_size", self.hidden_size)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and what they share.

    Attributes:
      vision: the image tower.
      text: the text tower.
      projection_dim: length of the embeddings.
      activation: of the MLPs, "quick_gelu" (OpenAI's weights) or "gelu".
      layer_norm_eps: of every LayerNorm.
      dtype: of the computation; parameters are always float32.
      preprocessing: how images are resized and normalised.
    """

    vision: CLIPVisionConfig
    text: CLIPTextConfig
    projection_dim: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5  # torch's default, not Flax's 1e-6
    dtype: Any = jnp.float32
    preprocessing: ImagePreprocessing = DEFAULT_PREPROCESSING

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"CLIP's activation is {self.activation!r}; known are: {known}")

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.vision.image_size

    @property
    def num_features(self) -> int:
        """Length of the feature of an image, that of `CLIP.encode_image`."""
        return self.projection_dim

    @classmethod
    def named(cls, name: str, **overrides: Any) -> "CLIPConfig":
        """Return OpenAI's "vit_b32", "vit_b16" or "vit_l14"; overrides replace its fields."""
        if name not in _NAMED:
            raise ValueError(f"no CLIP is named {name!r}; choose one of {', '.join(_NAMED)}")
        return dataclasses.replace(_NAMED[name], **overrides)

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        preprocessor: Mapping[str, Any] | None = None,
        *,
        dtype: Any = jnp.float32,
    ) -> "CLIPConfig":
        """Read the content of a Hugging Face `config.json` and `preprocessor_config.json`.

        Args:
          config: of config.json. Fields that it leaves out have the defaults of transformers'
            CLIPConfig.
          preprocessor: of preprocessor_config.json; None where there is no such file.
          dtype: of the computation.

        Raises:
          ValueError: if it is not a CLIP, or a CLIP of a kind that is not known here.
        """
        if config.get("model_type") not in HF_KINDS:
            raise ValueError(
                f"config.json is of model_type {config.get('model_type')!r}; known are "
                f"{', '.join(HF_KINDS)}"
            )
        vision, text = (
            # The older *_config_dict, where there is one, rules alone.
            defaults | dict(config.get(f"{part}_config_dict") or config.get(f"{part}_config") or {})
            for part, defaults in (("vision", _HF_VISION_DEFAULTS), ("text", _HF_TEXT_DEFAULTS))
        )
        for field in ("hidden_act", "layer_norm_eps"):
            if vision[field] != text[field]:
                raise ValueError(
                    f"config.json: {field} of the towers differs ({vision[field]!r} and "
                    f"{text[field]!r}); only CLIPs with one for both are known here"
                )
        for field in ("image_size", "patch_size"):
            if not isinstance(vision[field], int):
                raise ValueError(
                    f"config.json: vision {field} is {vision[field]!r}; needed is one number"
                )
        if vision["num_channels"] != 3:
            raise ValueError(f"config.json: num_channels is {vision['num_channels']}; needed is 3")
        return cls(
            vision=CLIPVisionConfig(**{ours: vision[hf] for ours, hf in _HF_VISION_FIELDS.items()}),
            text=CLIPTextConfig(**{ours: text[hf] for ours, hf in _HF_TEXT_FIELDS.items()}),
            projection_dim=config.get("projection_dim", 512),
            activation=vision["hidden_act"],
            layer_norm_eps=vision["layer_norm_eps"],
            dtype=dtype,
            preprocessing=ImagePreprocessing.from_hf(preprocessor, vision["image_size"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the content of a `config.json` that transformers' CLIPModel reads."""
        shared = {
            "hidden_act": self.activation,
            "layer_norm_eps": self.layer_norm_eps,
            "projection_dim": self.projection_dim,
        }
        vision = {hf: getattr(self.vision, ours) for ours, hf in _HF_VISION_FIELDS.items()}
        text = {hf: getattr(self.text, ours) for ours, hf in _HF_TEXT_FIELDS.items()}
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "vision_config": {"model_type": "clip_vision_model", **vision, **shared},
            "text_config": {"model_type": "clip_text_model", **text, **shared},
        }


def _check_divides(part: str, divisor: int, whole: str, number: int) -> None:
    if number % divisor:
        raise ValueError(f"CLIP's {part} {divisor} does not divide {whole} {number}")


_HF_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
}
_HF_VISION_FIELDS = {"image_size": "image_size", "patch_size": "patch_size", **_HF_FIELDS}
_HF_TEXT_FIELDS = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    **_HF_FIELDS,
    "eos_token_id": "eos_token_id",
}
# What transformers' CLIPVisionConfig and CLIPTextConfig assume where config.json is silent.
_HF_VISION_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_HF_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

_TEXT_B = CLIPTextConfig(49408, 77, 512, 12, 8, 2048, 49407)
_NAMED = {
    "vit_b32": CLIPConfig(CLIPVisionConfig(224, 32, 768, 12, 12, 3072), _TEXT_B, 512),
    "vit_b16": CLIPConfig(CLIPVisionConfig(224, 16, 768, 12, 12, 3072), _TEXT_B, 512),
    "vit_l14": CLIPConfig(
        CLIPVisionConfig(224, 14, 1024, 24, 16, 4096),
        CLIPTextConfig(49408, 77, 768, 12, 12, 3072, 49407),
        768,
    ),
}
