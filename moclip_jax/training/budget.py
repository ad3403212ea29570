"""Choose the motion model and its epochs so that the stage `motion` fits into a time budget."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import FISHER, motion_network_config, network_views
from moclip_jax.models.fisher_vectors import FisherNetwork
from moclip_jax.models.moclip import motion_network
from moclip_jax.runtime.files import write_json
from moclip_jax.runtime.progress import say
from moclip_jax.runtime.sharding import make_mesh, replicate, shard_batch
from moclip_jax.training.fisher import fisher_passes
from moclip_jax.training.motion import network_logits, network_optimizer
from moclip_jax.training.prepare import open_dataset, video_splits
from moclip_jax.training.trainer import TrainState, make_train_step

# In the workdir: what was chosen, so that a run that is resumed keeps it.
FILE = "budget.json"
# Up to so many training videos Fisher vectors come first. They were better on 60 to 248
# (docs/results.md); with more, nothing was compared.
_MOST_FOR_FISHER = 1000
# From random weights, largest first.
_NETWORKS = ("b0", "small", "tiny")
# Fewer epochs are not worth training; more are not in the published recipe.
_FEWEST_EPOCHS, _MOST_EPOCHS = 30, 200
# When the published recipe reduces the learning rate, as shares of its epochs.
_DECAYS = (0.4, 0.8)
# Videos that are measured.
_MEASURED = 8
# Reading, evaluation and checkpoints take the rest of the budget.
_SHARE = 0.7


def with_time_budget(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return the configuration with a motion model and epochs that fit `config.time_budget`.

    Prepares the videos first, because their number decides. The choice is printed and kept in
    `workdir/budget.json`, with the estimate; the same budget gives it again without measuring.

    Raises:
      ValueError: Nothing fits, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "config.time_budget measures one process; with several set config.motion.backbone and "
            "config.motion.num_epochs yourself, and config.time_budget=0"
        )
    path = workdir / FILE
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.get("minutes") != config.time_budget:
        dataset = open_dataset(config, workdir)
        num_videos = len(video_splits(config, dataset)["train"])
        record = choose(config, num_videos, seconds_per_video) | {"minutes": config.time_budget}
        write_json(path, record)
    chosen = ", ".join(f"{name}={value}" for name, value in record["settings"].items())
    say(
        f"time budget of {config.time_budget:g} minutes for the motion model: {chosen}; estimated "
        f"{record['estimate']:.2g} minutes"
    )
    return _changed(config, record["settings"])


def choose(
    config: ConfigDict, num_videos: int, measure: Callable[[ConfigDict], float]
) -> dict[str, Any]:
    """Choose the first of the candidates that fits `config.time_budget`.

    Candidates are Fisher vectors for few videos, then networks from random weights, the largest
    first; with `motion.pretrained` only the network that the weights are of. A network fits if 30
    epochs do, and is trained for as many as fit, up to 200.

    Args:
      config: The whole configuration.
      num_videos: Training videos.
      measure: From a configuration to the seconds that its motion model needs for a training
        video, of a network in each epoch.

    Returns:
      `settings`, the fields to change with their values, and `estimate` in minutes.

    Raises:
      ValueError: Nothing fits; the message says what the cheapest candidate needs.
    """
    seconds = 60 * _SHARE * config.time_budget
    needed = float("inf")
    for settings in _candidates(config, num_videos):
        each = num_videos * measure(_changed(config, settings))
        if settings["motion.backbone"] == FISHER:
            if each <= seconds:
                return {"settings": settings, "estimate": each / _SHARE / 60}
            needed = min(needed, each)
            continue
        epochs = min(_MOST_EPOCHS, int(seconds / each))
        if epochs >= _FEWEST_EPOCHS:
            decays = [round(share * epochs) for share in _DECAYS]
            settings |= {"motion.num_epochs": epochs, "motion.decay_epochs": decays}
            return {"settings": settings, "estimate": epochs * each / _SHARE / 60}
        needed = min(needed, _FEWEST_EPOCHS * each)
    raise ValueError(
        f"config.time_budget={config.time_budget:g} minutes are too few for {num_videos} training "
        f"videos: the cheapest motion model needs about {needed / _SHARE / 60:.2g}; raise it, "
        "lower config.motion.image_size or config.motion.num_segments, or use fewer videos"
    )


def _candidates(config: ConfigDict, num_videos: int) -> list[dict[str, Any]]:
    if config.motion.pretrained:
        return [{"motion.backbone": config.motion.backbone}]
    of_network: dict[str, Any] = {}
    if config.motion.backbone == FISHER:
        # Settings of a Fisher model that are none of a network's.
        of_network = {
            "motion.num_segments": 3,
            "motion.learning_rate": 0.003,
            "motion.stem_multiplier": 1.0,
            "motion.rest_multiplier": 1.0,
            "motion.batch_size": min(config.motion.batch_size, max(num_videos // 4, 1)),
            "selection.mode": "heldout",
        }
    networks = [{"motion.backbone": name} | of_network for name in _NETWORKS]
    few = config.motion.backbone == FISHER and num_videos <= _MOST_FOR_FISHER
    return [*[{"motion.backbone": FISHER}] * few, *networks]


def seconds_per_video(config: ConfigDict) -> float:
    """Measure the motion model of a configuration on random motion, compiled, without reading."""
    network = motion_network(motion_network_config(config.motion, 2), rngs=nnx.Rngs(0))
    shape = network_views(config, num_segments=config.motion.num_segments).shape[1:]
    rng = np.random.default_rng(0)
    mesh = make_mesh()
    videos = _MEASURED * mesh.size
    motion = rng.normal(128, 4, (videos, *shape)).astype(np.uint8)
    if isinstance(network, FisherNetwork):
        graph, state = nnx.split(network)
        encode = jax.jit(lambda state, fields: nnx.merge(graph, state).fisher_vectors(fields))
        return fisher_passes(config) * _seconds(lambda: encode(state, motion)) / videos
    graph, params, stats = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]
    optimizer = network_optimizer(config.motion, 1, params)
    # Jitted, because each shape of zeros would be a compilation of its own.
    state = replicate(
        TrainState(jnp.zeros((), jnp.int32), params, stats, jax.jit(optimizer.init)(params)), mesh
    )
    step = make_train_step(graph, network_logits, optimizer, mesh)
    batch = shard_batch({"motion": motion, "label": np.zeros(videos, np.int32)}, mesh)
    key = replicate(jax.random.key(0), mesh)
    states = [state]

    def train() -> Any:
        states[0], sums = step(states[0], batch, key)
        return sums

    return _seconds(train) / videos


def _seconds(work: Callable[[], Any]) -> float:
    """Time the second call; the first one compiles."""
    jax.block_until_ready(work())
    began = time.monotonic()
    jax.block_until_ready(work())
    return time.monotonic() - began


def _changed(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    changed = copy.deepcopy(config)
    changed.update_from_flattened_dict(
        {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    )
    return changed
