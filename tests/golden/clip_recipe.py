"""Configurations, weights and inputs of the golden CLIPs, from numpy and names alone."""

import zlib

import numpy as np

_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_TEXT = {
    "vocab_size": 64,
    "max_position_embeddings": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 80,
    "bos_token_id": 62,
    "pad_token_id": 63,
}
# Contents of config.json: OpenAI's kind with its legacy end token, and OpenCLIP's kind.
CONFIGS = {
    "quick_gelu": {
        "model_type": "clip",
        "projection_dim": 24,
        "vision_config": _VISION | {"hidden_act": "quick_gelu"},
        "text_config": _TEXT | {"hidden_act": "quick_gelu", "eos_token_id": 2},
    },
    "gelu": {
        "model_type": "clip",
        "projection_dim": 40,
        "vision_config": _VISION
        | {"hidden_act": "gelu", "patch_size": 16, "hidden_size": 40, "layer_norm_eps": 1e-3},
        # An end in the middle of the ids: the highest id is not the end here.
        "text_config": _TEXT | {"hidden_act": "gelu", "eos_token_id": 40, "layer_norm_eps": 1e-3},
    },
}


def _rng(*names: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(names).encode()))


def make_weight(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 numbers large enough that every part of the model matters."""
    if name == "logit_scale":
        return np.full(shape, 2.5, np.float32)
    values = _rng(model, name).standard_normal(shape)
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.2 * values).astype(np.float32)
    return (0.2 * values).astype(np.float32)


def make_images(config: dict) -> np.ndarray:
    """Returns float32 [3, 3, image_size, image_size], torch's order of axes."""
    side = config["vision_config"]["image_size"]
    return _rng("images").standard_normal((3, 3, side, side), dtype=np.float32)


def make_tokens(config: dict) -> np.ndarray:
    """Returns int32 [4, max_length - 2]: start, words, end, then padding that is no end."""
    text = config["text_config"]
    end = 63 if text["eos_token_id"] == 2 else text["eos_token_id"]
    length = text["max_position_embeddings"] - 2
    tokens = _rng("tokens").integers(3, 39, size=(4, length)).astype(np.int32)
    tokens[:, 0] = text["bos_token_id"]
    for row, place in zip(tokens, (3, 5, 7, length - 1), strict=True):
        row[place] = end
        row[place + 1 :: 2] = end  # only the first one counts
    return tokens
