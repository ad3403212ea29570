"""Run the pipeline several times over the same prepared videos, for commands that compare runs."""

import copy
import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moclip_jax.runtime import distributed


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


def run_titled(title: str, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Print a title, run the pipeline, and return its results."""
    from moclip_jax.runtime.progress import say
    from moclip_jax.training import pipeline

    say(f"== {title}")
    results = pipeline.run(config, workdir)
    assert results is not None
    return results


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary of all runs as JSON, on the main process."""
    from moclip_jax.runtime.files import write_json

    distributed.run_on_main(functools.partial(write_json, path, summary))
