"""Run every published split of a data set, then give mean and spread in one table.

The runs are DIR/split1, DIR/split2 and so on, over the same prepared videos; what is there already
is not run again.
"""

import copy
import functools
import statistics
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import cli, distributed

_SPLITS = flags.DEFINE_integer("num_splits", 3, "how many splits the data set has", lower_bound=2)


def run_splits(config: ConfigDict, workdir: Path, num_splits: int) -> dict[str, Any]:
    """Runs every split and returns `mean` and `stdev` of top-1 for each row, and all results.

    Args:
      config: the whole configuration; its own `dataset.split` does not matter.
      workdir: folder of all runs.
      num_splits: splits to run, from 1.

    Returns:
      `{"mean": {row: top1}, "stdev": {row: top1}, "splits": [results, ...]}` with top-1 from 0 to 1
      and the sample standard deviation; also in `workdir/splits.json`.

    Raises:
      ValueError: the stages to run do not include `evaluate`.
    """
    from moclip_jax.config import stages_of
    from moclip_jax.runtime.files import write_json
    from moclip_jax.runtime.progress import say
    from moclip_jax.training import pipeline

    if "evaluate" not in stages_of(config):
        raise ValueError("config.stages must include evaluate, whose results are compared")
    results = []
    for split in range(1, num_splits + 1):
        say(f"== split {split} of {num_splits}")
        changed = copy.deepcopy(config)
        changed.dataset.split = split
        changed.dataset.data_dir = config.dataset.data_dir or str(workdir / "data")
        result = pipeline.run(changed, workdir / f"split{split}")
        assert result is not None
        results.append(result)
    top1 = {row: [r["rows"][row]["top1"] for r in results] for row in results[0]["rows"]}
    summary = {
        "mean": {row: statistics.mean(values) for row, values in top1.items()},
        "stdev": {row: statistics.stdev(values) for row, values in top1.items()},
        "splits": results,
    }
    distributed.run_on_main(functools.partial(write_json, workdir / "splits.json", summary))
    return summary


def format_splits(summary: dict[str, Any]) -> str:
    """Returns one line a row: top-1 in percent of each split, mean and standard deviation."""
    numbers = range(1, len(summary["splits"]) + 1)
    lines = [f"{'row':<10}" + "".join(f"{f'split {n}':>9}" for n in numbers) + "     mean   spread"]
    for row, mean in summary["mean"].items():
        each = "".join(f"{100 * r['rows'][row]['top1']:9.1f}" for r in summary["splits"])
        lines.append(f"{row:<10}{each}{100 * mean:9.1f}{100 * summary['stdev'][row]:9.1f}")
    return "\n".join(lines)


def main(config: ConfigDict, workdir: Path) -> None:
    """Runs the splits and prints their table."""
    summary = run_splits(config, workdir, _SPLITS.value)
    if distributed.is_main_process():
        print(format_splits(summary))


if __name__ == "__main__":
    cli.start(main, ("--config=configs/ucf101.py --workdir=runs/ucf101",))
