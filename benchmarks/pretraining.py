"""What pretraining a motion network without labels gains, by the share of labels that follows.

    python -m benchmarks.pretraining FOLDER [--out=runs/pretraining] [--seeds=3]
    python -m benchmarks.pretraining FOLDER --choose=ucf101_11

Every folder in FOLDER that has `classInd.txt` is a data set for `configs/video_folder.py`; its
first list is used. The input is that of the Fisher vectors: motion of 16-pixel blocks, windows of
16 frames, less the median of each frame, summed over 4 frames: 8 channels. The network has four
residual blocks (0.16 M parameters). It starts at random, or is pretrained on all training videos of
the list without labels, in one of two ways:

* contrastive: two windows of one video agree, and differ from those of the other videos of the
  batch (InfoNCE: van den Oord et al., arXiv 1807.03748), each cropped where it moves (MCL: Li et
  al., "Motion-Focused Contrastive Learning of Video Representations", ICCV 2021, arXiv 2201.04029).
* masked: half of the field is hidden, in squares of 4 x 4 blocks, and its motion is predicted from
  the features (Xie et al., "SimMIM", CVPR 2022, arXiv 2111.09886).

Then it is trained on a share of the labels of each class (at least one video, the same videos for
each start), and top-1 is measured on the test videos, scores averaged over 12 windows. `--choose`
compares learning rates on held-out groups of a set's training videos, without the test list.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from moclip_jax.config import network_views
from moclip_jax.configs import video_folder
from moclip_jax.input_pipeline.batches import view_batches
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import Progress, say
from moclip_jax.training.prepare import open_dataset, video_splits

WAYS = ("random", "contrastive", "masked")
SHARES = (5, 10, 25, 100)
# Learning rate of all layers below the classifier, as a share of the classifier's.
RATES = (1.0, 0.25, 0.0)
_PEAK_RATE = 4e-3
_PRETRAINING_STEPS = 1200
_PRETRAINING_VIDEOS = 64  # of a step
_EPOCHS = 100
_LEAST_STEPS = 300
_VIDEOS = 16  # of a supervised step
_WINDOWS = {"contrastive": 2, "masked": 1, "supervised": 3}  # of each video in a step
_TEMPERATURE = 0.1
_SMALLEST_CROP = 0.5
_MASKED_SHARE = 0.5
_CELL = 4  # blocks on a side of a position of the features
_CHANNELS = 8

Rows = np.ndarray  # places of videos


class Videos(NamedTuple):
    """Stacks float32 `[videos, windows, rows, columns, 8]`, and the label and group of each."""

    stacks: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


class Network(nnx.Module):
    """Residual 3 x 3 convolutions over stacks `[N, rows, columns, 8]`, and all heads."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        widths = (32, 48, 64, 96)
        self.stem = nnx.Conv(_CHANNELS, widths[0], (4, 4), strides=2, rngs=rngs)
        inputs = (widths[0], *widths)
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for width in inputs[:-1]])
        self.convs = nnx.List([nnx.Conv(inputs[n], widths[n], (3, 3), rngs=rngs) for n in range(4)])
        self.skips = nnx.List(
            [nnx.Linear(inputs[n], widths[n], use_bias=False, rngs=rngs) for n in range(4)]
        )
        self.norm = nnx.BatchNorm(widths[-1], rngs=rngs)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)
        self.hidden = nnx.Linear(widths[-1], widths[-1], rngs=rngs)
        self.projection = nnx.Linear(widths[-1], 64, rngs=rngs)
        self.token = nnx.Param(jnp.zeros(_CHANNELS))
        # The mean motion of each quarter of a cell.
        self.decoder = nnx.Linear(widths[-1], 4 * _CHANNELS, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return features float32 `[N, rows / 4, columns / 4, 96]`."""
        x = self.stem(x)
        for number, (norm, conv, skip) in enumerate(
            zip(self.norms, self.convs, self.skips, strict=True)
        ):
            x = skip(x) + conv(jax.nn.relu(norm(x, use_running_average=not train)))
            if number == 1:
                x = nnx.avg_pool(x, (2, 2), (2, 2), padding="SAME")
        return jax.nn.relu(self.norm(x, use_running_average=not train))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return logits float32 `[N, classes]`."""
        return self.head(self.features(x, train=train).mean((1, 2)))


def mirror(x: jax.Array, key: jax.Array) -> jax.Array:
    """Mirror half of the videos `[N, windows, rows, columns, 8]`, all windows of one alike."""
    sign = jnp.tile(jnp.array([-1.0, 1.0]), _CHANNELS // 2)
    chosen = jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1, 1))
    return jnp.where(chosen, x[:, :, :, ::-1] * sign, x)


def motion_crop(x: jax.Array, key: jax.Array) -> jax.Array:
    """Cut a part of a stack `[rows, columns, 8]` around a block that moves; resize it to the whole.

    The block is drawn with a probability in proportion to its motion.
    """
    keys = jax.random.split(key, 3)
    sides = jnp.array(x.shape[:2], jnp.float32)
    place = jax.random.categorical(keys[0], jnp.log(jnp.abs(x).sum(-1).reshape(-1) + 1e-3))
    center = jnp.stack(jnp.divmod(place, x.shape[1])) + 0.5
    share = jax.random.uniform(keys[1], minval=_SMALLEST_CROP, maxval=1.0)
    corner = center - share * sides * jax.random.uniform(keys[2], (2,))
    corner = jnp.clip(corner, 0, (1 - share) * sides)
    return jax.image.scale_and_translate(
        x, x.shape, (0, 1), jnp.full(2, 1 / share), -corner / share, "linear", antialias=False
    )


def contrastive_loss(network: Network, x: jax.Array, key: jax.Array) -> jax.Array:
    """Return InfoNCE of videos, `[N, 2, rows, columns, 8]`."""
    mirror_key, crop_key = jax.random.split(key)
    clips = jnp.concatenate(jnp.unstack(mirror(x, mirror_key), axis=1))
    clips = jax.vmap(motion_crop)(clips, jax.random.split(crop_key, len(clips)))
    features = network.features(clips, train=True).mean((1, 2))
    vectors = network.projection(jax.nn.relu(network.hidden(features)))
    vectors /= jnp.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-6)
    agreement = vectors @ vectors.T / _TEMPERATURE
    agreement = jnp.where(jnp.eye(len(vectors), dtype=bool), -jnp.inf, agreement)
    other = (jnp.arange(len(vectors)) + len(x)) % len(vectors)
    return optax.softmax_cross_entropy_with_integer_labels(agreement, other).mean()


def masked_loss(network: Network, x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the error of the motion of hidden cells, as a share of its mean square."""
    mirror_key, hide_key = jax.random.split(key)
    clips = mirror(x, mirror_key).reshape(-1, *x.shape[2:])
    padding = ((0, 0), *((0, -side % _CELL) for side in clips.shape[1:3]), (0, 0))
    target = jnp.pad(clips, padding)
    rows, columns = target.shape[1] // _CELL, target.shape[2] // _CELL
    half = _CELL // 2
    target = target.reshape(len(clips), rows, 2, half, columns, 2, half, _CHANNELS).mean((3, 6))
    target = jnp.moveaxis(target, 2, 3).reshape(len(clips), rows, columns, -1)
    hidden = jax.random.bernoulli(hide_key, _MASKED_SHARE, (len(clips), rows, columns, 1))
    every = hidden.repeat(_CELL, 1).repeat(_CELL, 2)[:, : clips.shape[1], : clips.shape[2]]
    features = network.features(jnp.where(every, network.token[...], clips), train=True)
    error = jnp.where(hidden, network.decoder(features) - target, 0)
    return jnp.square(error).sum() / jnp.square(jnp.where(hidden, target, 0)).sum()


def supervised_loss(network: Network, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of all windows."""
    logits = network(x.reshape(-1, *x.shape[2:]), train=True)
    repeated = jnp.repeat(labels, x.shape[1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, repeated).mean()


LOSSES: dict[str, Any] = {
    "contrastive": contrastive_loss,
    "masked": masked_loss,
    "supervised": supervised_loss,
}


@functools.cache
def programs(num_classes: int) -> tuple[Any, Any, Any]:
    """Return the functions that make, train and apply a network."""
    graph = nnx.graphdef(Network(num_classes, rngs=nnx.Rngs(0)))
    adam = optax.scale_by_adam()

    @jax.jit
    def make(key: jax.Array) -> Any:
        return nnx.split(Network(num_classes, rngs=nnx.Rngs(key)), nnx.Param, ...)[1:]

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(
        way: str, carry: Any, stacks: Any, places: Any, last: Any, rate: Any, below: Any
    ) -> Any:
        params, rest, state = carry

        def loss_of(params: Any) -> Any:
            network = nnx.merge(graph, params, rest, copy=True)
            loss = LOSSES[way](network, stacks[places[0][:, None], places[1]], last)
            return loss, nnx.split(network, nnx.Param, ...)[-1]

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = adam.update(gradients, state, params)
        head, updates = updates["head"], jax.tree.map(lambda each: below * each, updates)
        updates["head"] = head
        params = jax.tree.map(lambda value, update: value - rate * update, params, updates)
        return (params, rest, state), loss

    @jax.jit
    def apply(params: Any, rest: Any, x: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(nnx.merge(graph, params, rest)(x, train=False))

    return make, step, apply


def train(
    way: str, start: Any, videos: Videos, rows: Rows, seed: int, progress: Progress, below: float
) -> tuple[Any, list[float]]:
    """Train on some of the videos with a one-cycle schedule; return the arrays and mean losses."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    supervised = way == "supervised"
    batch = _VIDEOS if supervised else min(_PRETRAINING_VIDEOS, len(rows))
    steps = supervised_steps(len(rows)) if supervised else _PRETRAINING_STEPS
    schedule = optax.cosine_onecycle_schedule(steps, _PEAK_RATE, 0.3)
    step = programs(int(videos.labels.max()) + 1)[1]
    # Copied, because the step takes the memory of its state.
    params, rest = jax.tree.map(jnp.copy, start)
    carry = params, rest, jax.jit(optax.scale_by_adam().init)(params)
    order = np.zeros(0, int)
    losses = []
    stacks = jnp.asarray(videos.stacks)
    for number in range(steps):
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(rows)])
        own, order = order[:batch], order[batch:]
        every = np.tile(np.arange(videos.stacks.shape[1]), (batch, 1))
        places = own, rng.permuted(every, axis=1)[:, : _WINDOWS[way]]
        last = videos.labels[own] if supervised else jax.random.fold_in(key, number)
        rate = np.float32(schedule(number))
        carry, loss = step(way, carry, stacks, places, last, rate, np.float32(below))
        losses.append(loss)
        loss.block_until_ready()
        progress.advance(places[1].size)
    tenths = np.array_split(np.array(jax.device_get(losses)), 10)
    return carry[:2], [round(float(each.mean()), 3) for each in tenths]


def supervised_steps(videos: int) -> int:
    """Return the number of supervised steps on a number of videos."""
    return max(_LEAST_STEPS, _EPOCHS * -(-videos // _VIDEOS))


def top1(arrays: Any, classes: int, videos: Videos, rows: Rows) -> float:
    """Return top-1 of some of the videos in percent, their scores averaged over windows."""
    apply = programs(classes)[2]
    x = videos.stacks[rows]
    scores = np.sum([apply(*arrays, x[:, window]) for window in range(x.shape[1])], axis=0)
    return 100 * float(np.mean(scores.argmax(1) == videos.labels[rows]))


def labelled(videos: Videos, rows: Rows, share: int, seed: int) -> np.ndarray:
    """Return a share of the rows of each class, at least one; larger shares hold smaller ones."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(videos.labels[rows]):
        own = rng.permutation(rows[videos.labels[rows] == label])
        chosen.append(own[: max(1, round(share / 100 * len(own)))])
    return np.sort(np.concatenate(chosen))


def load(folder: Path, out: Path, split: str) -> Videos:
    """Prepare the videos of `train` or `test` of list 1, or load what an earlier call prepared."""
    cache = out / folder.name / f"{split}.npz"
    if not cache.exists():
        config = video_folder.get_config()
        config.dataset.videos = str(folder)
        config.dataset.data_dir = str(out / folder.name / "data")
        config.dataset.split = 1
        dataset = open_dataset(config, out / folder.name)
        names = video_splits(config, dataset)[split]
        views = network_views(config, num_segments=config.motion.num_segments)
        found: dict[int, np.ndarray] = {}
        for batch in view_batches(dataset, names, motion=views, batch_size=8).as_numpy_iterator():
            rows = batch["motion"][batch["mask"], 0]
            found |= zip(batch["index"][batch["mask"]].tolist(), rows, strict=True)
        entries = {entry.name: entry for entry in dataset.index}
        groups = np.unique([entries[name].group for name in names], return_inverse=True)[1]
        fields = np.stack([found[place] for place in range(len(names))])
        np.savez(cache, stacks=to_stacks(fields), labels=dataset.labels(names), groups=groups)
    with np.load(cache) as arrays:
        return Videos(arrays["stacks"], arrays["labels"].astype(np.int32), arrays["groups"])


def to_stacks(fields: np.ndarray) -> np.ndarray:
    """From uint8 `[videos, windows, 16, rows, columns, 2]` to float32 `[..., rows, columns, 8]`."""
    motion = fields.astype(np.float32) - 128
    motion -= np.median(motion, axis=(3, 4), keepdims=True)
    videos, windows, frames, rows, columns, _ = motion.shape
    summed = motion.reshape(videos, windows, 4, frames // 4, rows, columns, 2).sum(3)
    summed = np.moveaxis(summed, 2, 4).reshape(videos, windows, rows, columns, _CHANNELS)
    return np.sign(summed) * np.sqrt(np.abs(summed))


def measure(
    videos: Videos, rows: Rows, test: Any, seed: int, progress: Progress, rates: Sequence[float]
) -> dict[str, Any]:
    """Return top-1 of each start and rate, for each share of labels, and losses of pretraining."""
    classes = int(videos.labels.max()) + 1
    result: dict[str, Any] = {"top1": {}, "losses": {}}
    for way in WAYS:
        start = programs(classes)[0](jax.random.key(seed))
        if way != "random":
            start, result["losses"][way] = train(way, start, videos, rows, seed, progress, 1.0)
        for below in rates:
            values: dict[int, float] = {}  # By the number of videos.
            subsets = [labelled(videos, rows, share, seed) for share in SHARES]
            for chosen in subsets:
                if len(chosen) not in values:
                    arrays, _ = train("supervised", start, videos, chosen, seed, progress, below)
                    values[len(chosen)] = top1(arrays, classes, *test)
            name = way if below == 1 else f"{way}, rate {below}"
            result["top1"][name] = [values[len(chosen)] for chosen in subsets]
            say(f"seed {seed}: {name} {np.round(result['top1'][name], 1)}")
        say(f"losses of pretraining: {result['losses'].get(way)}")
    return result


def stacks_to_train(videos: Videos, rows: Rows, rates: int) -> int:
    """Return the number of stacks that `measure` trains on, for the estimate of the time."""
    sizes = {len(labelled(videos, rows, share, 0)) for share in SHARES}
    steps = rates * len(WAYS) * sum(supervised_steps(size) for size in sizes)
    batch = min(_PRETRAINING_VIDEOS, len(rows)) * (_WINDOWS["contrastive"] + _WINDOWS["masked"])
    return steps * _VIDEOS * _WINDOWS["supervised"] + _PRETRAINING_STEPS * batch


def choose(folder: Path, out: Path, seeds: range) -> None:
    """Print top-1 on held-out groups by the learning rate below the classifier."""
    videos = load(folder, out, "train")
    held = videos.groups % 3 == 0
    rows, test = np.flatnonzero(~held), (videos, np.flatnonzero(held))
    total = len(seeds) * stacks_to_train(videos, rows, len(RATES))
    progress = Progress(total, "training", "stacks")
    results = [measure(videos, rows, test, seed, progress, RATES) for seed in seeds]
    print_table(f"{folder.name}, held-out groups of list 1", results)


def compare(folders: Sequence[Path], out: Path, seeds: range) -> None:
    """Print top-1 on the test lists; results that an earlier call has kept are not made again."""
    data = {each: (load(each, out, "train"), load(each, out, "test")) for each in folders}
    rows = {each: [np.arange(len(part.labels)) for part in data[each]] for each in folders}
    files = {(n, each): out / each.name / f"seed{n}.json" for n in seeds for each in folders}
    missing = [key for key, file in files.items() if not file.exists()]
    total = sum(stacks_to_train(data[each][0], rows[each][0], 1) for _, each in missing)
    progress = Progress(total, "training", "stacks")
    for seed, folder in missing:
        say(f"=== {folder.name}")
        (videos, test), (trained, tested) = data[folder], rows[folder]
        result = measure(videos, trained, (test, tested), seed, progress, (1.0,))
        files[seed, folder].write_text(json.dumps(result))
    for folder in folders:
        found = [json.loads(files[seed, folder].read_text()) for seed in seeds]
        print_table(f"{folder.name}, list 1", found)


def cell(values: Sequence[float], sign: str = "") -> str:
    """Return mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def print_table(name: str, results: list[dict[str, Any]]) -> None:
    """Print top-1 of one set, and the differences to the random start of the same seed."""
    print(f"\n{name}, top-1 in percent, {len(results)} seeds\n")
    print(f"| start | {' | '.join(f'{share} %' for share in SHARES)} |")
    print("|---" * (len(SHARES) + 1) + "|")
    tops = [{way: np.array(values) for way, values in each["top1"].items()} for each in results]
    for way in tops[0]:
        columns = np.stack([each[way] for each in tops], 1).tolist()
        print(f"| {way} | {' | '.join(map(cell, columns))} |")
    for way in list(tops[0])[1:]:
        columns = np.stack([each[way] - each["random"] for each in tops], 1).tolist()
        print(f"| {way} less random | {' | '.join(cell(column, '+') for column in columns)} |")


def main() -> int:
    """Measure every data set of a folder and print their tables."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.pretraining", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--choose", default="", help="a data set on which to compare rates")
    arguments = parser.parse_args()
    out, seeds = arguments.out, range(arguments.seeds)
    if arguments.choose:
        choose(arguments.folder / arguments.choose, out, seeds)
    else:
        compare(sorted(each.parent for each in arguments.folder.glob("*/classInd.txt")), out, seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
