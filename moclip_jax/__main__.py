"""Run `python -m moclip_jax COMMAND`, which is `moclip-jax COMMAND`."""

import sys

from moclip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
