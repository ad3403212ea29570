"""Waiting for data is told from working, and a trace of some steps can be opened."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from moclip_jax.training import metric_log
from moclip_jax.training.metric_log import StepTimer, data_wait


class Clock:
    """Stands still unless told."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Result:
    """What a device computes: there, or not yet."""

    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metric_log, "time", clock)
    return clock


def run_epoch(tracker, clock, *, data_s, ready, steps=4, rest_s=1.0):
    def items():
        for number in range(steps):
            clock.now += data_s
            yield number

    for _ in tracker.items(items()):
        clock.now += rest_s
        tracker.dispatched(Result(ready), 1)


def test_waits_count_where_devices_had_run_out_of_work(tmp_path, clock):
    tracker = StepTimer(tmp_path)
    run_epoch(tracker, clock, data_s=3.0, ready=True)
    assert tracker.end_epoch(0, 4) == pytest.approx(12 / 16)
    # The devices work on while the next batch is made; only the first wait finds them idle.
    run_epoch(tracker, clock, data_s=3.0, ready=False)
    assert tracker.end_epoch(1, 8) == pytest.approx(3 / 16)
    lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["seconds"]) for line in lines] == [
        (1, 4, 16.0),
        (2, 8, 16.0),
    ]
    assert data_wait(tmp_path) == pytest.approx(15 / 32)


def test_nothing_noted_is_not_no_wait(tmp_path):
    assert data_wait(tmp_path) is None


@pytest.mark.parametrize("steps_of_training", [5, 20])
def test_a_trace_of_some_steps_can_be_opened(tmp_path, capsys, steps_of_training):
    tracker = StepTimer(tmp_path, profile_steps=4)

    @jax.jit
    def traced_function(x):
        return jnp.sin(x) @ x

    x = jnp.ones((16, 16))
    for _ in tracker.items(range(steps_of_training)):
        x = traced_function(x)
        tracker.dispatched(x, 1)
    tracker.close()
    # For TensorBoard, and for Perfetto or Chrome.
    (protobuf,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert protobuf.stat().st_size > 0
    (chrome,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(chrome.read_bytes()))["traceEvents"]
    calls = [e for e in events if e.get("name", "").startswith("PjitFunction(traced_function")]
    # JAX notes a call once or twice, by its version.
    steps = min(4, steps_of_training - 3)
    assert len(calls) in (steps, 2 * steps)
    assert capsys.readouterr().out.count("a profile for TensorBoard or Perfetto") == 1


def test_no_trace_is_written_by_default(tmp_path):
    tracker = StepTimer(tmp_path)
    for _ in tracker.items(range(9)):
        tracker.dispatched(jnp.zeros(()), 1)
    tracker.close()
    assert not (tmp_path / "profile").exists()
