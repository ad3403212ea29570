"""Tokenizers of folders of weights, and the tokens of texts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moclip_jax.models.clip_config import CLIPTextConfig

# Files that a tokenizer is read from; where none of them is there, transformers would make one up.
_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Load the transformers tokenizer of a local folder, of the class that its files name.

    Raises:
      FileNotFoundError: if there is no file of a tokenizer.
      ValueError: if transformers cannot load it; the message names the package that is missing.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in _FILES):
        raise FileNotFoundError(
            f"{folder} has no tokenizer: none of {', '.join(_FILES)}; "
            "download the model's tokenizer files into it"
        )
    # Imported late: it takes seconds, and only texts need it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise ValueError(
            "the tokenizer is a SentencePiece model, which needs: pip install sentencepiece"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the tokenizer cannot be loaded: {error}") from error


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


def check_end_token(tokenizer: Any, config: CLIPTextConfig) -> None:
    """Raise ValueError if pooling would look for an end that this tokenizer does not write."""
    if config.pooling == "last_token":
        return
    end = config.eos_token_id
    if config.pooling == "highest_id":
        end = max(tokenizer.get_vocab().values())
    if tokenizer.eos_token_id != end:
        raise ValueError(
            f"the tokenizer's end token is {tokenizer.eos_token_id}, but the config pools at token "
            f"{end}: the files belong to different models"
        )
