"""Accuracy on folders of real video: every list and several seeds, with mean and spread.

    python -m benchmarks.real_sets FOLDER [--out=runs/real_sets] [--seeds=3] [--set=FIELD=VALUE]

Every folder in FOLDER that has `classInd.txt` is a data set for `configs/video_folder.py`, with as
many splits as it has lists. Where the encoder differs from class to class, it gives the class away.
So accuracy is also reported within each encoder family, the classes whose videos have the same
frame rate and kind of GOP, with the family taken as known.
"""

import argparse
import ast
import statistics
from pathlib import Path
from typing import Any

import av
import numpy as np
from ml_collections import ConfigDict

from moclip_jax.configs import video_folder
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.progress import say
from moclip_jax.training.splits import format_splits, run_splits

# A GOP of more frames is long: the encoder sets I-frames where it needs them.
_LONG_GOP = 30


def families(folder: Path) -> dict[str, list[int]]:
    """Return the classes by how their first video is encoded, as positions in sorted order."""
    found: dict[str, list[int]] = {}
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    for number, path in enumerate(classes):
        with av.open(str(min(path.iterdir()))) as container:
            stream = container.streams.video[0]
            packets = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
            gop = "long GOP" if len(packets) > _LONG_GOP * sum(packets) else "short GOP"
            name = f"{stream.codec.name} {float(stream.average_rate):.5g} fps, {gop}"
        found.setdefault(name, []).append(number)
    return found


def within_family(workdir: Path, classes: list[int], row: str) -> float:
    """Return the share of the family's test videos that are right among its classes."""
    scores = np.load(workdir / "evaluate" / "scores.npz")
    rows = np.isin(scores["label"], classes)
    best = np.array(classes)[scores[row][rows][:, classes].argmax(1)]
    return float((best == scores["label"][rows]).mean())


def measure(folder: Path, workdir: Path, seeds: int, changes: dict[str, Any]) -> None:
    """Run all lists of one data set and print its tables."""
    config: ConfigDict = video_folder.get_config()
    config.dataset.videos = str(folder)
    # Measured, not used: nothing is exported.
    config.stages = "prepare,motion,features,fusion,evaluate"
    config.update_from_flattened_dict(changes)
    lists = len(list(folder.glob("testlist*.txt")))
    summary = run_splits(config, workdir, lists, seeds)
    print(f"\n{folder.name}: {lists} lists, {seeds} seeds, top-1 in percent")
    print(format_splits(summary))
    runs = "split*_seed*" if seeds > 1 else "split[0-9]"  # Not those of other calls.
    for name, classes in families(folder).items():
        for row in summary["mean"]:
            each = [
                within_family(path.parent.parent, classes, row)
                for path in sorted(workdir.glob(f"{runs}/evaluate/scores.npz"))
            ]
            spread = statistics.stdev(each) if len(each) > 1 else 0.0
            print(
                f"{row:<10} within {name} ({len(classes)} classes): "
                f"{100 * statistics.mean(each):.1f} +- {100 * spread:.1f}"
            )


def parse_changes(settings: list[str]) -> dict[str, Any]:
    """Return the settings FIELD=VALUE of a command line by field."""
    return {name: _value(text) for name, _, text in (s.partition("=") for s in settings)}


def _value(text: str) -> Any:
    """Return a number, a tuple or the like if the text is one in Python, or else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main() -> int:
    """Measure every data set of a folder."""
    use_compilation_cache()
    parser = argparse.ArgumentParser("benchmarks.real_sets", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real_sets"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of data sets, separated by commas")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    changes = parse_changes(arguments.set)
    for folder in sorted(path.parent for path in arguments.folder.glob("*/classInd.txt")):
        if not arguments.only or folder.name in arguments.only.split(","):
            say(f"=== {folder.name}")
            measure(folder, arguments.out / folder.name, arguments.seeds, changes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
