"""What pretraining the motion network without labels gains, by the share of labels that follows.

    python -m benchmarks.pretraining FOLDER [--out=runs/pretraining] [--seeds=3] [--only=NAMES]

Every folder in FOLDER that has `classInd.txt` is a data set; its first list is used. The network is
pretrained on all training videos of the list, or starts at random, and is then trained on a share
of their labels (at least one video a class). It prints top-1 of the motion row on the test videos.
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

from moclip_jax.config import motion_network_config, motion_views, video_spec
from moclip_jax.configs import demo
from moclip_jax.input_pipeline.batches import MotionViews, prepare_dataset, view_batches
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import say
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training.losses import cross_entropy
from moclip_jax.training.metrics import topk_accuracy
from moclip_jax.training.motion import network_logits, network_optimizer
from moclip_jax.training.pretraining import pretraining
from moclip_jax.training.trainer import TrainState, make_train_step

WAYS = ("random", "contrastive", "masked")
SHARES = (5, 10, 25, 100)
_logits = nnx.jit(lambda network, fields: network(fields))
# Augmented views of a video, from which the steps draw.
_VIEWS = 16
_SEGMENTS = 3
_BATCH = 16
_STEPS = 200
_PRETRAINING_BATCH = 32
_PRETRAINING_STEPS = 200


def settings(folder: Path, seed: int, shots: int) -> Any:
    """Return the configuration of a data set: the tiny network on small fields."""
    config = demo.get_config()
    config.seed = seed
    config.dataset.name, config.dataset.videos = "video_folder", str(folder)
    config.dataset.options = {}
    config.selection.mode, config.selection.shots = "last", shots
    config.video.width, config.video.height = 176, 144
    config.motion.bound = 10.0
    config.motion.num_segments = _SEGMENTS
    config.motion.image_size, config.motion.resize_size = 32, 40
    # Steps, an epoch each.
    config.motion.decay_epochs = (140,)
    return config


def fields_of(
    dataset: PreparedDataset, names: list[str], views: MotionViews, augmented: int, seed: int
) -> np.ndarray:
    """Return views of the videos in order, uint8 `[n, V, S, H, W, 2]`."""
    batches = view_batches(
        dataset, names, motion=views, augmented_views=augmented, batch_size=8, seed=seed
    )
    fields = np.empty((len(names), augmented or 1, *views.shape[1:]), np.uint8)
    for batch in batches.as_numpy_iterator():
        fields[batch["index"][batch["mask"]]] = batch["motion"][batch["mask"]]
    return fields


@functools.cache
def _step(way: str, num_classes: int) -> tuple[Any, Any]:
    """Return the optimizer and the compiled update of a way, or of `supervised` training."""
    config = settings(Path(), 0, 0)
    model = _model(way, num_classes, 0)
    graph, params, _ = nnx.split(model["model"], nnx.Param, ...)
    optimizer = optax.adamw(1e-3, weight_decay=1e-4)
    if way == "supervised":
        optimizer = network_optimizer(config.motion, 1, params)
    loss = model.get("loss", cross_entropy)
    return optimizer, make_train_step(graph, model["logits"], optimizer, make_mesh(), loss_of=loss)


def _model(way: str, num_classes: int, seed: int) -> dict[str, Any]:
    """Return a fresh `model`, its `logits` and perhaps its `loss`."""
    config, rngs = settings(Path(), seed, 0), nnx.Rngs(seed)
    network = MotionNetwork(motion_network_config(config.motion, num_classes), rngs=rngs)
    if way == "supervised":
        return {"model": network, "logits": network_logits}
    return pretraining(way, network, config.motion.image_size, rngs=rngs)


def train(
    way: str, model: Any, fields: np.ndarray, labels: np.ndarray, num_classes: int, seed: int
) -> Any:
    """Train a model for a number of steps, each on random views of random videos."""
    optimizer, step = _step(way, num_classes)
    # Copied, because the step takes the memory of its state.
    graph, params, stats = nnx.split(jax.tree.map(jnp.copy, model), nnx.Param, ...)
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, jax.jit(optimizer.init)(params))
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    supervised, clips = way == "supervised", 2 if way == "contrastive" else 1
    for _ in range(_STEPS if supervised else _PRETRAINING_STEPS):
        # Fewer videos than a batch are repeated, in other views.
        repeats = -(-_BATCH // len(fields)) if supervised else 1
        order = np.concatenate([rng.permutation(len(fields)) for _ in range(repeats)])
        videos = order[: _BATCH if supervised else _PRETRAINING_BATCH]
        views = rng.permuted(np.tile(np.arange(_VIEWS), (len(videos), 1)), axis=1)[:, :clips]
        motion = fields[videos[:, None], views]
        batch = {"motion": motion if clips > 1 else motion[:, 0], "label": labels[videos]}
        state, _ = step(state, batch, key)
    return nnx.merge(graph, state.params, state.stats)


def top1(network: MotionNetwork, fields: np.ndarray, labels: np.ndarray) -> float:
    """Return top-1 of test fields `[n, 1, S, H, W, 2]`, in percent."""
    return 100 * topk_accuracy(np.asarray(_logits(network, fields[:, 0])), labels, 1)


def measure(folder: Path, out: Path, seed: int) -> dict[str, list[float]]:
    """Return top-1 of each way, for each share of labels."""
    done = out / folder.name / f"seed{seed}.json"
    if done.exists():
        return json.loads(done.read_text())
    config = settings(folder, seed, 0)
    dataset = prepare_dataset(
        "video_folder", data_dir=out / "data", spec=video_spec(config), videos=str(folder)
    )
    splits = dataset.splits(selection="last")
    names, num_classes = splits["train"], len(dataset.class_names)
    side = config.motion.resize_size
    augmented = motion_views(config.motion, num_segments=_SEGMENTS)
    whole = MotionViews(
        num_segments=_SEGMENTS, image_size=side, resize_size=side, scales=(1.0,),
        flip_probability=0.0, bound=config.motion.bound,
    )  # fmt: skip
    fields = fields_of(dataset, names, augmented, _VIEWS, seed)
    inputs = {"contrastive": fields_of(dataset, names, whole, _VIEWS, seed), "masked": fields}
    test = fields_of(dataset, splits["test"], motion_views(config.motion, num_segments=8), 0, 0)
    results: dict[str, list[float]] = {}
    for way in WAYS:
        start = _model("supervised", num_classes, seed)["model"]
        if way != "random":
            model = _model(way, num_classes, seed)["model"]
            views = inputs[way]
            zeros = np.zeros(len(views), np.int32)
            start = train(way, model, views, zeros, num_classes, seed).network
        results[way], before = [], None
        for share in SHARES:
            shots = max(1, round(share / 100 * len(names) / num_classes)) if share < 100 else 0
            chosen = dataset.splits(selection="last", shots=shots, seed=seed)["train"]
            if chosen != before:
                rows = [names.index(name) for name in chosen]
                labels = dataset.labels(chosen).astype(np.int32)
                network = train("supervised", start, fields[rows], labels, num_classes, seed)
            before = chosen
            results[way].append(top1(network, test, dataset.labels(splits["test"])))
        say(f"{folder.name} seed {seed}: {way} {[round(value, 1) for value in results[way]]}")
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(results))
    return results


def main() -> int:
    """Print a table of each data set."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.pretraining", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of data sets, separated by commas")
    arguments = parser.parse_args()
    folders = sorted(path.parent for path in arguments.folder.glob("*/classInd.txt"))
    if arguments.only:
        folders = [folder for folder in folders if folder.name in arguments.only.split(",")]
    runs = [
        {folder.name: measure(folder, arguments.out, seed) for folder in folders}
        for seed in range(arguments.seeds)
    ]
    for folder in folders:
        print(f"\n{folder.name}, top-1 of motion in percent, {len(runs)} seeds\n")
        print(f"| start | {' | '.join(f'{share} %' for share in SHARES)} |")
        print("|---" * (len(SHARES) + 1) + "|")
        for way in WAYS:
            cells = []
            for values in zip(*(run[folder.name][way] for run in runs), strict=True):
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            print(f"| {way} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
