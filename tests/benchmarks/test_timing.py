"""How comparisons are timed and told: turns, medians, ratios; and the other side's protocol."""

import numpy as np
import pytest

from benchmarks.peer import Peer
from benchmarks.timing import Comparison, in_turns, table


def test_sides_work_in_turns_the_first_one_alternates_and_the_warm_up_does_not_count():
    calls = []

    def side(name):
        def work():
            calls.append(name)
            return float(len(calls))

        return work

    times = in_turns([side("a"), side("b")], rounds=3)
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert times == [(3.0, 6.0, 7.0), (4.0, 5.0, 8.0)]


def test_the_ratio_is_that_of_the_medians_and_its_spread_that_of_passes_side_by_side():
    row = Comparison("work", "peer", 2, "piece", (1.0, 2.0, 90.0), (4.0, 4.0, 100.0))
    assert row.ratio == 0.5
    assert row.spread == pytest.approx(tuple(np.quantile([0.25, 0.5, 0.9], (0.25, 0.75))))
    assert row.to_json()["ratio"] == 0.5


def test_the_table_shows_times_of_one_unit_and_the_share_of_the_peak():
    rows = [
        Comparison("network", "peer", 4, "field", (0.02,), (0.04,), goal=0.45, work=1e9),
        Comparison("alone", "", 1, "step", (2.5,)),
    ]
    lines = table(rows, peak=4e11).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "network", "peer", "5.0 ms a field", "10.0 ms", "0.50 (0.50 to 0.50)", "0.45", "50%",
    ]  # fmt: skip
    assert "2.50 s a step" in lines[3]


def test_without_its_environment_the_other_side_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="make bench"):
        Peer(tmp_path / "python")
