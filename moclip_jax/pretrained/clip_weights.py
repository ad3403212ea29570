"""The parameters of a CLIP against those of another layout: one table, read both ways."""

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig


def build_clip(
    config: CLIPConfig,
    rules: Iterable["WeightRule"],
    weights: Mapping[str, Any],
    ignored: Container[str] = (),
) -> CLIP:
    """Build a CLIP with float32 parameters from arrays of another layout.

    Args:
      config: the architecture.
      rules: of the layout; one for each parameter.
      weights: float arrays by the layout's names.
      ignored: names that may be there, and are no weights.

    Raises:
      ValueError: naming every weight that is missing, unknown or of another shape.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
    leaves = dict(nnx.to_flat_state(state))
    by_path: dict[tuple[Any, ...], WeightRule] = {rule.path: rule for rule in rules}
    if by_path.keys() != leaves.keys():
        raise AssertionError(f"no rule, or no leaf, for {sorted(by_path.keys() ^ leaves.keys())}")

    expected = {
        name: rule.their_shape(leaves[path].shape)
        for path, rule in by_path.items()
        for name in rule.names()
    }
    problems = []
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            problems.append(f"{name} {expected[name]} is missing")
        elif name not in expected and name not in ignored:
            problems.append(f"{name} {tuple(weights[name].shape)} is unknown")
        elif name in expected and tuple(weights[name].shape) != expected[name]:
            shape = tuple(weights[name].shape)
            problems.append(f"{name} is {shape}, needed is {expected[name]}")
    if problems:
        raise ValueError(f"the weights do not match the configuration: {'; '.join(problems)}")

    # `jnp.asarray` would compile a program for each shape.
    for path, leaf in leaves.items():
        leaf.set_value(jax.device_put(np.asarray(by_path[path].pack(weights), np.float32)))
    return nnx.merge(graph, state)


def clip_weights(model: CLIP, rules: Iterable["WeightRule"]) -> dict[str, np.ndarray]:
    """Return the float32 weights of a CLIP by the names of a layout."""
    leaves = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    weights: dict[str, np.ndarray] = {}
    for rule in rules:
        weights |= rule.unpack(np.asarray(leaves[rule.path][...]))
    return weights


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """One of our parameters and the weights of a layout that it is made of.

    Attributes:
      path: of ours in the model's state.
      templates: names of theirs, side by side along our last axis; "{}" is the layer.
      num_layers: length of our first axis, or 0 where there is no axis of layers.
      patch_size: of a weight that is a convolution there and a product here, or 0.
      transposed: theirs is [outputs, inputs], as torch's Linear keeps it.
      ones: axes of length 1 that theirs have before ours.
    """

    path: tuple[str, ...]
    templates: tuple[str, ...]
    num_layers: int = 0
    patch_size: int = 0
    transposed: bool = False
    ones: int = 0

    def names(self) -> list[str]:
        """Return theirs, layer after layer."""
        layers = range(max(self.num_layers, 1))
        return [template.format(layer) for layer in layers for template in self.templates]

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
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
        theirs = theirs.reshape(theirs.shape[self.ones :])
        return theirs.T if self.transposed else theirs

    def _to_theirs(self, ours: np.ndarray) -> np.ndarray:
        if self.patch_size:
            patches = ours.reshape(self.patch_size, self.patch_size, 3, ours.shape[-1])
            return patches.transpose(3, 2, 0, 1)
        theirs = ours.T if self.transposed else ours
        return theirs.reshape((1,) * self.ones + theirs.shape)


def linear_rules(
    path: tuple[str, ...], *names: str, num_layers: int = 0, bias: bool = True
) -> Iterator[WeightRule]:
    """Yield the rules of a linear layer of torch, or of several side by side."""
    kernels = tuple(f"{name}.weight" for name in names)
    yield WeightRule((*path, "kernel"), kernels, num_layers, transposed=True)
    if bias:
        yield WeightRule((*path, "bias"), tuple(f"{name}.bias" for name in names), num_layers)


def norm_rules(path: tuple[str, ...], name: str, num_layers: int = 0) -> Iterator[WeightRule]:
    """Yield the rules of a LayerNorm of torch."""
    yield WeightRule((*path, "scale"), (f"{name}.weight",), num_layers)
    yield WeightRule((*path, "bias"), (f"{name}.bias",), num_layers)
