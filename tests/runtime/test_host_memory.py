"""Freed memory is kept for the next step on a CPU, and left alone elsewhere."""

import os
import subprocess
import sys

import pytest

from moclip_jax.runtime.host_memory import computes_on_cpu, keep_freed_memory

# Two rounds of a piece that malloc would take from the system each time; faults of the second.
SCRIPT = """
import resource, sys
import numpy as np
from moclip_jax.runtime.host_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(200 << 20, np.uint8)[::4096] = 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_second_piece_of_the_same_size_costs_the_system_nothing():
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how],
            env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"},
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return int(done.stdout)

    assert faults("kept") < 1000 < 50_000 < faults("not kept")


def test_only_where_jax_computes_on_the_cpu(monkeypatch):
    for platforms, expected in (("cpu", True), ("cuda,cpu", False), ("tpu", False)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert computes_on_cpu() is expected
    assert keep_freed_memory() is False
