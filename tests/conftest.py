"""Settings that every test runs under; they must stand before the first import of JAX."""

import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# What one test compiled must not help or harm another, in this run or the next.
os.environ["MOCLIP_JAX_CACHE"] = ""
# A test that reached for the hub would pass or fail with the network; none may.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import jax
import pytest

# A shell's background job starts deaf to Ctrl-C, and so would the tests of it, and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir in which `configs/testing.py` ran to its end; not to be changed."""
    from moclip_jax.configs import testing

    from moclip_jax.training import pipeline

    workdir = tmp_path_factory.mktemp("finished")
    pipeline.run(testing.get_config(), workdir)
    return workdir
