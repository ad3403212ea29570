"""Whether dropping a stream in training, or a gate, helps a fusion head by gradient descent.

    python -m benchmarks.fusion_levers FOLDER [--data=runs/real_sets] [--only=NAMES]

On the cached features of `benchmarks.real_sets --seeds=3 --set clip.source=efficientnet_lite0`,
list 1, of unit length: an MLP of 512, 100 epochs of Adam, three folds of groups, three seeds.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from moclip_jax.configs import video_folder
from moclip_jax.training.features import load_features
from moclip_jax.training.prepare import open_dataset, video_splits

_FOLDS, _SEEDS, _BATCH, _EPOCHS = 3, 3, 64, 100


class Head(nnx.Module):
    """An MLP on both streams; a gate is a factor of each stream, of both streams' features."""

    def __init__(self, sizes: tuple[int, int], classes: int, gated: bool, *, rngs: nnx.Rngs):
        self.gate = nnx.Linear(sum(sizes), 2, rngs=rngs) if gated else None
        self.hidden = nnx.Linear(sum(sizes), 512, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(512, classes, rngs=rngs)

    def __call__(self, motion: jax.Array, appearance: jax.Array, *, train: bool) -> jax.Array:
        """Return logits."""
        x = jnp.concatenate([motion, appearance], -1)
        if self.gate is not None:
            share = 2 * jax.nn.softmax(self.gate(x))
            x = jnp.concatenate([share[:, :1] * motion, share[:, 1:] * appearance], -1)
        x = jax.nn.relu(self.hidden(x))
        return self.head(self.dropout(x, deterministic=not train))


def score(streams, labels, held, classes, gated, dropped, seed):
    """Train on the videos that are not held out; return logits of those that are."""
    rng, train = np.random.default_rng(seed), np.flatnonzero(~held)
    head = Head(tuple(x.shape[1] for x in streams), classes, gated, rngs=nnx.Rngs(seed))
    graph, params, rest = nnx.split(head, nnx.Param, ...)
    optimizer = optax.adamw(1e-3, weight_decay=0.01)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, motion, appearance, label):
        params, rest, state = carry

        def loss_of(params):
            head = nnx.merge(graph, params, rest, copy=True)
            logits = head(motion, appearance, train=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
            return loss, nnx.split(head, nnx.Param, ...)[2]

        gradients, rest = jax.grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), rest, state

    carry = (params, rest, optimizer.init(params))
    size = min(_BATCH, len(train))
    for _ in range(_EPOCHS * -(-len(train) // size)):
        own = rng.choice(train, size, replace=False)
        motion, appearance = (x[own].copy() for x in streams)
        lost = rng.random(size)
        motion[lost < dropped] = 0
        appearance[lost > 1 - dropped] = 0
        carry = step(carry, motion, appearance, labels[own])
    head = nnx.merge(graph, carry[0], carry[1])
    return np.asarray(head(*(x[held] for x in streams), train=False))


def main() -> int:
    """Print one line for each data set and head."""
    parser = argparse.ArgumentParser("benchmarks.fusion_levers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("runs/real_sets"))
    arguments = parser.parse_args()
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        config = video_folder.get_config()
        config.dataset.videos = str(folder)
        config.dataset.data_dir = str(arguments.data / folder.name / "data")
        dataset = open_dataset(config, arguments.data / folder.name)
        names = video_splits(config, dataset)["train"]
        run = arguments.data / folder.name / "split1_seed0"
        found = load_features(run / "features", "train", len(names))
        streams = [found.motion[:, 0].mean(1), found.appearance.mean(1)]
        streams = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in streams]
        labels, classes = dataset.labels(names), len(dataset.class_names)
        entries = {entry.name: entry for entry in dataset.index}
        fold = np.unique([entries[n].group for n in names], return_inverse=True)[1] % _FOLDS
        for gated, dropped in (
            (False, 0.0),
            (False, 0.15),
            (False, 0.3),
            (True, 0.0),
            (True, 0.15),
        ):
            right = []
            for seed in range(_SEEDS):
                best = np.empty(len(labels), int)
                for held in (fold == number for number in range(_FOLDS)):
                    logits = score(streams, labels, held, classes, gated, dropped, seed)
                    best[held] = logits.argmax(1)
                right.append(100 * np.mean(best == labels))
            print(
                f"| {folder.name} | gate {gated} | stream dropped {dropped} "
                f"| {np.mean(right):.1f} +- {np.std(right, ddof=1):.1f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
