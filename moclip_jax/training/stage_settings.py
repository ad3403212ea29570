"""The settings that the result of each stage depends on, which `stages.py` compares."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moclip_jax.config import token_layers
from moclip_jax.input_pipeline.datasets.definition import LIMITS_IN_DIGEST
from moclip_jax.training.motion import result_settings


def dataset_settings(config: ConfigDict) -> dict[str, Any]:
    """Return what the prepared data depends on."""
    dataset = config.dataset.to_dict()
    return {
        "dataset": {name: dataset[name] for name in ("name", "videos", "lists", "options")},
        # Limits decide which videos are rejected, but do not change those that are prepared.
        "video": config.video.to_dict() | LIMITS_IN_DIGEST,
        "source": config.motion.source,
    }


def motion_settings(config: ConfigDict) -> dict[str, Any]:
    """Return what the motion network depends on."""
    return {
        "seed": config.seed,
        "split": config.dataset.split,
        "video": config.video.to_dict(),
        # What is not set is left out, so that the results of earlier versions are kept.
        "selection": {name: value for name, value in config.selection.items() if value},
        **_shot_list(config.selection.shot_list),
        "motion": result_settings(config.motion),
        **({"balanced_loss": True} if config.balanced_loss else {}),
    }


def pretraining_settings(config: ConfigDict) -> dict[str, Any]:
    """Return what the pretrained weights depend on."""
    return motion_settings(config) | {"pretraining": config.pretraining.to_dict()}


def _shot_list(path: str) -> dict[str, Any]:
    """Return a digest of the list: it may be changed under its name."""
    if not path:
        return {}
    content = Path(path).expanduser().read_bytes()
    return {"shot_list": hashlib.sha256(content).hexdigest()}


def features_settings(config: ConfigDict) -> dict[str, Any]:
    """Return what the stored features depend on."""
    features = config.features.to_dict()
    del features["batch_size"]
    # Earlier versions stored averages over segments and frames, which is found out by this.
    features["stored"] = "each segment and frame"
    if token_layers(config):
        features["token_layers"] = token_layers(config)
    sections = {name: config[name].to_dict() for name in ("clip", "evaluation")}
    if sections["clip"]["features"] == "projected":
        # Said only if chosen, so that the results of earlier versions are kept.
        del sections["clip"]["features"]
    return {**sections, "features": features}


def fusion_settings(config: ConfigDict) -> dict[str, Any]:
    """Return what the heads depend on."""
    fusion = config.fusion.to_dict()
    if fusion["head"] == "text":
        return {"fusion": fusion} | config_section("zero_shot")(config)
    # Left out, so that the results of earlier versions are kept.
    del fusion["alpha"]
    return {"fusion": fusion}


def config_section(name: str) -> Callable[[ConfigDict], dict[str, Any]]:
    """Return a function that returns a section of the configuration under its name."""
    return lambda config: {name: config[name].to_dict()}
