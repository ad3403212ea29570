"""Train on half of the classes, and test on these, on the other half by their words, and on all.

The base classes are the first half in the order of the labels, as in Zhou et al., "Conditional
Prompt Learning for Vision-Language Models" (CVPR 2022, arXiv 2203.05557). The runs are DIR/base or
DIR/base_seed0 and so on, over the same prepared videos; what is done there is not run again.
"""

import statistics
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import cli, distributed
from moclip_jax.training import repeat
from moclip_jax.training.transfer import WordScores, check_head, format_transfer, word_scores

flags.declare_key_flag("num_seeds")
# Of one run: {alpha: {base, novel, harmonic mean, all: top-1 from 0 to 1}}.
Accuracies = dict[str, dict[str, float]]


def accuracies(scores: WordScores, num_base: int) -> Accuracies:
    """Return top-1 for each alpha, the classes from `num_base` on being novel.

    `base` and `novel` choose among their own half of the classes, `all` among all.
    """
    from moclip_jax.training.metrics import topk_accuracy

    table = {}
    for alpha, logits in scores.logits.items():
        halves = []
        for first, end in ((0, num_base), (num_base, logits.shape[1])):
            videos = (scores.labels >= first) & (scores.labels < end)
            rejected = int(np.count_nonzero((scores.rejected >= first) & (scores.rejected < end)))
            own = logits[videos, first:end], scores.labels[videos] - first
            halves.append(topk_accuracy(*own, 1, rejected))
        base, novel = halves
        table[f"{alpha:.1f}"] = {
            "base": base,
            "novel": novel,
            "harmonic mean": statistics.harmonic_mean(halves),
            "all": topk_accuracy(logits, scores.labels, 1, len(scores.rejected)),
        }
    return table


def run_base_to_novel(config: ConfigDict, workdir: Path, num_seeds: int = 1) -> list[Accuracies]:
    """Return the accuracies of each seed; also in `workdir/base_to_novel.json`.

    Raises:
      ValueError: The head is not `text`, or the stages to run do not include `export`.
    """
    from moclip_jax.config import stages_of
    from moclip_jax.training.prepare import open_dataset

    check_head(config.fusion.head)
    if "export" not in stages_of(config):
        raise ValueError("config.stages must include export, whose model is tested")
    runs = []
    for seed in range(num_seeds):
        changed = repeat.shared_config(config, workdir / "data")
        changed.seed = config.seed + seed
        num_base = -(-len(open_dataset(changed, workdir).class_names) // 2)
        base = repeat.shared_config(changed, workdir / "data")
        base.selection.num_classes = num_base
        title, folder = repeat.of_seed("base classes", "base", changed.seed, num_seeds)
        repeat.run_titled(title, base, workdir / folder)
        novel = workdir / repeat.of_seed("", "all", changed.seed, num_seeds)[1]
        runs.append(accuracies(word_scores(workdir / folder, changed, novel), num_base))
        repeat.write_summary(workdir / "base_to_novel.json", {"seeds": runs})
    return runs


def format_base_to_novel(runs: list[Accuracies]) -> str:
    """Return a Markdown table of top-1 in percent, mean and sample standard deviation."""

    def cell(alpha: str, column: str) -> str:
        values = [100 * run[alpha][column] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    return format_transfer(
        {alpha: {column: cell(alpha, column) for column in row} for alpha, row in runs[0].items()}
    )


def main(config: ConfigDict, workdir: Path) -> None:
    """Run all seeds and print their table."""
    runs = run_base_to_novel(config, workdir, repeat.SEEDS.value)
    if distributed.is_main_process():
        print(format_base_to_novel(runs))


if __name__ == "__main__":
    cli.start(main, ("--config=demo_few --workdir=runs/novel \\\n      --num_seeds=3",))
