"""Stage `export`: one folder that `moclip_jax.load` opens alone."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.export.model_card import write_model_card
from moclip_jax.inference.exported import FORMAT, METADATA, PARAMETERS, SAFETENSORS, TOKENIZER
from moclip_jax.inference.parameters import parameter_arrays
from moclip_jax.models.heads import Head
from moclip_jax.models.moclip import MotionModel
from moclip_jax.models.towers import Tower
from moclip_jax.runtime.files import atomic_write, write_json
from moclip_jax.runtime.tree_io import save_tree
from moclip_jax.runtime.versions import package_versions


def export_model(
    config: ConfigDict,
    class_names: Sequence[str],
    network: MotionModel,
    clip: Tower,
    tokenizer: Any,
    head: Head,
    text: np.ndarray | None,
    rows: dict[str, Any],
    num_videos: Mapping[str, int],
    directory: Path,
    *,
    reject_below: float = 0.0,
) -> None:
    """Write the parameters, the tokenizer, `metadata.json` and the model card.

    An image network without a text side has neither `tokenizer` nor `text`: None.
    The parameters lie there twice: as Orbax checkpoint with the classes' text features, as in every
    export of format 1, and as safetensors, which opens faster.
    """
    parts = {"motion": network, "clip": clip, "head": head}
    states = {name: nnx.state(part) for name, part in parts.items()}
    texts = {} if text is None else {"text": jnp.asarray(text)}
    save_tree(directory / PARAMETERS, states | texts)
    arrays = {
        f"{part}.{name}": np.array(value, order="C")
        for part, module in parts.items()
        for name, value in parameter_arrays(module).items()
    }
    content = safetensors.numpy.save(arrays)
    with atomic_write(directory / SAFETENSORS) as temporary:
        temporary.write_bytes(content)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory / TOKENIZER)
    versions = package_versions()
    write_json(
        directory / METADATA,
        {
            "format": FORMAT,
            "class_names": class_names,
            "config": json.loads(config.to_json()),
            "clip": clip.config.to_hf(),
            "preprocessor": clip.config.preprocessing.to_hf(clip.config.image_size),
            "head": dataclasses.asdict(head.config),
            "parameters_sha256": hashlib.sha256(content).hexdigest(),
            "reject_below": reject_below,
            "rows": rows,
            "versions": versions,
        },
    )
    write_model_card(config, class_names, num_videos, rows, versions, directory / "README.md")
