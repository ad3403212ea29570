"""Damaged files end in a result or a refusal by name, in child processes; more with the script."""

import numpy as np

from tests import fuzz_videos


def test_damaged_files_neither_crash_nor_hang_nor_leak(tmp_path):
    report = fuzz_videos.fuzz(2000, seed=1, folder=tmp_path, keep=None)
    assert report.bad == []
    for name, counts in report.outcomes.items():
        assert sum(counts.values()) == 500, name
        assert counts["refused"] > 50, name  # The mutations do damage,
        assert counts["result"] > 50, name  # and not only headers.


def test_what_goes_wrong_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_videos, "SECONDS", 0.5)
    monkeypatch.setattr(fuzz_videos, "read_damaged", misbehave)
    report = fuzz_videos.fuzz(4, seed=0, folder=tmp_path, keep=tmp_path)
    found = [counts.most_common(1)[0][0] for counts in report.outcomes.values()]
    assert found == ["other error", "crash", "hang", "unnamed"]
    assert len(report.bad) == 4
    assert (tmp_path / "1_h264.mp4").exists()


def test_mutations_are_a_function_of_the_seed():
    content = bytes(range(256)) * 8
    one, two = (fuzz_videos.mutate(content, np.random.default_rng([3, 4])) for _ in range(2))
    assert one == two != content


def misbehave(path, content, source):
    import os
    import time

    if path.endswith("h264.mp4"):
        os.abort()
    if path.endswith("mpeg2.ts"):
        time.sleep(60)
    return ("other error" if path.endswith("avi") else "unnamed"), "", 0
