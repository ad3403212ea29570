"""The names of transformers' CLIPModel, MetaClip2Model and SiglipModel for a CLIP's parameters."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.pretrained.clip_weights import (
    WeightRule,
    build_clip,
    clip_weights,
    linear_rules,
    norm_rules,
)

# Buffers that older checkpoints carry; they hold 0, 1, 2, ... and no weight.
_IGNORED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
# Query, key and value of SigLIP's pooling: one weight there, two here, as the query is one token.
_JOINED = ("vision_model.head.attention.in_proj_weight", "vision_model.head.attention.in_proj_bias")


def clip_from_hf(config: CLIPConfig, weights: Mapping[str, Any]) -> CLIP:
    """Build a CLIP with float32 parameters from arrays by transformers' names.

    Raises:
      ValueError: naming every weight that is missing, unknown or of another shape.
    """
    weights = dict(weights)
    width = config.vision.hidden_size
    for name in _JOINED:
        if name in weights and weights[name].shape[0] == 3 * width:
            joined = weights.pop(name)
            weights[f"{name}[query]"], weights[f"{name}[key, value]"] = np.split(joined, [width])
    return build_clip(config, _rules(config), weights, _IGNORED)


def clip_to_hf(model: CLIP) -> dict[str, np.ndarray]:
    """Return the float32 weights by the names of transformers' `state_dict`."""
    weights = clip_weights(model, _rules(model.config))
    if model.config.is_siglip:
        for name in _JOINED:
            parts = [weights.pop(f"{name}[query]"), weights.pop(f"{name}[key, value]")]
            weights[name] = np.concatenate(parts)
    return weights


def _rules(config: CLIPConfig) -> Iterator[WeightRule]:
    siglip = config.is_siglip
    yield WeightRule(("logit_scale",), ("logit_scale",), ones=int(siglip))
    if siglip:
        yield WeightRule(("logit_bias",), ("logit_bias",), ones=1)

    vision = "vision_model"
    patches = f"{vision}.embeddings.patch_embedding"
    yield WeightRule(
        ("vision", "patch_embedding", "kernel"),
        (f"{patches}.weight",),
        patch_size=config.vision.patch_size,
    )
    yield WeightRule(
        ("vision", "position_embedding"), (f"{vision}.embeddings.position_embedding.weight",)
    )
    yield from _encoder_rules("vision", vision, config.vision.num_layers)
    yield from norm_rules(("vision", "post_norm"), f"{vision}.post_layernorm")
    if siglip:
        yield WeightRule(("vision", "patch_embedding", "bias"), (f"{patches}.bias",))
        yield from _pooling_rules(("vision", "pooling"), f"{vision}.head")
    else:
        yield WeightRule(("vision", "class_embedding"), (f"{vision}.embeddings.class_embedding",))
        yield from norm_rules(("vision", "pre_norm"), f"{vision}.pre_layrnorm")  # sic
        yield from linear_rules(("vision", "projection"), "visual_projection", bias=False)

    text = "text_model"
    yield WeightRule(("text", "token_embedding"), (f"{text}.embeddings.token_embedding.weight",))
    yield WeightRule(
        ("text", "position_embedding"), (f"{text}.embeddings.position_embedding.weight",)
    )
    yield from _encoder_rules("text", text, config.text.num_layers)
    yield from norm_rules(("text", "final_norm"), f"{text}.final_layer_norm")
    projection = f"{text}.head" if siglip else "text_projection"
    yield from linear_rules(("text", "projection"), projection, bias=siglip)


def _encoder_rules(tower: str, theirs: str, num_layers: int) -> Iterator[WeightRule]:
    path = (tower, "encoder", "layers")
    layer = f"{theirs}.encoder.layers.{{}}"
    for ours in ("norm1", "norm2"):
        yield from norm_rules((*path, ours), f"{layer}.layer_{ours}", num_layers)
    products = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.out_proj",),
        "fc1": ("mlp.fc1",),
        "fc2": ("mlp.fc2",),
    }
    for ours, parts in products.items():
        names = (f"{layer}.{part}" for part in parts)
        yield from linear_rules((*path, ours), *names, num_layers=num_layers)


def _pooling_rules(path: tuple[str, ...], theirs: str) -> Iterator[WeightRule]:
    yield WeightRule((*path, "probe"), (f"{theirs}.probe",), ones=2)
    for ours, part in (("query", "query"), ("key_value", "key, value")):
        kernel, bias = (f"{name}[{part}]" for name in _JOINED)
        yield WeightRule((*path, ours, "kernel"), (kernel,), transposed=True)
        yield WeightRule((*path, ours, "bias"), (bias,))
    yield from linear_rules((*path, "out"), f"{theirs}.attention.out_proj")
    yield from norm_rules((*path, "norm"), f"{theirs}.layernorm")
    for ours in ("fc1", "fc2"):
        yield from linear_rules((*path, ours), f"{theirs}.mlp.{ours}")
