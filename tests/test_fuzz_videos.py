"""Damaged files give a result or a rejection by name; `tests.fuzz_videos` tries more of them."""

import numpy as np

from tests import fuzz_videos
from tests.input_pipeline.video_fixtures import drifting_frames, write_video


def test_damaged_files_neither_crash_nor_hang_nor_leak(tmp_path):
    report = fuzz_videos.fuzz(2000, seed=1, folder=tmp_path, keep=None)
    assert report.bad == []
    for name, counts in report.outcomes.items():
        assert sum(counts.values()) == 500, name
        assert counts["rejected"] > 50, name  # The mutations do damage,
        assert counts["result"] > 50, name  # and not only headers.


def test_a_clip_is_the_same_in_every_container(tmp_path):
    matrix = fuzz_videos.remux_matrix(tmp_path)
    assert set(matrix) == set(fuzz_videos.CODECS)
    outcomes = [outcome for row in matrix.values() for outcome in row.values()]
    assert outcomes.count("same") == 28, matrix
    assert set(outcomes) == {"same", "-"}, matrix


def test_side_data_changes_nothing(tmp_path):
    found = fuzz_videos.inject_side_data(tmp_path)
    assert set(found.values()) == {"same"}, found


def test_differences_are_named(tmp_path):
    frames = drifting_frames(14, 48, 64, step=(2, 1))
    one = write_video(tmp_path / "one.avi", frames)
    for name, other, rate in (
        ("number of frames", frames[:-1], 25),
        ("motion", frames[::-1], 25),
        ("times", frames, 20),
    ):
        assert (
            fuzz_videos.difference(one, write_video(tmp_path / "b.avi", other, rate=rate)) == name
        )
    assert "no such file" in fuzz_videos.difference(one, tmp_path / "absent.avi")


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
