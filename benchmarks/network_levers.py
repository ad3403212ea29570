"""What a convolutional motion network gains from each lever of a recipe for small data.

    python -m benchmarks.network_levers FOLDER [--data=runs/real_sets] [--seeds=2] [--only=NAMES]

Every folder in FOLDER that has `classInd.txt` is a data set, as in `benchmarks.real_sets`, whose
prepared videos are used from its output. Of list 1's training videos a third of the groups is held
out in turn, as `training/fisher.py` does; the test list is not looked at. The input is that of the
Fisher vectors: motion of 16-pixel blocks, windows of 16 frames, less the median of each frame,
summed over 4 frames: 8 channels. The network has four residual blocks (0.16 M parameters); scores
are averaged over windows. The last rows are Fisher vectors on the same folds, and both together.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from moclip_jax.config import motion_network_config
from moclip_jax.configs import video_folder
from moclip_jax.models.moclip import motion_network
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.training import fisher
from moclip_jax.training.features import load_features
from moclip_jax.training.prepare import open_dataset, video_splits

_FOLDS = 3
_BATCH = 16
_WINDOWS = 3  # of each video in a step


@dataclasses.dataclass(frozen=True)
class Levers:
    """A recipe; the default is Adam at a constant rate on the fields as they are."""

    epochs: int = 40
    schedule: str = "constant"
    weight_decay: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    drop_path: float = 0.0
    dropout: float = 0.0
    rate: float = 0.0  # the schedule's own
    hidden: int = 0  # of a head on cached features
    crop: float = 1.0
    flip: bool = False
    amplitude: float = 0.0


ONE_CYCLE = Levers(schedule="one cycle")
RECIPE = Levers(schedule="one cycle", flip=True, crop=0.7, smoothing=0.1, weight_decay=0.05)
VARIANTS = {
    "constant learning rate": Levers(),
    "cosine": Levers(schedule="cosine"),
    "one cycle": ONE_CYCLE,
    "one cycle, 100 epochs": dataclasses.replace(ONE_CYCLE, epochs=100),
    "one cycle + label smoothing 0.1": dataclasses.replace(ONE_CYCLE, smoothing=0.1),
    "one cycle + mixup of fields 0.2": dataclasses.replace(ONE_CYCLE, mixup=0.2),
    "one cycle + weight decay 0.05": dataclasses.replace(ONE_CYCLE, weight_decay=0.05),
    "one cycle + mirroring": dataclasses.replace(ONE_CYCLE, flip=True),
    "one cycle + random crops": dataclasses.replace(ONE_CYCLE, crop=0.7),
    "one cycle + amplitude 0.2": dataclasses.replace(ONE_CYCLE, amplitude=0.2),
    "one cycle + stochastic depth 0.2": dataclasses.replace(ONE_CYCLE, drop_path=0.2),
    "one cycle + dropout 0.5": dataclasses.replace(ONE_CYCLE, dropout=0.5),
    "constant + weight averaging (EMA)": Levers(ema=0.99),
    "all: one cycle, mirroring, crops, smoothing, decay": RECIPE,
    "all + mixup, stochastic depth, dropout": dataclasses.replace(
        RECIPE, mixup=0.2, drop_path=0.2, dropout=0.5
    ),
    "all, 100 epochs": dataclasses.replace(RECIPE, epochs=100),
}


# A head on the cached features of the fusion, by gradient descent as `fusion.fit=gradient`.
HEAD = Levers(epochs=100, rate=1e-3, weight_decay=0.01, dropout=0.5, hidden=512)
HEAD_VARIANTS = {
    "head: constant learning rate": HEAD,
    "head: one cycle": dataclasses.replace(HEAD, schedule="one cycle"),
    "head: label smoothing 0.1": dataclasses.replace(HEAD, smoothing=0.1),
    "head: mixup of cached features 0.2": dataclasses.replace(HEAD, mixup=0.2),
    "head: weight averaging (EMA)": dataclasses.replace(HEAD, ema=0.99),
    "head: linear": dataclasses.replace(HEAD, hidden=0, dropout=0.0),
}


class Head(nnx.Module):
    """An MLP on features `[N, D]`."""

    def __init__(self, width: int, num_classes: int, levers: Levers, *, rngs: nnx.Rngs):
        hidden = levers.hidden
        self.hidden = nnx.Linear(width, hidden, rngs=rngs) if hidden else None
        self.dropout = nnx.Dropout(levers.dropout, rngs=rngs)
        self.head = nnx.Linear(hidden or width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return logits float32 `[N, classes]`."""
        x = jax.nn.relu(self.hidden(x)) if self.hidden is not None else x
        return self.head(self.dropout(x, deterministic=not train))


class Network(nnx.Module):
    """Residual 3 x 3 convolutions over a stack of block motion, float32 `[N, rows, columns, 8]`."""

    def __init__(self, num_classes: int, drop_path: float, dropout: float, *, rngs: nnx.Rngs):
        widths = (32, 48, 64, 96)
        self.stem = nnx.Conv(8, widths[0], (4, 4), strides=2, rngs=rngs)
        inputs = (widths[0], *widths)
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for width in inputs[:-1]])
        self.convs = nnx.List([nnx.Conv(inputs[n], widths[n], (3, 3), rngs=rngs) for n in range(4)])
        self.skips = nnx.List(
            [nnx.Linear(inputs[n], widths[n], use_bias=False, rngs=rngs) for n in range(4)]
        )
        self.norm = nnx.BatchNorm(widths[-1], rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)
        self.drop_path = drop_path
        self.rngs = rngs

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return logits float32 `[N, classes]`."""
        x = self.stem(x)
        for number, (norm, conv, skip) in enumerate(
            zip(self.norms, self.convs, self.skips, strict=True)
        ):
            branch = conv(jax.nn.relu(norm(x, use_running_average=not train)))
            if train and self.drop_path:
                kept = jax.random.bernoulli(self.rngs(), 1 - self.drop_path, (len(x), 1, 1, 1))
                branch = branch * kept / (1 - self.drop_path)
            x = skip(x) + branch
            if number == 1:
                x = nnx.avg_pool(x, (2, 2), (2, 2), padding="SAME")
        x = jax.nn.relu(self.norm(x, use_running_average=not train)).mean((1, 2))
        return self.head(self.dropout(x, deterministic=not train))


def stacks(fields: np.ndarray) -> np.ndarray:
    """From uint8 `[videos, windows, 16, rows, columns, 2]` to float32 `[..., rows, columns, 8]`."""
    motion = fields.astype(np.float32) - 128
    motion -= np.median(motion, axis=(3, 4), keepdims=True)
    videos, windows, frames, rows, columns, _ = motion.shape
    summed = motion.reshape(videos, windows, 4, frames // 4, rows, columns, 2).sum(3)
    summed = np.moveaxis(summed, 2, 4).reshape(videos, windows, rows, columns, 8)
    return np.sign(summed) * np.sqrt(np.abs(summed))


def augment(rng: np.random.Generator, batch: np.ndarray, levers: Levers) -> np.ndarray:
    """Mirror, crop and scale stacks `[N, rows, columns, 8]`."""
    if levers.flip and rng.random() < 0.5:
        batch = batch[:, :, ::-1].copy()
        batch[..., 0::2] *= -1
    if levers.crop < 1:
        rows, columns = batch.shape[1:3]
        share = rng.uniform(levers.crop, 1)
        height, width = max(4, round(share * rows)), max(4, round(share * columns))
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        cut = np.zeros_like(batch)
        cut[:, :height, :width] = batch[:, top : top + height, left : left + width]
        shift = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        batch = np.roll(cut, shift, axis=(1, 2))
    if levers.amplitude:
        batch = batch * np.float32(np.exp(rng.normal(0, levers.amplitude)))
    return batch


@functools.cache
def programs(width: int, num_classes: int, levers: Levers, steps: int):
    """Return the functions that make, train and apply a network, or a head on `width` features."""
    rate = {
        "constant": levers.rate or 1e-3,
        "cosine": optax.cosine_decay_schedule(2e-3, steps),
        "one cycle": optax.cosine_onecycle_schedule(steps, 4 * (levers.rate or 1e-3), 0.3),
    }[levers.schedule]
    optimizer = optax.adamw(rate, weight_decay=levers.weight_decay)

    def make(rngs):
        if width:
            return Head(width, num_classes, levers, rngs=rngs)
        return Network(num_classes, levers.drop_path, levers.dropout, rngs=rngs)

    graph = nnx.graphdef(make(nnx.Rngs(0)))

    @jax.jit
    def start(key):
        network = make(nnx.Rngs(key))
        _, params, rest = nnx.split(network, nnx.Param, ...)
        return params, rest, optimizer.init(params), params

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, x, target):
        params, rest, state, mean = carry

        def loss_of(params):
            network = nnx.merge(graph, params, rest, copy=True)
            loss = optax.softmax_cross_entropy(network(x, train=True), target).mean()
            return loss, nnx.split(network, nnx.Param, ...)[2]

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: levers.ema * m + (1 - levers.ema) * p, mean, params)
        return (params, rest, state, mean), loss

    @jax.jit
    def apply(carry, x):
        return jax.nn.log_softmax(nnx.merge(graph, carry[3], carry[1])(x, train=False))

    return start, step, apply


def train_and_score(
    x: np.ndarray, labels: np.ndarray, held: np.ndarray, classes: int, levers: Levers, seed: int
) -> np.ndarray:
    """Train on the videos that are not held out; return log probabilities of those that are."""
    rng = np.random.default_rng(seed)
    train = np.flatnonzero(~held)
    per_epoch = -(-len(train) // _BATCH)
    width = x.shape[-1] if x.ndim == 3 else 0
    start, step, apply = programs(width, classes, levers, levers.epochs * per_epoch)
    carry = start(jax.random.key(seed))
    eye = np.eye(classes, dtype=np.float32)
    for _ in range(levers.epochs):
        order = rng.permutation(np.resize(rng.permutation(train), per_epoch * _BATCH))
        for own in order.reshape(per_epoch, _BATCH):
            windows = rng.integers(x.shape[1], size=(_WINDOWS, _BATCH))
            batch = np.concatenate([augment(rng, x[own, each], levers) for each in windows])
            target = np.tile(eye[labels[own]], (_WINDOWS, 1))
            target = target * (1 - levers.smoothing) + levers.smoothing / classes
            if levers.mixup:
                share = np.float32(rng.beta(levers.mixup, levers.mixup))
                other = rng.permutation(len(batch))
                batch = share * batch + (1 - share) * batch[other]
                target = share * target + (1 - share) * target[other]
            carry, _ = step(carry, jnp.asarray(batch), jnp.asarray(target, jnp.float32))
    scores = np.zeros((int(held.sum()), classes))
    for window in range(x.shape[1]):
        scores += np.asarray(apply(carry, jnp.asarray(x[held, window])))
    return scores / x.shape[1]


def fisher_scores(config: Any, dataset: Any, names: Any, fields: np.ndarray) -> np.ndarray:
    """Return log probabilities of held-out groups by the Fisher vectors."""
    kept: list[np.ndarray] = []

    def scores(*arguments: Any) -> np.ndarray:
        kept.append(original(*arguments))
        return kept[-1]

    original = fisher.held_out_scores
    network = motion_network(
        motion_network_config(config.motion, len(dataset.class_names)), rngs=nnx.Rngs(config.seed)
    )
    with mock.patch.object(fisher, "held_out_scores", scores):
        fisher.fit_fisher_network(config, dataset, names, network)
    labels = dataset.labels(names)
    best = max(kept, key=lambda each: np.mean(each.argmax(1) == labels))
    return np.asarray(jax.nn.log_softmax(best / fisher.fit_temperature(best, labels)))


def measure(folder: Path, data: Path, seeds: int) -> None:
    """Print the table of one data set."""
    config = video_folder.get_config()
    config.dataset.videos = str(folder)
    config.dataset.data_dir = str(data / folder.name / "data")
    config.dataset.split = 1
    dataset = open_dataset(config, data / folder.name)
    names = video_splits(config, dataset)["train"]
    by_place = {
        int(place): video
        for rows, index in fisher._videos(config, dataset, names, (False,), "fields")
        for place, video in zip(index, rows, strict=True)
    }
    fields = np.stack([by_place[place] for place in range(len(names))])
    labels, classes = dataset.labels(names), len(dataset.class_names)
    entries = {entry.name: entry for entry in dataset.index}
    groups = np.unique([entries[name].group for name in names], return_inverse=True)[1]
    fold = (groups if groups.any() else np.arange(len(labels))) % _FOLDS
    x = stacks(fields)
    by_fisher = fisher_scores(config, dataset, names, fields)
    features = load_features(data / folder.name / "split1_seed0" / "features", "train", len(names))
    streams = [features.motion.mean((1, 2)), features.appearance.mean(1)]
    cached = np.concatenate(
        [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in streams], -1
    )
    print(f"\n{folder.name}, list 1: {len(names)} training videos, stacks of {x.shape[2:4]} blocks")
    right = 100 * np.mean(by_fisher.argmax(1) == labels)
    print(f"| Fisher vectors | {right:.1f} | |", flush=True)
    for name, levers in (VARIANTS | HEAD_VARIANTS).items():
        inputs = cached[:, None] if name in HEAD_VARIANTS else x
        own, both = [], []
        began = time.monotonic()
        for seed in range(seeds):
            scores = np.empty((len(labels), classes))
            for number in range(_FOLDS):
                held = fold == number
                scores[held] = train_and_score(inputs, labels, held, classes, levers, seed)
            own.append(100 * float(np.mean(scores.argmax(1) == labels)))
            both.append(100 * float(np.mean((scores + by_fisher).argmax(1) == labels)))
        spread = [statistics.stdev(each) if seeds > 1 else 0.0 for each in (own, both)]
        print(
            f"| {name} | {statistics.mean(own):.1f} +- {spread[0]:.1f} "
            f"| {statistics.mean(both):.1f} +- {spread[1]:.1f} "
            f"| {(time.monotonic() - began) / seeds / _FOLDS:.0f} s",
            flush=True,
        )


def main() -> int:
    """Measure every data set of a folder."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.network_levers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("runs/real_sets"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        if not arguments.only or folder.name in arguments.only.split(","):
            measure(folder, arguments.data, arguments.seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
