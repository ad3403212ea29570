"""Command line of training: `python -m moclip_jax.main --config=configs/X.py --workdir=DIR`."""

from pathlib import Path

from ml_collections import ConfigDict

from moclip_jax import command_line


def main(config: ConfigDict, workdir: Path) -> None:
    """Runs the recipe."""
    # Imported late: worker processes import this module again and need none of it.
    from moclip_jax import recipe

    recipe.run(config, workdir)


if __name__ == "__main__":
    command_line.start(main)
