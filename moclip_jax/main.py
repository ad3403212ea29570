"""Command line of training: `python -m moclip_jax.main --config=configs/X.py --workdir=DIR`."""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from moclip_jax.command_line import parse_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of settings; --config.SECTION.FIELD=VALUE changes one.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: checkpoints, features, results and the export."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> int:
    """Runs the recipe; returns 0, 1 after an error that is explained, 130 after Ctrl-C."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument '{argv[1]}'; settings look like --config.FIELD=X")
    # Imported late: worker processes import this module again and need none of it.
    from moclip_jax import recipe
    from moclip_jax.train import TrainingDivergedError

    logging.set_verbosity(logging.ERROR)
    try:
        recipe.run(_CONFIG.value, Path(_WORKDIR.value or ""))
    except (ValueError, OSError, TrainingDivergedError) as error:
        if _TRACEBACK.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
