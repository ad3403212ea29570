"""Train with few videos of each class, and compare numbers of them in one table.

The runs are DIR/shots2_seed0, DIR/shots2_seed1 and so on, over the same prepared videos; what is
done there is not run again. The videos of a smaller number are among those of a larger one with the
same seed, see `moclip_jax.input_pipeline.datasets.shots`.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import cli, distributed
from moclip_jax.training import repeat

flags.declare_key_flag("num_seeds")
_SHOTS = flags.DEFINE_list(
    "shots", ["2", "4", "8", "16"], "videos of each class, separated by commas; 0 for all"
)
flags.register_validator(
    "shots", lambda shots: all(map(str.isdecimal, shots)), "must be numbers such as 2,4,8,16"
)


def run_few_shot(
    config: ConfigDict, workdir: Path, shots: Sequence[int], num_seeds: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Run the recipe with each number of shots, and return the rows of each run.

    Args:
      config: The whole configuration; its own `selection.shots` is ignored.
      workdir: Folder of all runs.
      shots: Numbers of videos of each class.
      num_seeds: Runs of each number, which differ in the videos drawn too.

    Returns:
      `{shots: [{row: {...}}, ...]}`, for each seed rows as in `results.json`; also in
      `workdir/few_shot.json`.

    Raises:
      ValueError: The stages to run do not include `evaluate`.
    """
    table: dict[str, list[dict[str, Any]]] = {}
    for number, seed in itertools.product(shots, range(num_seeds)):
        changed = repeat.shared_config(config, workdir / "data")
        changed.selection.shots = number
        changed.seed = config.seed + seed
        # These runs are measured, not used.
        changed.stages = "prepare,motion,features,fusion,evaluate"
        title, folder = repeat.of_seed(f"{number} shots", f"shots{number}", changed.seed, num_seeds)
        rows = repeat.run_titled(title, changed, workdir / folder)["rows"]
        table.setdefault(str(number), []).append(rows)
        repeat.write_summary(workdir / "few_shot.json", table)
    return table


def format_few_shot(table: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of top-1 in percent, mean and sample standard deviation."""
    summaries = [repeat.summarize(runs) for runs in table.values()]
    heads = ["row", *(f"K={number}" if number != "0" else "all" for number in table)]
    lines = [heads, ["---"] * len(heads)] + [
        [row] + [f"{100 * s['mean'][row]:.1f} ± {100 * s['stdev'][row]:.1f}" for s in summaries]
        for row in summaries[0]["mean"]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(config: ConfigDict, workdir: Path) -> None:
    """Run all numbers of shots and print their table."""
    table = run_few_shot(config, workdir, list(map(int, _SHOTS.value)), repeat.SEEDS.value)
    if distributed.is_main_process():
        print(format_few_shot(table))


if __name__ == "__main__":
    cli.start(
        main,
        ("--config=configs/demo.py --workdir=runs/few_shot \\\n      --shots=2,4 --num_seeds=3",),
    )
