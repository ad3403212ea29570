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
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
# Contents of config.json: OpenAI's kind with its legacy end token, OpenCLIP's kind, MetaCLIP 2's,
# whose end token is truly 2, and SigLIP's, with pixels left over beside the last patches. The last
# is the content of open_clip_config.json.
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
    "metaclip_2": {
        "model_type": "metaclip_2",
        "projection_dim": 24,
        "vision_config": _VISION | {"hidden_act": "gelu"},
        "text_config": _TEXT | {"hidden_act": "gelu", "eos_token_id": 2},
    },
    "siglip": {
        "model_type": "siglip",
        "vision_config": _VISION | _SIGLIP | {"image_size": 36},
        "text_config": _TEXT | _SIGLIP | {"projection_size": 48, "eos_token_id": 40},
    },
    "open_clip": {
        "model_cfg": {
            "embed_dim": 24,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 32, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8,
                "mlp_ratio": 2.0,
            },
            "text_cfg": {
                "context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
    },
}  # fmt: skip


def _sizes(config: dict) -> tuple[int, int, int]:
    """Returns the side of the images, the longest text and the id that ends a text."""
    if "model_cfg" in config:
        model = config["model_cfg"]
        return model["vision_cfg"]["image_size"], model["text_cfg"]["context_length"], 63
    text = config["text_config"]
    legacy = config["model_type"] == "clip" and text["eos_token_id"] == 2
    end = 63 if legacy else text["eos_token_id"]
    return config["vision_config"]["image_size"], text["max_position_embeddings"], end


def _rng(*names: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(names).encode()))


def make_weight(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 numbers large enough that every part of the model matters."""
    if name == "logit_scale":
        return np.full(shape, 2.5, np.float32)
    values = _rng(model, name).standard_normal(shape)
    if ("norm" in name or ".ln_" in f".{name}") and name.endswith("weight"):
        return (1 + 0.2 * values).astype(np.float32)
    return (0.2 * values).astype(np.float32)


def make_images(config: dict) -> np.ndarray:
    """Returns float32 [3, 3, image_size, image_size], torch's order of axes."""
    side = _sizes(config)[0]
    return _rng("images").standard_normal((3, 3, side, side), dtype=np.float32)


def make_tokens(config: dict) -> np.ndarray:
    """Returns int32 [4, max_length - 2]: start, words, end, then padding that is no end.

    For a SigLIP, which pools at the last place, and for open_clip, which takes no other length,
    [4, max_length].
    """
    _, length, end = _sizes(config)
    if config.get("model_type") in ("clip", "metaclip_2"):
        length -= 2
    tokens = _rng("tokens").integers(3, 39, size=(4, length)).astype(np.int32)
    tokens[:, 0] = _TEXT["bos_token_id"]
    for row, place in zip(tokens, (3, 5, 7, length - 1), strict=True):
        row[place] = end
        row[place + 1 :: 2] = end  # only the first one counts
    return tokens
