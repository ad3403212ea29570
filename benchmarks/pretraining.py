"""What the stage `pretrain` gains, by the share of labels that the stage `motion` then has.

    python -m benchmarks.pretraining FOLDER [--out=runs/pretraining] [--seeds=3]

Every folder in FOLDER that has `classInd.txt` is a data set for `configs/video_folder.py`; its
first list is used. The motion network (`tiny`, 64 x 64 pixels) starts at random, or from
contrastive pretraining on all training videos of the list without labels, and is then trained on a
share of the labels of each class (at least one video, the same for both starts). It prints top-1 on
the test videos, 8 segments of each. Steps are drawn from 16 augmented views of each video, made
once; losses, networks and optimizers are those of the stages.
"""

import argparse
import functools
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import motion_views
from moclip_jax.configs import video_folder
from moclip_jax.input_pipeline.batches import MotionViews, view_batches
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import Progress, say
from moclip_jax.runtime.sharding import make_mesh, replicate
from moclip_jax.training.motion import initial_motion_network, network_logits, network_optimizer
from moclip_jax.training.prepare import open_dataset, video_splits
from moclip_jax.training.pretraining import (
    ContrastiveNetwork,
    contrastive_logits,
    pretraining_views,
)
from moclip_jax.training.trainer import TrainState, make_train_step

SHARES = (5, 10, 25, 100)
_VIEWS = 16
_BATCH = 16
_LEAST_STEPS = 250
_EPOCHS = 40
_PRETRAINING_VIDEOS = 32
_PRETRAINING_STEPS = 400
_PRETRAINING_RATE = 2e-3
_apply = nnx.jit(lambda network, fields: network(fields))


def settings(folder: Path, out: Path) -> ConfigDict:
    """Return the configuration of a data set: a small network from random weights."""
    config = video_folder.get_config()
    config.dataset.videos = str(folder)
    config.dataset.data_dir = str(out / "data")
    motion = config.motion
    motion.backbone, motion.num_segments = "tiny", 3
    motion.image_size, motion.resize_size = 64, 72
    motion.learning_rate, motion.adam_eps = 0.003, 1e-8
    motion.stem_multiplier = motion.rest_multiplier = 1.0
    return config


def load(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Return fields uint8 `[n, V, S, H, W, 2]` and labels of each split, made once."""
    cache = folder / "views.npz"
    if not cache.exists():
        dataset = open_dataset(config, folder)
        names = video_splits(config, dataset)
        augmented = motion_views(config.motion, num_segments=3)
        whole = pretraining_views(config.motion)
        arrays = {
            "train": fields_of(dataset, names["train"], augmented, _VIEWS),
            "whole": fields_of(dataset, names["train"], whole, _VIEWS // 2),
            "test": fields_of(dataset, names["test"], motion_views(config.motion, num_segments=8)),
        }
        labels = {f"{split}_labels": dataset.labels(names[split]) for split in ("train", "test")}
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, **arrays, **labels)
    return dict(np.load(cache))


def fields_of(dataset: Any, names: list[str], views: MotionViews, augmented: int = 0) -> np.ndarray:
    """Return views of the videos in order, uint8 `[n, V, S, H, W, 2]`."""
    fields = np.empty((len(names), augmented or 1, *views.shape[1:]), np.uint8)
    batches = view_batches(dataset, names, motion=views, augmented_views=augmented, batch_size=8)
    for batch in batches.as_numpy_iterator():
        fields[batch["index"][batch["mask"]]] = batch["motion"][batch["mask"]]
    return fields


def train(
    model: nnx.Module,
    logits: Any,
    schedule: Any,
    fields: np.ndarray,
    labels: np.ndarray,
    size: int,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[Any, list[float]]:
    """Train for a number of steps, each on random views of random videos."""
    graph, params, stats = nnx.split(jax.tree.map(jnp.copy, model), nnx.Param, ...)
    optimizer = schedule(params)
    mesh = make_mesh()
    start = TrainState(jnp.zeros((), jnp.int32), params, stats, jax.jit(optimizer.init)(params))
    state = replicate(start, mesh)
    step = make_train_step(graph, logits, optimizer, mesh)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    order = np.zeros(0, int)
    losses = []
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(fields))])
        own, order = order[:size], order[size:]
        batch = {
            "motion": fields[own, rng.integers(fields.shape[1], size=size)],
            "label": labels[own],
        }
        state, sums = step(state, batch, key)
        losses.append(float(sums["loss"] / sums["count"]))
        progress.advance(1)
    tenths = [round(float(each.mean()), 3) for each in np.array_split(np.array(losses), 10)]
    return nnx.merge(graph, state.params, state.stats), tenths


def labelled(labels: np.ndarray, share: int, seed: int) -> np.ndarray:
    """Return a share of the videos of each class, at least one; larger shares hold smaller ones."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(own[: max(1, round(share / 100 * len(own)))])
    return np.sort(np.concatenate(chosen))


def top1(network: MotionNetwork, data: dict[str, Any]) -> float:
    """Return top-1 of the test videos in percent."""
    logits = np.asarray(_apply(network, data["test"][:, 0]))
    return 100 * float((logits.argmax(1) == data["test_labels"]).mean())


def measure(
    config: ConfigDict, data: dict[str, Any], seed: int, progress: Progress
) -> dict[str, list[float]]:
    """Return top-1 of each start, for each share of labels."""
    labels = data["train_labels"].astype(np.int32)
    config.seed = seed
    results: dict[str, list[float]] = {}
    for start in ("random", "pretrained"):
        network = initial_motion_network(config, int(labels.max()) + 1)
        if start == "pretrained":
            model = ContrastiveNetwork(network, rngs=nnx.Rngs(seed))
            schedule = optax.cosine_onecycle_schedule(_PRETRAINING_STEPS, _PRETRAINING_RATE)
            model, losses = train(
                model,
                functools.partial(contrastive_logits, image_size=config.motion.image_size),
                lambda _: optax.adam(schedule),  # noqa: B023 (called before the next round)
                data["whole"], np.zeros_like(labels),
                min(_PRETRAINING_VIDEOS, len(labels)), _PRETRAINING_STEPS, seed, progress,
            )  # fmt: skip
            say(f"seed {seed}: losses of pretraining {losses}")
            network = model.network
        results[start] = []
        values: dict[int, float] = {}
        for share in SHARES:
            rows = labelled(labels, share, seed)
            if len(rows) not in values:
                steps = supervised_steps(len(rows))
                # The published decay, 80 and 160 of 200 epochs.
                config.motion.decay_epochs = (steps * 2 // 5, steps * 4 // 5)
                trained, losses = train(
                    network, network_logits,
                    functools.partial(network_optimizer, config.motion, 1),
                    data["train"][rows], labels[rows], min(_BATCH, len(rows)), steps, seed,
                    progress,
                )  # fmt: skip
                values[len(rows)] = top1(trained, data)
                say(f"seed {seed}: {start} {share} % {values[len(rows)]:.1f} losses {losses}")
            results[start].append(values[len(rows)])
    return results


def supervised_steps(videos: int) -> int:
    """Return the number of supervised steps on a number of videos."""
    return max(_LEAST_STEPS, _EPOCHS * -(-videos // _BATCH))


def main() -> int:
    """Print a table of each data set."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.pretraining", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    folders = sorted(path.parent for path in arguments.folder.glob("*/classInd.txt"))
    configs = [settings(folder, arguments.out) for folder in folders]
    sets = [
        load(each, arguments.out / folder.name)
        for each, folder in zip(configs, folders, strict=True)
    ]
    files = {
        (seed, place): arguments.out / folder.name / f"seed{seed}.json"
        for seed in range(arguments.seeds)
        for place, folder in enumerate(folders)
    }
    missing = [key for key, file in files.items() if not file.exists()]
    progress = Progress(sum(num_steps(sets[place]) for _, place in missing), "training", "steps")
    for seed, place in missing:
        say(f"=== {folders[place].name}")
        result = measure(configs[place], sets[place], seed, progress)
        files[seed, place].write_text(json.dumps(result))
    for place, folder in enumerate(folders):
        found = [json.loads(files[n, place].read_text()) for n in range(arguments.seeds)]
        print_table(folder.name, found)
    return 0


def num_steps(data: dict[str, Any]) -> int:
    """Return the number of steps that `measure` takes, for the estimate of the time."""
    sizes = {len(labelled(data["train_labels"], share, 0)) for share in SHARES}
    return _PRETRAINING_STEPS + 2 * sum(map(supervised_steps, sizes))


def cell(values: Any, sign: str = "") -> str:
    """Return mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def print_table(name: str, results: list[dict[str, list[float]]]) -> None:
    """Print top-1 of one set, and the differences to the random start of the same seed."""
    print(f"\n{name}, list 1, top-1 in percent, {len(results)} seeds\n")
    print(f"| start | {' | '.join(f'{share} %' for share in SHARES)} |")
    print("|---" * (len(SHARES) + 1) + "|")
    tops = {start: np.array([each[start] for each in results]) for start in results[0]}
    for start, values in tops.items():
        print(f"| {start} | {' | '.join(map(cell, values.T.tolist()))} |")
    gains = (tops["pretrained"] - tops["random"]).T.tolist()
    print(f"| difference | {' | '.join(cell(column, '+') for column in gains)} |")


if __name__ == "__main__":
    raise SystemExit(main())
