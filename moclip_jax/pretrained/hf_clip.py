"""CLIP folders in Hugging Face's format: config.json, safetensors and the tokenizer's files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import LEGACY_EOS_TOKEN_ID, CLIPConfig
from moclip_jax.pretrained.folders import read_json, read_weights
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf

_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = "model.safetensors"


def load_hf_clip(folder: Path, dtype: Any) -> tuple[CLIP, Any]:
    """Load the CLIP and the tokenizer of a local folder; see `load_tower`."""
    config = _read_config(folder, dtype)
    tokenizer = load_tokenizer(folder)
    _check_end_token(tokenizer, config)
    return clip_from_hf(config, read_weights(folder)), tokenizer


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Load the transformers `CLIPTokenizer` of a local folder.

    Raises:
      FileNotFoundError: if there is neither tokenizer.json nor vocab.json and merges.txt.
    """
    folder = Path(folder)
    legacy = ("vocab.json", "merges.txt")
    if not (folder / "tokenizer.json").exists():
        for name in legacy:
            if not (folder / name).exists():
                raise FileNotFoundError(
                    f"{folder} has no tokenizer: neither tokenizer.json nor {name}; "
                    "download the model's tokenizer files into it"
                )
    # Imported late: it takes seconds, and only texts need it.
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def save_clip(model: CLIP, tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write a folder that `load_tower` and transformers' `CLIPModel.from_pretrained` read.

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
    preprocessor = model.config.preprocessing.to_hf(model.config.vision.image_size)
    (folder / _PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2, sort_keys=True) + "\n")
    weights = {name: np.asarray(value, order="C") for name, value in clip_to_hf(model).items()}
    # transformers rejects a file without the layout's framework in its metadata.
    # Through bytes: save_file would make it readable for its owner only.
    (folder / _WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save_pretrained(folder)


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> np.ndarray:
    """Turn texts into tokens, int32 [N, max_length], each with its start and end, padded.

    Raises:
      ValueError: if a text is longer than the model takes; none is cut off silently.
    """
    rows = tokenizer(list(texts), padding="max_length", max_length=max_length)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > max_length:
            raise ValueError(
                f"the text {text!r} has {len(row)} tokens, more than this CLIP's {max_length}; "
                "shorten it"
            )
    return np.asarray(rows, np.int32).reshape(-1, max_length)


def _read_config(folder: Path, dtype: Any) -> CLIPConfig:
    preprocessor = folder / _PREPROCESSOR
    return CLIPConfig.from_hf(
        read_json(folder / _CONFIG),
        read_json(preprocessor) if preprocessor.exists() else None,
        dtype=dtype,
    )


def _check_end_token(tokenizer: Any, config: CLIPConfig) -> None:
    """Raise if pooling would look for an end that this tokenizer does not write."""
    end = config.text.eos_token_id
    if end == LEGACY_EOS_TOKEN_ID:
        end = max(tokenizer.get_vocab().values())
    if tokenizer.eos_token_id != end:
        raise ValueError(
            f"the tokenizer's end token is {tokenizer.eos_token_id}, but {_CONFIG} pools at token "
            f"{end}: the files belong to different models"
        )
