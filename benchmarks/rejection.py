"""How well `Prediction.rejected` tells videos of unknown classes from those of the trained ones.

    python -m benchmarks.rejection FOLDER [--out=runs/rejection] [--set=FIELD=VALUE]

Every folder in FOLDER with a `classInd.txt` is a data set for `configs/video_folder.py`. Its first
list is trained with the first half of the classes, and `predict` labels the test videos of all
classes. It prints how often a video is rejected, and the area under the ROC curve of the largest
probability: the share of pairs of a known and an unknown video in which the known one has more.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu

import moclip_jax
from benchmarks.real_sets import parse_changes
from moclip_jax.configs import video_folder
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import say
from moclip_jax.training import pipeline
from moclip_jax.training.prepare import open_dataset, video_splits


def measure(folder: Path, workdir: Path, changes: dict[str, object]) -> str:
    """Train on half of the classes, and return a line of the table."""
    config = video_folder.get_config()
    config.dataset.videos = str(folder)
    config.update_from_flattened_dict(changes)
    dataset = open_dataset(config, workdir)
    names = video_splits(config, dataset)["test"]
    num_known = -(-len(dataset.class_names) // 2)
    config.selection.num_classes = num_known
    pipeline.run(config, workdir)
    model = moclip_jax.load(workdir)
    predictions = list(model.predict_batch([folder / name for name in names], num_workers=1))
    known = dataset.labels(names) < num_known
    sure = np.array([prediction.probability for prediction in predictions])
    rejected = np.array([prediction.rejected for prediction in predictions])
    area = mannwhitneyu(sure[known], sure[~known]).statistic / (known.sum() * (~known).sum())
    return (
        f"{folder.name}: {num_known} classes trained, {len(dataset.class_names) - num_known} not; "
        f"AUROC {area:.3f}, rejected {100 * rejected[known].mean():.1f} % of {known.sum()} known "
        f"and {100 * rejected[~known].mean():.1f} % of {(~known).sum()} unknown videos"
    )


def main() -> int:
    """Measure every data set of a folder."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.rejection", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/rejection"))
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    lines = []
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        say(f"=== {folder.name}")
        changes = parse_changes(arguments.set)
        lines.append(measure(folder, arguments.out / folder.name, changes))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
