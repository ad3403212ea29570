"""Preparation: crashes, hangs, resuming, locks, the manifest, limits, Beam, archives."""

import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from moclip_jax.input_pipeline.batches import PreparedDataset, prepare_dataset
from moclip_jax.input_pipeline.datasets import prepared, shards
from moclip_jax.input_pipeline.datasets.definition import (
    DatasetConfig,
    Source,
    VideoEntry,
)
from moclip_jax.input_pipeline.datasets.preparation import MANIFEST
from moclip_jax.input_pipeline.datasets.registry import DATASETS
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.video.subprocess_pool import WorkerError
from tests.input_pipeline.generated import NUM_VIDEOS, Generated, prepare
from tests.input_pipeline.misbehaving import SPEC, make
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(prepared, "DATASETS", {**DATASETS, "generated": Generated})
    monkeypatch.setattr(shards, "VIDEOS_PER_SHARD", 3)


def manifest(dataset: PreparedDataset) -> list[dict]:
    path = pathlib.Path(dataset.builder.data_dir) / MANIFEST
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(dataset: PreparedDataset) -> list[bytes]:
    return [pathlib.Path(path).read_bytes() for path in dataset.records()]


def prepared_so_far(folder: pathlib.Path) -> list[str]:
    log = folder / "prepared.log"
    return log.read_text().split() if log.exists() else []


def test_the_manifest_says_what_became_of_every_video(tmp_path, capsys):
    dataset = prepare(tmp_path, v3="refuse")
    lines = manifest(dataset)
    assert [line["name"] for line in lines] == [f"v{i}" for i in range(NUM_VIDEOS)]
    assert {line["kept"] for line in lines if line["name"] != "v3"} == {"reencoded"}
    assert lines[3]["kept"] == "refused"
    assert lines[3]["reason"] == f"{tmp_path}/3.avi: is cut"
    records = [len(bytes(r.numpy())) for r in tf.data.TFRecordDataset(dataset.records())]
    assert sorted(records) == sorted(line["bytes"] for line in lines if line["bytes"])
    assert all(line["num_frames"] == 3 and line["seconds"] > 0 for line in lines if line["bytes"])
    said = capsys.readouterr().out
    mean = sum(line["bytes"] for line in lines) / len(lines)
    assert "10 videos (9 reencoded, 1 rejected)" in said
    assert f"{mean / 1e3:.0f} kB each" in said


def test_native_motion_stands_in_the_manifest(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for number in range(2):
            frames = drifting_frames(4, seed=number)
            write_video(tmp_path / "videos" / label / f"{number}.avi", frames)
    path = tmp_path / "videos" / "a" / "2.webm"
    write_video(path, drifting_frames(4, seed=7), codec="libvpx-vp9")
    dataset = prepare_dataset(
        "video_folder",
        data_dir=tmp_path / "data",
        spec=VideoSpec(source="auto", width=32, height=32),
        videos=str(tmp_path / "videos"),
        num_workers=1,
    )
    kept = {line["name"]: line["kept"] for line in manifest(dataset)}
    assert kept.pop("a/2.webm") == "reencoded"
    assert set(kept.values()) == {"native"}


def test_a_crash_and_a_hang_cost_one_video_each(tmp_path):
    spec = VideoSpec(width=32, height=32, gop_size=4, clip_frames=1, max_seconds=0.5)
    dataset = prepare(tmp_path, workers=2, spec=spec, v2="segfault", v6="hang")
    errors = {entry.name: entry.error for entry in dataset.index if entry.error}
    assert errors == {
        "v2": "v2: its process crashed (signal 11: Segmentation fault)",
        "v6": "v6: its process made no progress for 5.5 seconds",
    }
    assert len(list(tf.data.TFRecordDataset(dataset.records()))) == NUM_VIDEOS - 2


def test_a_video_after_a_crash_in_the_same_process_is_not_blamed(tmp_path):
    dataset = prepare(tmp_path, v4="segfault once")
    assert not any(entry.error for entry in dataset.index)


def test_what_one_or_two_workers_or_none_of_the_shards_before_write_is_the_same(tmp_path):
    one, two = (prepare(tmp_path, f"data{n}", workers=n, v3="refuse") for n in (1, 2))
    assert len(one.records()) == 4
    assert contents(one) == contents(two)
    assert one.index == two.index


def test_a_run_that_fails_is_resumed(tmp_path, capsys, monkeypatch):
    # The mistake lies in the last shard, so that the others are finished.
    order = [s.entry.name for shard in shards.plan_shards(sources_of(tmp_path)) for s in shard]
    monkeypatch.setattr(Generated, "sources", with_bug(order[-1]))
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path)
    before = prepared_so_far(tmp_path)
    assert len(before) >= NUM_VIDEOS - 3
    monkeypatch.undo()
    monkeypatch.setattr(prepared, "DATASETS", {**DATASETS, "generated": Generated})
    monkeypatch.setattr(shards, "VIDEOS_PER_SHARD", 3)
    dataset = prepare(tmp_path)
    after = prepared_so_far(tmp_path)[len(before) :]
    assert {f"v{i}" for i in after} == set(order[-3:])
    assert "7 of 10 videos were prepared before; resumed" in capsys.readouterr().out
    assert contents(dataset) == contents(prepare(tmp_path, "other"))
    assert not list(tmp_path.glob("data/generated/*/*.preparing"))


def sources_of(folder: pathlib.Path) -> list[Source]:
    return Generated(DatasetConfig(options={"folder": str(folder)})).sources(None)[1]


def with_bug(name: str):
    whole = Generated.sources

    def sources(self, download):
        class_names, found = whole(self, download)
        return class_names, [
            Source(s.entry, functools.partial(make, 0, "bug", "")) if s.entry.name == name else s
            for s in found
        ]

    return sources


# The child processes import the main program too, but not what stands below the guard.
_RUN = """
if __name__ == "__main__":
    import sys, pathlib
    from moclip_jax.input_pipeline.datasets import prepared
    from moclip_jax.input_pipeline.datasets import shards
    from tests.input_pipeline import generated
    prepared.DATASETS = {**prepared.DATASETS, "generated": generated.Generated}
    shards.VIDEOS_PER_SHARD = 3
    generated.prepare(pathlib.Path(sys.argv[1]), number=12, **{f"v{i}": "slow" for i in range(12)})
"""


def start(folder: pathlib.Path, program: str = _RUN) -> subprocess.Popen:
    script = folder / "run.py"
    script.write_text(program)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_script_without_a_guard_is_reported(tmp_path):
    run = start(tmp_path, _RUN.replace('if __name__ == "__main__":', "if True:"))
    said, _ = run.communicate(timeout=600)
    assert run.returncode != 0
    assert "put the call that prepares videos under if __name__ == '__main__':" in said


def test_a_killed_run_keeps_its_shards_and_its_processes_end(tmp_path):
    run = start(tmp_path)
    # A shard is finished with its list of outcomes, which comes after its records.
    until(lambda: len(list(tmp_path.glob("data/generated/*/*.preparing/[0-9]*.json"))) >= 2)
    workers = children(run)
    assert workers
    run.kill()
    run.communicate()
    until(lambda: not any(map(is_running, workers)))
    done = prepared_so_far(tmp_path)
    again = start(tmp_path)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0
    assert re.search(r"(6|9) of 12 videos were prepared before; resumed", said)
    # What was not in a finished shard is made again, and nothing else.
    assert len(prepared_so_far(tmp_path)) <= 12 + 3 + len(done) - 6
    dataset = prepare(tmp_path, number=12, **{f"v{i}": "slow" for i in range(12)})
    assert len(list(tf.data.TFRecordDataset(dataset.records()))) == 12


def children(run: subprocess.Popen) -> list[int]:
    tasks = pathlib.Path(f"/proc/{run.pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_running(process: int) -> bool:
    try:
        return (
            pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except FileNotFoundError:
        return False


def until(true, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_stops_and_leaves_no_process(tmp_path):
    run = start(tmp_path)
    until(lambda: len(prepared_so_far(tmp_path)) >= 1)
    workers = children(run)
    assert workers
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=600)
    assert run.returncode != 0
    until(lambda: not any(map(is_running, workers)))
    assert len(prepared_so_far(tmp_path)) < 12


def test_the_second_of_two_runs_in_one_folder_waits_for_the_first(tmp_path):
    runs = [start(tmp_path) for _ in range(2)]
    said = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len(prepared_so_far(tmp_path)) == 12  # Each video once.
    assert sum("another process holds the lock" in text for text in said) == 1


def test_shards_of_other_videos_are_not_kept(tmp_path, capsys):
    folder = shards.ShardFolder(tmp_path / "work", ["a"])
    list(folder.write(0, []))
    assert shards.ShardFolder(tmp_path / "work", ["a"]).outcomes(0) == []
    assert shards.ShardFolder(tmp_path / "work", ["b"]).outcomes(0) is None
    assert "started again" in capsys.readouterr().out


def test_a_long_preparation_is_estimated_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("moclip_jax.input_pipeline.datasets.preparation_log._LONG_RUN_SECONDS", 0.0)
    dataset = prepare(tmp_path)
    said = capsys.readouterr().out
    estimate = re.search(
        r"the first 8 took ([\d.]+) s and (\d+) kB each; 10 will take about 0:\d\d with 1 workers, "
        r"and [\d.]+ GB",
        said,
    )
    assert estimate
    bytes_each = np.mean([line["bytes"] for line in manifest(dataset)])
    assert float(estimate[2]) == pytest.approx(bytes_each / 1e3, rel=0.1, abs=1)


def test_shards_hold_all_videos_in_an_order_as_good_as_random():
    sources = [Source(VideoEntry(f"v{i:03d}", i // 50, "", ()), make) for i in range(200)]
    planned = shards.plan_shards(sources)
    assert {len(shard) for shard in planned} <= {2, 3}
    names = [source.entry.name for shard in planned for source in shard]
    assert sorted(names) == [source.entry.name for source in sources]
    labels = [source.entry.label for shard in planned for source in shard]
    assert len(set(labels[:20])) == 4


def test_a_process_that_cannot_start_is_no_fault_of_a_video(tmp_path, monkeypatch):
    def cannot_start(*_):
        raise WorkerError("did not start within 120 seconds", timed_out=True, started=False)

    monkeypatch.setattr("moclip_jax.input_pipeline.datasets.worker.run_isolated", cannot_start)
    with pytest.raises(RuntimeError, match=r"did not start.* use fewer \(config\.dataset\.num_wor"):
        prepare(tmp_path)


def test_a_bucket_as_data_dir_is_named():
    with pytest.raises(ValueError, match=r"gs://b/data: videos are prepared in local or mounted"):
        prepare_dataset("generated", data_dir="gs://b/data", spec=SPEC)


# Beam

_BEAM = "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing"


def test_beam_gives_the_same_examples(tmp_path):
    pytest.importorskip("apache_beam", reason="pip install -r requirements-beam.txt for this test")
    with_beam = prepare(tmp_path, "beam", v3="refuse", v5="segfault", beam=_BEAM)
    without = prepare(tmp_path, "plain", v3="refuse", v5="segfault")
    assert contents(with_beam) == contents(without)
    assert with_beam.index == without.index
    kept = [[line["kept"] for line in manifest(d)] for d in (with_beam, without)]
    assert kept[0] == kept[1]


def test_without_beam_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-beam\.txt"):
        prepare(tmp_path, beam="runner=DirectRunner")


def test_unknown_beam_options_are_named(tmp_path):
    pytest.importorskip("apache_beam", reason="pip install -r requirements-beam.txt for this test")
    with pytest.raises(ValueError, match=r"config.dataset.beam: Beam knows no option direct_w"):
        prepare(tmp_path, beam="runner=DirectRunner,direct_workers=3")
