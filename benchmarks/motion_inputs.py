"""What block motion the Fisher vectors are best made of: accuracy on held-out groups.

    python -m benchmarks.motion_inputs FOLDER [--data=runs/real_sets] [--seeds=1] [--only=NAMES]

Every folder in FOLDER that has `classInd.txt` is a data set, as in `benchmarks.real_sets`, whose
prepared videos are used if `--data` names its output. A variant is one or several inputs, whose
Fisher vectors stand side by side. Accuracies are of the groups that are held out in turn of each
training list, mirror images included if they help, as `training/fisher.py` decides; test lists are
not looked at.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flax import nnx

from moclip_jax.codec.camera import fit_camera
from moclip_jax.config import motion_network_config
from moclip_jax.configs import video_folder
from moclip_jax.models.moclip import motion_network
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.training import fisher
from moclip_jax.training.prepare import open_dataset, video_splits


def as_they_are(motion: np.ndarray) -> np.ndarray:
    """Leave the motion as it is, float32 `[S, window, rows, columns, 2]`."""
    return motion


def without_median(motion: np.ndarray) -> np.ndarray:
    """Subtract the median motion of each frame."""
    return motion - np.median(motion, axis=(2, 3), keepdims=True)


def without_camera(motion: np.ndarray) -> np.ndarray:
    """Subtract each frame's robust affine camera motion."""
    rows, columns = motion.shape[2:4]
    places = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    places = places.astype(np.float64)
    ones = np.column_stack([places, np.ones(len(places))])
    result = np.empty_like(motion)
    for index in np.ndindex(motion.shape[:2]):
        own = motion[index].reshape(-1, 2).astype(np.float64)
        camera = ones @ fit_camera(places, own).T
        result[index] = (own - camera).reshape(rows, columns, 2)
    return result


def accumulated(motion: np.ndarray) -> np.ndarray:
    """Return the sum of the motion of a frame and of up to three before it in its window."""
    total = np.cumsum(motion, axis=1)
    total[:, 4:] -= total[:, :-4].copy()
    return total


INPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "each frame": as_they_are,
    "less the median": without_median,
    "less affine camera motion": without_camera,
    "accumulated over 4 frames": accumulated,
}
VARIANTS = [(name,) for name in INPUTS] + [("each frame", name) for name in list(INPUTS)[1:]]


def held_out(config: Any, dataset: Any, names: Sequence[str], fields: np.ndarray) -> dict[str, Any]:
    """Fit the motion model to fields, and return what it classified held-out groups by."""
    kept: dict[str, Any] = {}

    def videos(
        *arguments: Any,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(names), 8):
            index = np.arange(start, min(start + 8, len(names)))
            for flip in arguments[3]:
                own = fields[index]
                yield (fisher.flip_windows(own) if flip else own), index

    def scores(vectors: np.ndarray, *rest: Any) -> np.ndarray:
        kept.update(vectors=vectors.copy(), rest=rest)
        return original(vectors, *rest)

    original = fisher.held_out_scores
    network = motion_network(
        motion_network_config(config.motion, len(dataset.class_names)), rngs=nnx.Rngs(config.seed)
    )
    with (
        mock.patch.object(fisher, "_videos", videos),
        mock.patch.object(fisher, "held_out_scores", scores),
    ):
        fisher.fit_fisher_network(config, dataset, names, network)
    return kept


def accuracy(kept: Sequence[dict[str, Any]]) -> float:
    """Return the share of held-out videos that Fisher vectors side by side classify."""
    vectors = np.concatenate([each["vectors"] for each in kept], axis=2)
    labels = kept[0]["rest"][0]
    copies = range(1, len(vectors) + 1)
    scores = [fisher.held_out_scores(vectors[:n], *kept[0]["rest"]) for n in copies]
    return max(float(np.mean(each.argmax(1) == labels)) for each in scores)


def measure(folder: Path, data: Path, seeds: int) -> None:
    """Print the table of one data set."""
    config = video_folder.get_config()
    config.dataset.videos = str(folder)
    config.dataset.data_dir = str(data / folder.name / "data")
    found: dict[tuple[str, ...], list[float]] = {variant: [] for variant in VARIANTS}
    seconds = dict.fromkeys(INPUTS, 0.0)
    lists = len(list(folder.glob("testlist*.txt")))
    for split in range(1, lists + 1):
        config.dataset.split = split
        dataset = open_dataset(config, data / folder.name)
        names = video_splits(config, dataset)["train"]
        by_place = {
            int(place): video
            for rows, index in fisher._videos(config, dataset, names, (False,), "fields")
            for place, video in zip(index, rows, strict=True)
        }
        fields = np.stack([by_place[place] for place in range(len(names))])
        for seed in range(seeds):
            config.seed = seed
            kept = {}
            for name, change in INPUTS.items():
                began = time.process_time()
                changed = np.stack([change(video.astype(np.float32) - 128) for video in fields])
                seconds[name] += time.process_time() - began
                rounded = np.clip(np.rint(changed), -127, 127)
                kept[name] = held_out(config, dataset, names, (rounded + 128).astype(np.uint8))
            for variant in VARIANTS:
                found[variant].append(accuracy([kept[name] for name in variant]))
            print(split, seed, {"+".join(v): round(a[-1], 4) for v, a in found.items()}, flush=True)
    print(f"\n{folder.name}: {lists} lists, {seeds} seeds, held-out groups, percent")
    for variant, each in found.items():
        spread = statistics.stdev(each) if len(each) > 1 else 0.0
        cost = 1000 * sum(seconds[name] for name in variant) / (seeds * lists * len(names))
        print(
            f"| {' + '.join(variant)} | {100 * statistics.mean(each):.1f} +- {100 * spread:.1f} "
            f"| {len(variant)} | {cost:.0f} ms |",
            flush=True,
        )


def main() -> int:
    """Measure every data set of a folder."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.motion_inputs", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("runs/real_sets"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        if not arguments.only or folder.name in arguments.only.split(","):
            measure(folder, arguments.data, arguments.seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
