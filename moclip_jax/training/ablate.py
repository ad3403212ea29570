"""Compare variants of the recipe in one table.

The recipe runs once as configured and once for each variant, each in its own folder, with one or
several seeds. A stage whose settings a variant does not change is not run again: its folder is
linked.
"""

import functools
import itertools
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import cli, distributed
from moclip_jax.training import repeat

flags.declare_key_flag("num_seeds")
_VARIANTS = flags.DEFINE_list("variants", [], "variants to run, separated by commas; default: all")

# Name of a variant -> the fields that it changes.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "linear heads": {"fusion.hidden": 0},
    "features of unit length": {"fusion.normalize": True},
    "temporal heads": {"motion.head": "temporal", "fusion.head": "temporal"},
    "temporal fusion head": {"fusion.head": "temporal"},
    "attention head": {"fusion.head": "attention"},
    "attention head, 8 frames": {"fusion.head": "attention", "clip.frame": "uniform_8"},
    "EVL head, 8 frames": {"fusion.head": "evl", "clip.frame": "uniform_8"},
    "4 frames": {"clip.frame": "uniform_4"},
    "8 frames": {"clip.frame": "uniform_8"},
    "pooled CLIP features": {"clip.features": "pooled"},
    "random frame": {"clip.frame": "random"},
    "3 segments": {"evaluation.num_segments": 3},
    "8 segments": {"evaluation.num_segments": 8},
    "16 segments": {"evaluation.num_segments": 16},
    "25 segments": {"evaluation.num_segments": 25},
    "32 segments": {"evaluation.num_segments": 32},
    "raw vectors": {"motion.accumulated": False},
}
FRAMES_KEPT = 8


def variant_config(config: ConfigDict, changes: dict[str, Any], data_dir: Path) -> ConfigDict:
    """Return a copy of `config` with the fields of a variant changed.

    All variants share the prepared data, which keeps as many RGB frames as the largest needs.
    """
    changed = repeat.shared_config(config, data_dir)
    changed.video.clip_frames = max(FRAMES_KEPT, config.video.clip_frames)
    changed.update_from_flattened_dict(changes)
    return changed


def link_stages(config: ConfigDict, base: ConfigDict, workdir: Path, base_workdir: Path) -> None:
    """Link the stages of the base run that a variant does not change."""
    from moclip_jax.training.pipeline import stage_settings

    own, theirs = stage_settings(config), stage_settings(base)
    workdir.mkdir(parents=True, exist_ok=True)
    for stage in own:
        source, link = base_workdir / stage, workdir / stage
        if own[stage] == theirs[stage] and source.exists() and not link.exists():
            link.symlink_to(source.absolute())
    # Training and validation features do not depend on the test protocol.
    without = [
        {k: v for k, v in settings["features"].items() if k != "evaluation"}
        for settings in (own, theirs)
    ]
    if without[0] == without[1] and not (workdir / "features").exists():
        (workdir / "features").mkdir()
        for split in ("train", "validation"):
            source = base_workdir / "features" / split
            if source.exists():
                (workdir / "features" / split).symlink_to(source.absolute())


def run_ablations(
    config: ConfigDict, workdir: Path, variants: dict[str, dict[str, Any]], num_seeds: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Run every variant, and return the rows of each run; `base` is always run, and first.

    Args:
      workdir: Folder of all variants; what is done there is not run again.
      variants: Name to changed fields.
      num_seeds: Runs of each variant.

    Returns:
      `{variant: [{row: {...}}, ...]}`, for each seed rows as in `results.json`; also in
      `workdir/ablations.json`.

    Raises:
      ValueError: The stages to run do not include `evaluate`.
    """
    data_dir = workdir / "data"
    table: dict[str, list[dict[str, Any]]] = {}
    everything: dict[str, dict[str, Any]] = {"base": {}} | variants
    for (name, changes), seed in itertools.product(everything.items(), range(num_seeds)):
        base = variant_config(config, {}, data_dir)
        changed = variant_config(config, changes, data_dir)
        base.seed = changed.seed = config.seed + seed
        title, folder = repeat.of_seed(name, name.replace(" ", "_"), changed.seed, num_seeds)
        base_folder = repeat.of_seed("base", "base", changed.seed, num_seeds)[1]
        if name != "base":
            distributed.run_on_main(
                functools.partial(
                    link_stages, changed, base, workdir / folder, workdir / base_folder
                )
            )
            # A variant is measured, not used: only the base is exported.
            changed.stages = "prepare,motion,features,fusion,evaluate"
        rows = repeat.run_titled(title, changed, workdir / folder)["rows"]
        table.setdefault(name, []).append(rows)
        repeat.write_summary(workdir / "ablations.json", table)
    return table


def format_ablations(table: dict[str, list[dict[str, Any]]]) -> str:
    """Return a line for each variant: top-1 of each row in percent, and cost.

    Of several seeds it is the mean and the sample standard deviation. `balanced` is the balanced
    accuracy of the fusion, and so is the cost.
    """
    names = ("zero_shot", "clip_head", "motion", "fusion")
    spread = any(len(runs) > 1 for runs in table.values())
    width, cell = max(map(len, table)), 14 if spread else 9
    lines = [
        f"{'variant':<{width}}  "
        + "  ".join(f"{name:>{cell}}" for name in names)
        + "  balanced  GMACs/video"
    ]
    for variant, runs in table.items():
        summary = repeat.summarize(runs)
        # Without a text side there is no zero-shot row.
        cells = [
            f"{100 * summary['mean'][name]:.1f}"
            + (f" +- {100 * summary['stdev'][name]:4.1f}" if spread else "")
            if name in summary["mean"]
            else "-"
            for name in names
        ]
        lines.append(
            f"{variant:<{width}}  "
            + "  ".join(f"{text:>{cell}}" for text in cells)
            + f"  {100 * summary['balanced_accuracy']['fusion']:8.1f}"
            + f"  {runs[0]['fusion']['gflops']:11.3g}"
        )
    return "\n".join(lines)


def main(config: ConfigDict, workdir: Path) -> None:
    """Run the ablations and print their table."""
    unknown = sorted(set(_VARIANTS.value) - VARIANTS.keys())
    if unknown:
        raise ValueError(f"--variants: unknown {unknown}; there are {', '.join(VARIANTS)}")
    chosen = {name: VARIANTS[name] for name in _VARIANTS.value or VARIANTS}
    table = run_ablations(config, workdir, chosen, repeat.SEEDS.value)
    if distributed.is_main_process():
        print(format_ablations(table))


if __name__ == "__main__":
    cli.start(
        main,
        (
            "--config=configs/demo.py --workdir=runs/ablations",
            "--config=configs/demo.py --workdir=runs/ablations \\\n"
            "      --variants='linear heads,8 segments'",
        ),
    )
