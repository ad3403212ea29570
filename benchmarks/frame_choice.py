"""Which part of which frames the appearance stream should see: accuracy on held-out groups.

    python -m benchmarks.frame_choice FOLDER --data=runs/real_sets [--source=efficientnet_lite0]

`--data` is the output of `benchmarks.real_sets FOLDER`, whose prepared videos and motion features
are used. A motion-guided crop is a square of a share of the shorter side that holds most of the
motion around its frame, less the median motion. Every accuracy is of ridge regression
(`training/ridge.py`) on groups that are held out of each training list, in percent: appearance
alone, and with motion at the best of its shares. Test lists are not looked at.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from flax import nnx
from PIL import Image

from moclip_jax.configs import video_folder
from moclip_jax.input_pipeline.datasets.records import clip_from_record
from moclip_jax.input_pipeline.images import RESAMPLE, clip_image
from moclip_jax.models.clip import normalize_images
from moclip_jax.models.inference import clip_for_inference
from moclip_jax.pretrained import load_tower
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import Progress
from moclip_jax.training import ridge
from moclip_jax.training.features import load_features
from moclip_jax.training.prepare import open_dataset, video_splits

SHARES = (1.0, 0.75, 0.5)
_AROUND = 8


def motion_energy(clip: Any, frame: int) -> np.ndarray:
    """Return motion around a frame on the grid, float64 `[gh, gw]`."""
    frames = np.arange(max(frame - _AROUND, 0), min(frame + _AROUND, clip.num_frames - 1) + 1)
    motion = clip.motion.cells(frames).astype(np.float64)
    motion -= np.median(motion, axis=(1, 2), keepdims=True)
    return np.hypot(motion[..., 0], motion[..., 1]).sum(0)


def best_square(energy: np.ndarray, share: float) -> tuple[float, float]:
    """Return top and left, from 0 to 1 of the room there is, of the square of most energy."""
    rows, columns = energy.shape
    side = max(round(share * min(rows, columns)), 1)
    total = np.pad(energy, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
    inside += total[:-side, :-side]
    # The middle of all that are equally good, so that no motion gives the central crop.
    good = np.argwhere(inside >= inside.max() * (1 - 1e-9)).mean(0)
    room = np.maximum(np.array(inside.shape) - 1, 1)
    return float(good[0] / room[0]) if inside.shape[0] > 1 else 0.5, float(good[1] / room[1])


def crop(jpeg: bytes, energy: np.ndarray, share: float, size: int, resample: str) -> np.ndarray:
    """Return the square with most motion, uint8 `[size, size, 3]`."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    side = round(share * min(image.size))
    down, across = best_square(energy, share)
    left, top = (image.width - side) * across, (image.height - side) * down
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), RESAMPLE[resample], box))


def features_of(folder: Path, data: Path, source: str) -> dict[str, dict[str, np.ndarray]]:
    """Return float32 `[8, D]` of every video by name and variant."""
    config = video_folder.get_config()
    config.dataset.videos = str(folder)
    config.dataset.data_dir = str(data / folder.name / "data")
    dataset = open_dataset(config, data / folder.name)
    tower, _ = load_tower(source)
    prepared, size = tower.config.preprocessing, tower.config.image_size
    graph, state = nnx.split(clip_for_inference(tower, "float32"))

    @jax.jit
    def encode(state: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state).image_features(normalize_images(images, prepared))

    names = ("name", "num_frames", "is_intra", "displacements", "frames", "frame_indices")
    found: dict[str, dict[str, np.ndarray]] = {}
    progress = Progress(len(dataset.index), folder.name, "videos")
    for record in tf.data.TFRecordDataset(dataset.records()):
        example = {k: v.numpy() for k, v in dataset.parse(record, names).items()}
        count = int(example["num_frames"])
        clip = clip_from_record(example, dataset.spec, range(count))
        middle = int(np.searchsorted(clip.frame_indices, count // 2))
        kept = [i for i in range(len(clip.frames)) if i != middle or len(clip.frames) <= 8]
        kept = (kept * 8)[:8] if len(kept) < 8 else kept[:8]
        images = {
            "centre": [
                clip_image(
                    clip.frames[i],
                    size,
                    prepared.resize_size,
                    prepared.resample,
                    square=prepared.square,
                )
                for i in kept
            ]
        }
        energies = [motion_energy(clip, int(clip.frame_indices[i])) for i in kept]
        for share in SHARES:
            images[f"motion {share}"] = [
                crop(clip.frames[i], energy, share, size, prepared.resample)
                for i, energy in zip(kept, energies, strict=True)
            ]
        stacked = np.concatenate([np.stack(each) for each in images.values()])
        rows = np.asarray(encode(state, stacked)).reshape(len(images), 8, -1)
        name = example["name"].decode()
        found[name] = dict(zip(images, rows, strict=True))
        progress.advance()
    progress.done()
    return found


def held_out(
    streams: list[np.ndarray],
    tested: list[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    shares: Any,
) -> float:
    """Return the accuracy of the best share of the last stream.

    Args:
      streams: features to train on, each `[n, views, D]`.
      tested: features to test on, each `[n, 1, D]`.
      labels: int `[n]`.
      groups: `[n]`, names of groups that must not be on both sides.
      shares: of the last stream, of which the one of least squared error is taken.
    """
    streams = [np.concatenate(pair, axis=1) for pair in zip(streams, tested, strict=True)]
    views = streams[0].shape[1]
    flat = [x.reshape(len(labels) * views, -1) for x in streams]
    flat = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in flat]
    rotated = [ridge._principal_components(x, x.mean(0))[0] for x in flat]
    owner = np.repeat(np.arange(len(labels)), views)
    fold = np.unique(groups, return_inverse=True)[1][owner] % 5
    own, classes = labels[owner], labels.max() + 1
    best = (np.inf, 0.0)
    for share in shares:
        x, scores = ridge._weighed(rotated, share), np.empty((len(owner), classes))
        for number in np.unique(fold):
            held = fold == number
            # The last view is the one to test on.
            used = ~held & (np.arange(len(owner)) % views < views - 1)
            kernel, bias = ridge._solve(x[used], own[used], classes)
            scores[held] = x[held] @ kernel + bias
        mean = scores.reshape(len(labels), views, -1)[:, -1]
        error = np.square(mean - 2.0 * np.eye(classes)[labels] + 1).mean()
        best = min(best, (error, float((mean.argmax(1) == labels).mean())))
    return best[1]


def measure(folder: Path, data: Path, source: str) -> None:
    """Print the table of one data set."""
    found = features_of(folder, data, source)
    table: dict[str, list[list[float]]] = {}
    for split in range(1, len(list(folder.glob("testlist*.txt"))) + 1):
        config = video_folder.get_config()
        config.dataset.videos, config.dataset.split = str(folder), split
        config.dataset.data_dir = str(data / folder.name / "data")
        dataset = open_dataset(config, data / folder.name)
        names = video_splits(config, dataset)["train"]
        entries = {entry.name: entry for entry in dataset.index}
        groups = np.array([entries[name].group for name in names])
        stored = load_features(
            data / folder.name / f"split{split}" / "features", "train", len(names)
        )
        motion, labels = stored.motion.mean((1, 2))[:, None], stored.label
        each = {v: np.stack([found[n][v] for n in names]) for v in next(iter(found.values()))}
        rng = np.random.default_rng(0)
        # One frame of each of four pairs of neighbours, in four draws; and always the first.
        pairs = rng.integers(2, size=(len(names), 4, 4)) + 2 * np.arange(4)[None, None]
        drawn = np.take_along_axis(each["centre"][:, None], pairs[..., None], axis=2).mean(2)
        variants = {v: x.mean(1)[:, None] for v, x in each.items()}
        variants["centre, 4 frames"] = each["centre"][:, ::2].mean(1)[:, None]
        variants["centre, 4 frames, one drawn of each segment"] = drawn
        for share in SHARES:
            name = f"motion {share}"
            variants[f"centre + {name}"] = np.concatenate(
                [variants["centre"], variants[name]], axis=2
            )
        for variant, x in variants.items():
            views = x.shape[1]
            test = variants["centre, 4 frames"] if views > 1 else x
            pair, tested = [np.repeat(motion, views, axis=1), x], [motion, test]
            table.setdefault(variant, []).append(
                [
                    held_out([x], [test], labels, groups, (1.0,)),
                    held_out(pair, tested, labels, groups, ridge.SHARES),
                ]
            )
    print(f"\n{folder.name}, {source}: appearance, fusion")
    for variant, rows in table.items():
        print(f"| {variant} |", " | ".join(f"{100 * v:.1f}" for v in np.mean(rows, 0)), "|")


def main() -> int:
    """Measure every data set of a folder."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.frame_choice", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--source", default="efficientnet_lite0")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        if not arguments.only or folder.name in arguments.only.split(","):
            measure(folder, arguments.data, arguments.source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
