"""CLIP's parameters against those of transformers' CLIPModel: one table, read both ways."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig

# Buffers that older checkpoints carry; they hold 0, 1, 2, ... and no weight.
_IGNORED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def clip_from_hf(config: CLIPConfig, weights: Mapping[str, Any]) -> CLIP:
    """Build a CLIP with float32 parameters from arrays by transformers' CLIPModel names.

    Raises:
      ValueError: naming every weight that is missing, unknown or of another shape.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
    leaves = dict(nnx.to_flat_state(state))
    rules: dict[tuple[Any, ...], _Rule] = {rule.path: rule for rule in _rules(config)}
    if rules.keys() != leaves.keys():
        raise AssertionError(f"no rule, or no leaf, for {sorted(rules.keys() ^ leaves.keys())}")

    expected = {
        name: rule.hf_shape(leaves[path].shape)
        for path, rule in rules.items()
        for name in rule.names()
    }
    problems = []
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            problems.append(f"{name} {expected[name]} is missing")
        elif name not in expected and name not in _IGNORED:
            problems.append(f"{name} {tuple(weights[name].shape)} is unknown")
        elif name in expected and tuple(weights[name].shape) != expected[name]:
            shape = tuple(weights[name].shape)
            problems.append(f"{name} is {shape}, needed is {expected[name]}")
    if problems:
        raise ValueError(f"the weights do not match the configuration: {'; '.join(problems)}")

    # `jnp.asarray` would compile a program for each shape.
    for path, leaf in leaves.items():
        leaf.set_value(jax.device_put(np.asarray(rules[path].pack(weights), np.float32)))
    return nnx.merge(graph, state)


def clip_to_hf(model: CLIP) -> dict[str, np.ndarray]:
    """Return the float32 weights by the names of transformers' CLIPModel `state_dict`."""
    leaves = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    weights: dict[str, np.ndarray] = {}
    for rule in _rules(model.config):
        weights |= rule.unpack(np.asarray(leaves[rule.path][...]))
    return weights


@dataclasses.dataclass(frozen=True)
class _Rule:
    """One of our parameters and the weights of transformers that it is made of.

    Attributes:
      path: of ours in the model's state.
      templates: names of theirs, side by side along our last axis; "{}" is the layer.
      num_layers: length of our first axis, or 0 where there is no axis of layers.
      patch_size: of a weight that is a convolution there and a product here, or 0.
    """

    path: tuple[str, ...]
    templates: tuple[str, ...]
    num_layers: int = 0
    patch_size: int = 0

    def names(self) -> list[str]:
        """Return theirs, layer after layer."""
        layers = range(max(self.num_layers, 1))
        return [template.format(layer) for layer in layers for template in self.templates]

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of each of theirs, given that of ours."""
        part = np.broadcast_to(np.float32(0), shape)
        return next(iter(self.unpack(part).values())).shape

    def pack(self, weights: Mapping[str, Any]) -> np.ndarray:
        """Make ours out of theirs."""
        parts = [self._to_ours(np.asarray(weights[name])) for name in self.names()]
        if not self.num_layers:
            return parts[0]
        width = len(self.templates)
        layers = [np.concatenate(parts[i : i + width], -1) for i in range(0, len(parts), width)]
        return np.stack(layers)

    def unpack(self, ours: np.ndarray) -> dict[str, np.ndarray]:
        """Make theirs out of ours."""
        layers = ours if self.num_layers else [ours]
        width = len(self.templates)
        parts = [part for x in layers for part in (np.split(x, width, -1) if width > 1 else [x])]
        return {name: self._to_theirs(part) for name, part in zip(self.names(), parts, strict=True)}

    def _to_ours(self, theirs: np.ndarray) -> np.ndarray:
        if self.patch_size:  # [outputs, 3, rows, columns]
            return theirs.transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])
        # torch's Linear keeps [outputs, inputs].
        return theirs.T if self.path[-1] == "kernel" else theirs

    def _to_theirs(self, ours: np.ndarray) -> np.ndarray:
        if self.patch_size:
            patches = ours.reshape(self.patch_size, self.patch_size, 3, ours.shape[-1])
            return patches.transpose(3, 2, 0, 1)
        return ours.T if self.path[-1] == "kernel" else ours


def _rules(config: CLIPConfig) -> Iterator[_Rule]:
    yield _Rule(("logit_scale",), ("logit_scale",))

    vision = "vision_model"
    yield _Rule(("vision", "class_embedding"), (f"{vision}.embeddings.class_embedding",))
    yield _Rule(
        ("vision", "patch_embedding", "kernel"),
        (f"{vision}.embeddings.patch_embedding.weight",),
        patch_size=config.vision.patch_size,
    )
    yield _Rule(
        ("vision", "position_embedding"), (f"{vision}.embeddings.position_embedding.weight",)
    )
    yield from _norm_rules(("vision", "pre_norm"), f"{vision}.pre_layrnorm")  # sic
    yield from _encoder_rules("vision", vision, config.vision.num_layers)
    yield from _norm_rules(("vision", "post_norm"), f"{vision}.post_layernorm")
    yield _Rule(("vision", "projection", "kernel"), ("visual_projection.weight",))

    text = "text_model"
    yield _Rule(("text", "token_embedding"), (f"{text}.embeddings.token_embedding.weight",))
    yield _Rule(("text", "position_embedding"), (f"{text}.embeddings.position_embedding.weight",))
    yield from _encoder_rules("text", text, config.text.num_layers)
    yield from _norm_rules(("text", "final_norm"), f"{text}.final_layer_norm")
    yield _Rule(("text", "projection", "kernel"), ("text_projection.weight",))


def _norm_rules(path: tuple[str, ...], theirs: str, num_layers: int = 0) -> Iterator[_Rule]:
    yield _Rule((*path, "scale"), (f"{theirs}.weight",), num_layers)
    yield _Rule((*path, "bias"), (f"{theirs}.bias",), num_layers)


def _encoder_rules(tower: str, theirs: str, num_layers: int) -> Iterator[_Rule]:
    path = (tower, "encoder", "layers")
    layer = f"{theirs}.encoder.layers.{{}}"
    yield from _norm_rules((*path, "norm1"), f"{layer}.layer_norm1", num_layers)
    yield from _norm_rules((*path, "norm2"), f"{layer}.layer_norm2", num_layers)
    products = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.out_proj",),
        "fc1": ("mlp.fc1",),
        "fc2": ("mlp.fc2",),
    }
    for ours, parts in products.items():
        for leaf, weight in (("kernel", "weight"), ("bias", "bias")):
            names = tuple(f"{layer}.{part}.{weight}" for part in parts)
            yield _Rule((*path, ours, leaf), names, num_layers)
