"""Run every published split of a data set, with one or several seeds; report mean and spread.

The runs are DIR/split1, DIR/split2 and so on, or DIR/split1_seed0 and so on, over the same prepared
videos; what is done there is not run again.
"""

import itertools
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import cli, distributed
from moclip_jax.training import repeat

flags.declare_key_flag("num_seeds")
_SPLITS = flags.DEFINE_integer("num_splits", 3, "how many splits the data set has", lower_bound=2)


def run_splits(
    config: ConfigDict, workdir: Path, num_splits: int, num_seeds: int = 1
) -> dict[str, Any]:
    """Run every split, and return the mean and spread of each row, and all results.

    Args:
      config: The whole configuration; its own `dataset.split` is ignored.
      workdir: Folder of all runs.
      num_splits: Number of splits to run, from 1.
      num_seeds: Runs of each split.

    Returns:
      `mean`, `stdev` and `balanced_accuracy` over all runs, see `repeat.summarize`, and `splits`,
      the results of each run; also in `workdir/splits.json`. The results of a split's seeds follow
      one another.

    Raises:
      ValueError: The stages to run do not include `evaluate`.
    """
    results = []
    for split, seed in itertools.product(range(1, num_splits + 1), range(num_seeds)):
        changed = repeat.shared_config(config, workdir / "data")
        changed.dataset.split = split
        changed.seed = config.seed + seed
        title, folder = repeat.of_seed(
            f"split {split} of {num_splits}", f"split{split}", changed.seed, num_seeds
        )
        results.append(repeat.run_titled(title, changed, workdir / folder))
    summary = repeat.summarize([result["rows"] for result in results]) | {"splits": results}
    repeat.write_summary(workdir / "splits.json", summary)
    return summary


def format_splits(summary: dict[str, Any]) -> str:
    """Return a line for each row: top-1 in percent of each run, its mean and standard deviation.

    The last column is the mean balanced accuracy.
    """
    numbers = range(1, len(summary["splits"]) + 1)
    lines = [
        f"{'row':<10}"
        + "".join(f"{f'run {n}':>9}" for n in numbers)
        + "     mean  std dev  balanced"
    ]
    for row, mean in summary["mean"].items():
        each = "".join(f"{100 * r['rows'][row]['top1']:9.1f}" for r in summary["splits"])
        balanced = 100 * summary["balanced_accuracy"][row]
        lines.append(
            f"{row:<10}{each}{100 * mean:9.1f}{100 * summary['stdev'][row]:9.1f}{balanced:10.1f}"
        )
    return "\n".join(lines)


def main(config: ConfigDict, workdir: Path) -> None:
    """Run the splits and print their table."""
    summary = run_splits(config, workdir, _SPLITS.value, repeat.SEEDS.value)
    if distributed.is_main_process():
        print(format_splits(summary))


if __name__ == "__main__":
    cli.start(main, ("--config=configs/ucf101.py --workdir=runs/ucf101",))
