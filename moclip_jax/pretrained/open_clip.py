"""CLIPs in open_clip's layout: `open_clip_config.json` and its names of the weights."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import (
    LEGACY_EOS_TOKEN_ID,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from moclip_jax.models.image_preprocessing import CLIP_MEAN, CLIP_STD, ImagePreprocessing
from moclip_jax.pretrained.clip_weights import (
    WeightRule,
    build_clip,
    clip_weights,
    linear_rules,
    norm_rules,
)

OPEN_CLIP_CONFIG = "open_clip_config.json"

# What open_clip assumes where the file is silent.
_MODEL_DEFAULTS: dict[str, Any] = {"quick_gelu": False}
_VISION_DEFAULTS: dict[str, Any] = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
    "image_size": 224, "pool_type": "tok", "pos_embed_type": "learnable",
}  # fmt: skip
_TEXT_DEFAULTS: dict[str, Any] = {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
    "mlp_ratio": 4.0, "pool_type": "argmax", "eos_id": 2, "proj_type": "linear",
}  # fmt: skip
_PREPROCESS_DEFAULTS: dict[str, Any] = {
    "mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip
# Of training, or said by other fields or files.
_IGNORED = (
    "patch_dropout", "output_tokens", "hf_tokenizer_name", "pad_id", "init_logit_scale", "size",
    "mode", "fill_color",
)  # fmt: skip
_POOLINGS = {"argmax": "highest_id", "eos": "end_token"}


def open_clip_config(content: Mapping[str, Any], *, dtype: Any = jnp.float32) -> CLIPConfig:
    """Read the content of an `open_clip_config.json`.

    Args:
      content: with `model_cfg` and `preprocess_cfg`. Fields that it leaves out have open_clip's
        defaults.
      dtype: of the computation.

    Raises:
      ValueError: if it is not a plain ViT with a plain text tower; the message names the field.
    """
    model = dict(content["model_cfg"])
    vision = _read("vision_cfg", model.pop("vision_cfg"), _VISION_DEFAULTS)
    text = _read("text_cfg", model.pop("text_cfg"), _TEXT_DEFAULTS)
    projection_dim = model.pop("embed_dim")
    model = _read("model_cfg", model, _MODEL_DEFAULTS)
    images = _read("preprocess_cfg", content.get("preprocess_cfg", {}), _PREPROCESS_DEFAULTS)
    for part, field, value, known in (
        ("vision_cfg", "pool_type", vision["pool_type"], ("tok",)),
        ("vision_cfg", "pos_embed_type", vision["pos_embed_type"], ("learnable",)),
        ("text_cfg", "pool_type", text["pool_type"], _POOLINGS),
        ("text_cfg", "proj_type", text["proj_type"], ("linear",)),
        ("preprocess_cfg", "resize_mode", images["resize_mode"], ("shortest", "squash")),
        ("preprocess_cfg", "interpolation", images["interpolation"], ("bicubic", "bilinear")),
    ):
        if value not in known:
            raise _error(part, field, value, " or ".join(known))
    for field in ("image_size", "patch_size", "layers"):
        if not isinstance(vision[field], int):
            raise _error("vision_cfg", field, vision[field], "one number")
    pooling = _POOLINGS[text["pool_type"]]
    return CLIPConfig(
        vision=CLIPVisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_size=vision["width"],
            num_layers=vision["layers"],
            num_heads=vision["width"] // vision["head_width"],
            mlp_size=int(vision["width"] * vision["mlp_ratio"]),
        ),
        text=CLIPTextConfig(
            vocab_size=text["vocab_size"],
            max_length=text["context_length"],
            hidden_size=text["width"],
            num_layers=text["layers"],
            num_heads=text["heads"],
            mlp_size=int(text["width"] * text["mlp_ratio"]),
            eos_token_id=text["eos_id"] if pooling == "end_token" else LEGACY_EOS_TOKEN_ID,
            pooling=pooling,
        ),
        projection_dim=projection_dim,
        activation="quick_gelu" if model["quick_gelu"] else "gelu",
        dtype=dtype,
        preprocessing=ImagePreprocessing(
            resample=images["interpolation"],
            mean=tuple(images["mean"]),
            std=tuple(images["std"]),
            square=images["resize_mode"] == "squash",
        ),
    )


def clip_from_open_clip(config: CLIPConfig, weights: Mapping[str, Any]) -> CLIP:
    """Build a CLIP with float32 parameters from arrays by open_clip's names.

    Raises:
      ValueError: naming every weight that is missing, unknown or of another shape.
    """
    return build_clip(config, _rules(config), weights)


def clip_to_open_clip(model: CLIP) -> dict[str, np.ndarray]:
    """Return the float32 weights by the names of open_clip's `state_dict`."""
    return clip_weights(model, _rules(model.config))


def _read(part: str, fields: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are read, and reject others that would change the network."""
    for field, value in fields.items():
        if field not in defaults and field not in _IGNORED and value not in (None, False, {}):
            raise _error(part, field, value, "a plain ViT, without this field")
    return defaults | {field: fields[field] for field in defaults if field in fields}


def _error(part: str, field: str, value: Any, needed: str) -> ValueError:
    return ValueError(f"{OPEN_CLIP_CONFIG}: {part}.{field} is {value!r}; needed is {needed}")


def _rules(config: CLIPConfig) -> Iterator[WeightRule]:
    yield WeightRule(("logit_scale",), ("logit_scale",))

    yield WeightRule(
        ("vision", "patch_embedding", "kernel"),
        ("visual.conv1.weight",),
        patch_size=config.vision.patch_size,
    )
    yield WeightRule(("vision", "class_embedding"), ("visual.class_embedding",))
    yield WeightRule(("vision", "position_embedding"), ("visual.positional_embedding",))
    yield from norm_rules(("vision", "pre_norm"), "visual.ln_pre")
    yield from _encoder_rules("vision", "visual.transformer", config.vision.num_layers)
    yield from norm_rules(("vision", "post_norm"), "visual.ln_post")
    yield WeightRule(("vision", "projection", "kernel"), ("visual.proj",))

    yield WeightRule(("text", "token_embedding"), ("token_embedding.weight",))
    yield WeightRule(("text", "position_embedding"), ("positional_embedding",))
    yield from _encoder_rules("text", "transformer", config.text.num_layers)
    yield from norm_rules(("text", "final_norm"), "ln_final")
    yield WeightRule(("text", "projection", "kernel"), ("text_projection",))


def _encoder_rules(tower: str, theirs: str, num_layers: int) -> Iterator[WeightRule]:
    path = (tower, "encoder", "layers")
    layer = f"{theirs}.resblocks.{{}}"
    yield from norm_rules((*path, "norm1"), f"{layer}.ln_1", num_layers)
    yield from norm_rules((*path, "norm2"), f"{layer}.ln_2", num_layers)
    # Query, key and value are one weight there as here.
    joined = f"{layer}.attn.in_proj"
    yield WeightRule((*path, "qkv", "kernel"), (f"{joined}_weight",), num_layers, transposed=True)
    yield WeightRule((*path, "qkv", "bias"), (f"{joined}_bias",), num_layers)
    for ours, name in (("out", "attn.out_proj"), ("fc1", "mlp.c_fc"), ("fc2", "mlp.c_proj")):
        yield from linear_rules((*path, ours), f"{layer}.{name}", num_layers=num_layers)
