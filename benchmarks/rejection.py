"""How well `Prediction.rejected` tells videos of unknown classes from those of the trained ones.

    python -m benchmarks.rejection FOLDER [--out=runs/rejection] [--set=FIELD=VALUE]

Every folder in FOLDER with a `classInd.txt` is a data set for `configs/video_folder.py`. Each of
its lists is trained with the first half of the classes, and `predict` labels the test videos of all
classes. It prints how often a video is rejected, and the area under the ROC curve of the largest
probability: the share of pairs of a known and an unknown video in which the known one has more.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

import moclip_jax
from benchmarks.real_sets import parse_changes
from moclip_jax.configs import video_folder
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import say
from moclip_jax.training import pipeline
from moclip_jax.training.prepare import open_dataset, video_splits


def measure(folder: Path, workdir: Path, split: int, changes: dict[str, Any]) -> list[float]:
    """Train one list on half of the classes, and return a row of the table, 0 to 1.

    It is the area, the shares of known and of unknown videos that are rejected, and the share of
    known videos with the right label.
    """
    config = video_folder.get_config()
    config.dataset.videos, config.dataset.split = str(folder), split
    config.dataset.data_dir = str(workdir / "data")
    config.update_from_flattened_dict(changes)
    run = workdir / f"split{split}"
    dataset = open_dataset(config, run)
    names = video_splits(config, dataset)["test"]
    num_known = -(-len(dataset.class_names) // 2)
    config.selection.num_classes = num_known
    pipeline.run(config, run)
    predictions = list(moclip_jax.load(run).predict_batch([folder / name for name in names]))
    labels = dataset.labels(names)
    known = labels < num_known
    sure = np.array([prediction.probability for prediction in predictions])
    rejected = np.array([prediction.rejected for prediction in predictions])
    right = np.array([each.label for each in predictions]) == np.array(dataset.class_names)[labels]
    area = mannwhitneyu(sure[known], sure[~known]).statistic / (known.sum() * (~known).sum())
    shares = [rejected[known].mean(), rejected[~known].mean(), right[known].mean()]
    say(f"{folder.name}, list {split}: {known.sum()} known, {(~known).sum()} unknown videos")
    return [float(value) for value in (area, *shares)]


def main() -> int:
    """Measure every data set of a folder."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.rejection", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/rejection"))
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    lines = ["| set | AUROC | known rejected | unknown rejected | known right |", "|---" * 5 + "|"]
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        workdir, changes = arguments.out / folder.name, parse_changes(arguments.set)
        lists = range(1, len(list(folder.glob("testlist*.txt"))) + 1)
        rows = 100 * np.array([measure(folder, workdir, split, changes) for split in lists])
        spread = rows.std(0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
        cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(rows.mean(0), spread, strict=True)]
        lines.append(f"| {' | '.join([folder.name, *cells])} |")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
