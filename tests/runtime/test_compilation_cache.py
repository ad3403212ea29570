"""Compiled programs are kept between starts, each kind of processor by itself, and off is off."""

import os
import subprocess
import sys

import pytest

from moclip_jax.runtime import compilation_cache
from moclip_jax.runtime.compilation_cache import processor_kind, use_compilation_cache

PROGRAM = """
from moclip_jax.runtime import cli

def work():
    import jax
    from jax import monitoring
    counts = {"hits": 0, "misses": 0}
    def listen(event, **kwargs):
        for name in counts:
            if event == f"/jax/compilation_cache/cache_{name}":
                counts[name] += 1
    monitoring.register_event_listener(listen)
    jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8)))
    print(counts["hits"] > 0)

raise SystemExit(cli.run(work))
"""


def start(**environment) -> subprocess.CompletedProcess:
    ours = ("MOCLIP_JAX_CACHE", "JAX_COMPILATION_CACHE_DIR")
    kept = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    assert start(XDG_CACHE_HOME=str(tmp_path)).stdout == "False\n"
    assert any((tmp_path / "moclip_jax" / processor_kind()).iterdir())
    again = start(XDG_CACHE_HOME=str(tmp_path))
    assert again.stdout == "True\n"
    assert again.stderr == ""


def test_another_folder_and_jaxs_own_setting_are_respected(tmp_path):
    start(MOCLIP_JAX_CACHE=str(tmp_path / "ours"))
    assert any((tmp_path / "ours" / processor_kind()).iterdir())
    start(MOCLIP_JAX_CACHE=str(tmp_path / "no"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"))
    assert any((tmp_path / "jax").iterdir())
    assert not (tmp_path / "no").exists()


def test_an_empty_folder_name_switches_it_off(tmp_path):
    started = start(MOCLIP_JAX_CACHE="", XDG_CACHE_HOME=str(tmp_path))
    assert (started.stdout, started.stderr) == ("False\n", "")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_reported_and_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    started = start(MOCLIP_JAX_CACHE=str(tmp_path / "file" / "cache"))
    assert started.stdout == "False\n"
    assert "cannot be written" in started.stderr and "MOCLIP_JAX_CACHE" in started.stderr


def test_processors_with_other_instructions_have_another_folder(tmp_path, monkeypatch):
    ours = processor_kind()
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "other")
    assert processor_kind() != ours


def test_the_tests_leave_the_users_folder_alone():
    assert use_compilation_cache() is None


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "MOCLIP_JAX_CACHE"])
def test_nothing_is_changed_where_it_is_decided(name, monkeypatch):
    monkeypatch.setenv(name, "")
    before = dict(os.environ)
    assert use_compilation_cache() is None
    assert dict(os.environ) == before
