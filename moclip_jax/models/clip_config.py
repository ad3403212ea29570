"""The architecture of CLIPs and SigLIPs, by name and as Hugging Face's `config.json` has it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING, ImagePreprocessing

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
VISION_POOLINGS = ("class_token", "attention")
TEXT_POOLINGS = ("end_token", "highest_id", "last_token")
IMAGE_FEATURES = ("projected", "pooled")

# Hugging Face wrote this id into the configurations of OpenAI's models although their end token is
# another one. For model_type "clip" it stands for "pool at the highest id", which is where their
# end token is; for "metaclip_2" it is the end token.
LEGACY_EOS_TOKEN_ID = 2


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the image tower.

    Attributes:
      image_size: side of the square images, in pixels.
      patch_size: side of a patch, in pixels; divides `image_size`, except that SigLIPs leave out
        the rest at the right and at the bottom.
      hidden_size: width of the transformer.
      num_layers: number of transformer blocks.
      num_heads: attention heads; divides `hidden_size`.
      mlp_size: width of the hidden layer of each block's MLP.
      pooling: "class_token", CLIP's: a learned token before the patches, a LayerNorm before the
        blocks, and a projection of that token; or "attention", SigLIP's: a bias in the patch
        embedding, and a learned query that attends to all patches, without a projection.
    """

    image_size: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    pooling: str = "class_token"

    def __post_init__(self):
        _check_known("vision pooling", self.pooling, VISION_POOLINGS)
        _check_divides("vision num_heads", self.num_heads, "hidden_size", self.hidden_size)
        if self.pooling == "class_token":
            _check_divides("patch_size", self.patch_size, "image_size", self.image_size)

    @property
    def grid(self) -> int:
        """Patches along a side of an image."""
        return self.image_size // self.patch_size


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
      eos_token_id: the token that ends a text.
      pooling: which token of a text is projected: the first "end_token"; that of the "highest_id";
        or the "last_token", padding or not, SigLIP's, whose attention is not causal and whose
        projection has a bias.
    """

    vocab_size: int
    max_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    eos_token_id: int
    pooling: str = "end_token"

    def __post_init__(self):
        _check_known("text pooling", self.pooling, TEXT_POOLINGS)
        _check_divides("text num_heads", self.num_heads, "hidden_size", self.hidden_size)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and what they share.

    Attributes:
      vision: the image tower.
      text: the text tower; SigLIP's if the image tower is.
      projection_dim: length of the embeddings; a SigLIP's is the width of its image tower.
      activation: of the MLPs, "quick_gelu" (OpenAI's weights), "gelu", or its approximation by a
        tanh, "gelu_pytorch_tanh" (SigLIP's).
      layer_norm_eps: of every LayerNorm.
      dtype: of the computation; parameters are always float32.
      preprocessing: how images are resized and normalised.
      features: what heads read of an image: its embedding ("projected"), or what the projection
        maps to it ("pooled"), as the linear probes of Radford et al. do. A SigLIP projects nothing.
    """

    vision: CLIPVisionConfig
    text: CLIPTextConfig
    projection_dim: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5  # torch's default, not Flax's 1e-6
    dtype: Any = jnp.float32
    preprocessing: ImagePreprocessing = DEFAULT_PREPROCESSING
    features: str = "projected"

    def __post_init__(self):
        _check_known("activation", self.activation, ACTIVATIONS)
        _check_known("features", self.features, IMAGE_FEATURES)
        if self.is_siglip and self.features == "pooled":
            raise ValueError(
                "CLIP features 'pooled': a SigLIP has no projection; choose 'projected'"
            )
        if self.is_siglip != (self.text.pooling == "last_token"):
            raise ValueError(
                f"CLIP's vision pooling {self.vision.pooling!r} and text pooling "
                f"{self.text.pooling!r} do not go together: 'attention' goes with 'last_token'"
            )
        if self.is_siglip and self.vision.hidden_size != self.projection_dim:
            raise ValueError(
                f"SigLIP's vision hidden_size {self.vision.hidden_size} is not its text's "
                f"projection_size {self.projection_dim}"
            )

    @property
    def is_siglip(self) -> bool:
        """Whether logits have a bias, and their sigmoid is the probability of a match."""
        return self.vision.pooling == "attention"

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.vision.image_size

    @property
    def num_features(self) -> int:
        """Length of the feature of an image, that of `CLIP.image_features`."""
        return self.vision.hidden_size if self.features == "pooled" else self.projection_dim

    @classmethod
    def named(cls, name: str, **overrides: Any) -> "CLIPConfig":
        """Return "vit_b32", "vit_b16" or "vit_l14", OpenAI's, or Google's "siglip_b16".

        Overrides replace its fields.
        """
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
          config: of config.json. Fields that it leaves out have transformers' defaults.
          preprocessor: of preprocessor_config.json; None where there is no such file.
          dtype: of the computation.

        Raises:
          ValueError: if it is of a kind that is not known here.
        """
        kind = config.get("model_type")
        if kind not in HF_KINDS:
            raise ValueError(
                f"config.json is of model_type {kind!r}; known are {', '.join(HF_KINDS)}, and "
                "folders with open_clip_config.json"
            )
        siglip = kind == "siglip"
        vision, text = (
            # The older *_config_dict, where there is one, rules alone.
            defaults | dict(config.get(f"{part}_config_dict") or config.get(f"{part}_config") or {})
            for part, defaults in zip(("vision", "text"), HF_KINDS[kind], strict=True)
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
        if siglip and not vision["vision_use_head"]:
            raise ValueError("config.json: vision_use_head is false; needed is true")
        highest = kind == "clip" and text["eos_token_id"] == LEGACY_EOS_TOKEN_ID
        return cls(
            vision=CLIPVisionConfig(
                **{ours: vision[hf] for ours, hf in _HF_VISION_FIELDS.items()},
                pooling="attention" if siglip else "class_token",
            ),
            text=CLIPTextConfig(
                **{ours: text[hf] for ours, hf in _HF_TEXT_FIELDS.items()},
                pooling="last_token" if siglip else "highest_id" if highest else "end_token",
            ),
            projection_dim=(
                text["projection_size"] or text["hidden_size"]
                if siglip
                else config.get("projection_dim", 512)
            ),
            activation=vision["hidden_act"],
            layer_norm_eps=vision["layer_norm_eps"],
            dtype=dtype,
            preprocessing=ImagePreprocessing.from_hf(
                preprocessor, vision["image_size"], siglip=siglip
            ),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the content of a `config.json` that transformers reads."""
        vision = {hf: getattr(self.vision, ours) for ours, hf in _HF_VISION_FIELDS.items()}
        text = {hf: getattr(self.text, ours) for ours, hf in _HF_TEXT_FIELDS.items()}
        shared = {"hidden_act": self.activation, "layer_norm_eps": self.layer_norm_eps}
        if self.is_siglip:
            name, kind = "SiglipModel", "siglip"
            text["projection_size"] = self.projection_dim
        else:
            shared["projection_dim"] = self.projection_dim
            end = self.text.pooling == "end_token" and self.text.eos_token_id == LEGACY_EOS_TOKEN_ID
            name, kind = ("MetaClip2Model", "metaclip_2") if end else ("CLIPModel", "clip")
        return {
            "architectures": [name],
            "model_type": kind,
            **({} if self.is_siglip else {"projection_dim": self.projection_dim}),
            "vision_config": {"model_type": f"{kind}_vision_model", **vision, **shared},
            "text_config": {"model_type": f"{kind}_text_model", **text, **shared},
        }


def _check_divides(part: str, divisor: int, whole: str, number: int) -> None:
    if number % divisor:
        raise ValueError(f"CLIP's {part} {divisor} does not divide {whole} {number}")


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"CLIP's {field} is {value!r}; known are: {', '.join(known)}")


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
# What transformers' CLIPVisionConfig and CLIPTextConfig assume where config.json is silent, and
# MetaClip2's.
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
# What its SiglipVisionConfig and SiglipTextConfig assume.
_SIGLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# By the model_type of config.json, the defaults of the image tower and of the text tower.
HF_KINDS: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": (_HF_VISION_DEFAULTS, _HF_TEXT_DEFAULTS),
    "metaclip_2": (_HF_VISION_DEFAULTS, _HF_TEXT_DEFAULTS),
    "siglip": (
        _SIGLIP_DEFAULTS
        | {"image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True},
        _SIGLIP_DEFAULTS
        | {
            "vocab_size": 32000,
            "max_position_embeddings": 64,
            "eos_token_id": 49407,
            "projection_size": None,
        },
    ),
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
    "siglip_b16": CLIPConfig.from_hf({"model_type": "siglip"}),
}
