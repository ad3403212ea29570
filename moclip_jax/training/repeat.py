"""Run the pipeline several times over the same prepared videos, for commands that compare runs."""

import copy
import functools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import distributed

SEEDS = flags.DEFINE_integer(
    "num_seeds", 1, "runs of each split or variant, from config.seed on", lower_bound=1
)


def shared_config(config: ConfigDict, data_dir: Path) -> ConfigDict:
    """Return a copy of `config` for runs that share the prepared videos in `data_dir`.

    Its own `dataset.data_dir` comes first if set.

    Raises:
      ValueError: The stages to run do not include `evaluate`.
    """
    from moclip_jax.config import stages_of

    if "evaluate" not in stages_of(config):
        raise ValueError("config.stages must include evaluate, whose results are compared")
    config = copy.deepcopy(config)
    config.dataset.data_dir = config.dataset.data_dir or str(data_dir)
    return config


def of_seed(title: str, folder: str, seed: int, num_seeds: int) -> tuple[str, str]:
    """Return the title and the folder of a run, which name its seed if there are several."""
    return (f"{title}, seed {seed}", f"{folder}_seed{seed}") if num_seeds > 1 else (title, folder)


def run_titled(title: str, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Print a title, run the pipeline, and return its results."""
    from moclip_jax.runtime.progress import say
    from moclip_jax.training import pipeline

    say(f"== {title}")
    results = pipeline.run(config, workdir)
    assert results is not None
    return results


def summarize(runs: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return `mean` and `stdev` of top-1, and the mean `balanced_accuracy`, of each row.

    Args:
      runs: Rows of results, as in `results.json`, of each run.

    Returns:
      `{name: {row: value}}` from 0 to 1; `stdev` is the sample standard deviation, 0 for one run.
      The balanced accuracy is NaN if a run of an earlier version has none.
    """
    summary: dict[str, dict[str, float]] = {"mean": {}, "stdev": {}, "balanced_accuracy": {}}
    for row in runs[0]:
        top1 = [rows[row]["top1"] for rows in runs]
        balanced = [rows[row].get("balanced_accuracy", math.nan) for rows in runs]
        summary["mean"][row] = statistics.mean(top1)
        summary["stdev"][row] = statistics.stdev(top1) if len(top1) > 1 else 0.0
        summary["balanced_accuracy"][row] = statistics.mean(balanced)
    return summary


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary of all runs as JSON, on the main process."""
    from moclip_jax.runtime.files import write_json

    distributed.run_on_main(functools.partial(write_json, path, summary))
