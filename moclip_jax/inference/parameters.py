"""Build the model of an export and read its parameters."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import motion_network_config
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.moclip import MoCLIP, MoCLIPConfig
from moclip_jax.models.towers import tower_config
from moclip_jax.runtime.device import computation_dtype


def build_model(
    metadata: dict[str, Any], config: ConfigDict, safetensors_file: Path, orbax_folder: Path
) -> MoCLIP:
    """Return the trained model.

    Args:
      safetensors_file: preferred where it is and `metadata` has its digest.
      orbax_folder: read otherwise: exports of earlier versions have no other.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: the parameters are damaged, or those of other networks.
    """
    clip_config = tower_config(
        metadata["clip"],
        metadata.get("preprocessor"),
        dtype=computation_dtype(config.clip.dtype),
        # Exports of before there was a choice.
        features=config.clip.get("features", "projected"),
    )
    model_config = MoCLIPConfig(
        motion_network_config(config.motion, len(metadata["class_names"])),
        clip_config,
        FusionConfig(**metadata["head"]),
    )
    model = nnx.eval_shape(lambda: MoCLIP(model_config, rngs=nnx.Rngs(0)))
    digest = metadata.get("parameters_sha256")
    if digest and safetensors_file.exists():
        _read_safetensors(model, safetensors_file, digest, orbax_folder)
    else:
        _read_orbax(model, orbax_folder)
    return model


def parameter_arrays(model: nnx.Module) -> dict[str, Any]:
    """Return all arrays of a model by their dotted names."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): leaf[...] for path, leaf in flat}


def _read_safetensors(model: MoCLIP, path: Path, digest: str, other: Path) -> None:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} is not the file that was exported: it was damaged or replaced; delete it, and "
            f"{other.name}/ beside it is read"
        )
    arrays = safetensors.numpy.load(content)
    state = nnx.state(model)
    for name, leaf in nnx.to_flat_state(state):
        leaf.set_value(jax.device_put(arrays[".".join(map(str, name))]))
    nnx.update(model, state)


def _read_orbax(model: MoCLIP, path: Path) -> None:
    # Imported late: Orbax takes longer to import than a small model to run.
    from moclip_jax.runtime.tree_io import load_tree

    config = model.config
    expected: dict[str, Any] = {
        "motion": nnx.state(model.motion),
        "clip": nnx.state(model.clip),
        "head": nnx.state(model.head),
    }
    if isinstance(config.clip, CLIPConfig):
        text = (config.fusion.num_classes, config.clip.projection_dim)
        expected["text"] = jax.ShapeDtypeStruct(text, jnp.float32)
    parameters = load_tree(path, expected)
    for name in ("motion", "clip", "head"):
        nnx.update(getattr(model, name), parameters[name])
