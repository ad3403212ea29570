"""Train, evaluate and export a model, or resume a run that was stopped.

The stages are prepare, motion, features, fusion, evaluate and export. A stage whose result is in
the workdir is skipped.
"""

from pathlib import Path

from ml_collections import ConfigDict

from moclip_jax.runtime import cli


def main(config: ConfigDict, workdir: Path) -> None:
    """Run the pipeline."""
    # Imported late, because worker processes import this module again and do not need them, and
    # because a setting that cannot work is reported before seconds of imports.
    from moclip_jax.config_checks import check_config

    check_config(config)
    from moclip_jax.training import pipeline

    pipeline.run(config, workdir)


if __name__ == "__main__":
    cli.start(
        main,
        (
            "--config=configs/demo.py --workdir=runs/demo",
            "--config=configs/video_folder.py --workdir=runs/mine \\\n"
            "      --config.dataset.videos=/data/my_videos --config.motion.num_epochs=60",
            "--config=configs/demo.py --workdir=runs/demo \\\n"
            "      --config.stages=evaluate,export",
        ),
    )
