"""What the commands that run the recipe share: their flags, and mistakes told in a sentence."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of settings; --config.SECTION.FIELD=VALUE changes one.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for everything that is made; the same command goes on in it."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error was raised.")


def start(work: Callable[[ConfigDict, Path], None]) -> None:
    """Parses the command line, calls `work(config, workdir)` and ends the program.

    The exit status is 0; 1 after an error that is explained in a sentence, 2 after one on the
    command line, 130 after Ctrl-C.
    """

    def main(argv: list[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(
                f"unknown argument '{argv[1]}'; settings look like --config.SECTION.FIELD=VALUE"
            )
        return _explained(lambda: work(_CONFIG.value, Path(_WORKDIR.value or "").expanduser()))

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse_flags)


def _explained(work: Callable[[], None]) -> int:
    # Imported late: worker processes import the main module again and need none of it.
    from moclip_jax.train import TrainingDivergedError

    logging.set_verbosity(logging.ERROR)
    try:
        work()
    except (ValueError, OSError, TrainingDivergedError) as error:
        if _TRACEBACK.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        # ConfigDict wraps its message in quotes of its own, once for each level.
        lines = str(error).replace("\\n", "\n").replace("\\'", "'").splitlines()
        print("error: " + "\n".join(line.strip("'") for line in lines), file=sys.stderr)
        sys.exit(2)
