"""CLIP folders in Hugging Face's format: config.json, safetensors and the tokenizer's files."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import LEGACY_EOS_TOKEN_ID, CLIPConfig
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf

# A small CLIP for the embedded data set, trained by moclip_jax.pretrained.train_tiny_clip.
TINY_CLIP = Path(__file__).parent / "tiny_clip"

_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def load_clip(source: str | os.PathLike[str], *, dtype: Any = jnp.float32) -> tuple[CLIP, Any]:
    """Load a CLIP and its tokenizer.

    Args:
      source: "tiny" or `TINY_CLIP` for the embedded one; a local folder in Hugging Face's format;
        or a hub id such as "openai/clip-vit-large-patch14", followed by "@" and a revision
        unless the main branch is wanted ("openai/clip-vit-base-patch32@refs/pr/15").
      dtype: of the computation; the parameters are float32.

    Returns:
      The model, and its transformers `CLIPTokenizer`.

    Raises:
      OSError: if there is no such folder and it cannot be downloaded, or the folder lacks a file.
      ValueError: if the weights are pickles, or damaged, or not those of a CLIP of the kind that
        config.json describes, or the tokenizer is that of another model.
    """
    folder = _find_folder(source)
    try:
        config = _read_config(folder, dtype)
        tokenizer = load_tokenizer(folder)
        _check_end_token(tokenizer, config)
        return clip_from_hf(config, _read_weights(folder)), tokenizer
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


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
    """Write a folder that `load_clip` and transformers' `CLIPModel.from_pretrained` read.

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


def _find_folder(source: str | os.PathLike[str]) -> Path:
    """Return the local folder of the source, downloaded from the hub if it is not there yet."""
    if source == "tiny":
        return TINY_CLIP
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{folder} is a file; a CLIP is a folder with config.json in it")
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"no folder {folder}, and not a hub id (owner/name) either; the embedded CLIP is 'tiny'"
        )
    repository, _, revision = str(source).partition("@")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # No pickles: what is never loaded need not be downloaded.
    wanted = ["*.json", "*.txt", "*.safetensors"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=wanted
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        at_revision = f" --revision {revision}" if revision else ""
        raise OSError(
            f"{source} is not a local folder, and cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}). On a machine with network access, run\n"
            f"  hf download {repository}{at_revision} --local-dir clip "
            "--include '*.json' '*.txt' '*.safetensors'\n"
            "copy the folder clip to this machine and pass its path instead of the id"
        ) from error


def _read_config(folder: Path, dtype: Any) -> CLIPConfig:
    preprocessor = folder / _PREPROCESSOR
    return CLIPConfig.from_hf(
        _read_json(folder / _CONFIG),
        _read_json(preprocessor) if preprocessor.exists() else None,
        dtype=dtype,
    )


def _read_json(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; download it into that folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error


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


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Read all weights, from one file or from those that the index names."""
    if (folder / _INDEX).exists():
        files = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
    elif (folder / _WEIGHTS).exists():
        files = [_WEIGHTS]
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise ValueError(
                f"{', '.join(pickles)} is a pickle, which can execute code when loaded; only "
                f"{_WEIGHTS} is supported. {_SAFETENSORS_REMEDY}"
            )
        raise FileNotFoundError(f"{folder} has no {_WEIGHTS}. {_SAFETENSORS_REMEDY}")
    weights: dict[str, np.ndarray] = {}
    for name in files:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}, which {_INDEX} names; download it")
        try:
            with safe_open(folder / name, framework="numpy") as file:
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged ({error}); download it again") from error
    return weights


_SAFETENSORS_REMEDY = (
    "Models without it on the hub often have it in an open pull request by SFconvertbot: pass the "
    "id as owner/name@refs/pr/NUMBER, such as openai/clip-vit-base-patch32@refs/pr/15"
)
