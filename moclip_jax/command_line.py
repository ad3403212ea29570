"""Mistakes on the command line as one sentence instead of a traceback."""

import sys

from absl import app, flags


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl flags and ml_collections overrides; for `app.run(main, flags_parser=...)`.

    An unknown field or a value of the wrong type ends the program with status 2 and a sentence.
    """
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        # ConfigDict wraps its message in quotes of its own, once for each level.
        lines = str(error).replace("\\n", "\n").replace("\\'", "'").splitlines()
        print("error: " + "\n".join(line.strip("'") for line in lines), file=sys.stderr)
        sys.exit(2)
