"""Videos beyond the limits are rejected, and tried again when the limits are raised."""

import hashlib
import json
import os
import pathlib

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from moclip_jax.input_pipeline.batches import PreparedDataset, prepare_dataset
from moclip_jax.input_pipeline.datasets import shards
from moclip_jax.input_pipeline.datasets.preparation import MANIFEST
from moclip_jax.input_pipeline.video.clip import VideoSpec
from tests.input_pipeline.video_fixtures import drifting_frames, write_video


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "VIDEOS_PER_SHARD", 3)


def write_lengths(folder: pathlib.Path) -> pathlib.Path:
    """Write class folders whose videos have 4, 8, 12 and 4, 8 frames, and a damaged one."""
    for name, lengths in {"a": (4, 8, 12), "b": (4, 8)}.items():
        (folder / name).mkdir(parents=True)
        for number, length in enumerate(lengths):
            frames = drifting_frames(length, seed=10 * ord(name) + number)
            write_video(folder / name / f"{number}.avi", frames)
    (folder / "b" / "damaged.avi").write_bytes(b"damaged")
    return folder


def open_with(videos: pathlib.Path, max_frames: int, **options) -> PreparedDataset:
    return prepare_dataset(
        "video_folder",
        data_dir=videos.parent / "data",
        spec=VideoSpec(width=32, height=32, gop_size=4, clip_frames=1, max_frames=max_frames),
        videos=str(videos),
        num_workers=1,
        **options,
    )


def usable(dataset: PreparedDataset) -> dict[str, int]:
    return {entry.name: entry.num_frames for entry in dataset.index if not entry.error}


def test_a_higher_limit_retries_the_rejected_videos_and_keeps_the_others(tmp_path, capsys):
    videos = write_lengths(tmp_path / "videos")
    first = open_with(videos, 4)
    assert usable(first) == {"a/0.avi": 4, "b/0.avi": 4}
    assert all("max_frames" in e.error for e in first.index if e.name in ("a/1.avi", "a/2.avi"))
    before = {path: path.read_bytes() for path in map(pathlib.Path, first.records())}
    capsys.readouterr()

    second = open_with(videos, 8)
    assert "a limit was raised; 4 rejected videos are retried" in capsys.readouterr().out
    assert second.builder.data_dir == first.builder.data_dir
    assert usable(second) == {"a/0.avi": 4, "a/1.avi": 8, "b/0.avi": 4, "b/1.avi": 8}
    third = open_with(videos, 12)
    assert usable(third) == usable(second) | {"a/2.avi": 12}
    # What was there is not written again, and each video has one record, which TFDS reads too.
    assert {path: path.read_bytes() for path in before} == before
    names = [third.parse(r, ["name"])["name"].numpy().decode() for r in
             tf.data.TFRecordDataset(third.records())]  # fmt: skip
    assert sorted(names) == sorted(usable(third))
    by_tfds = tfds.builder_from_directory(third.builder.data_dir).as_dataset(split="all")
    assert sorted(e["name"].numpy().decode() for e in by_tfds) == sorted(names)
    manifest = (pathlib.Path(third.builder.data_dir) / MANIFEST).read_text().splitlines()
    lines = {line["name"]: line for line in map(json.loads, manifest)}
    assert len(lines) == len(manifest) == 6
    assert lines["a/2.avi"]["num_frames"] == 12
    assert lines["b/damaged.avi"]["kept"] == "refused"


def test_a_lower_limit_rejects_longer_videos_and_prepares_nothing(tmp_path, monkeypatch):
    videos = write_lengths(tmp_path / "videos")
    open_with(videos, 12)

    def fail(*_):
        raise AssertionError("prepared again")

    monkeypatch.setattr("moclip_jax.input_pipeline.datasets.preparation.make_records", fail)
    lower = open_with(videos, 8)
    assert usable(lower) == {"a/0.avi": 4, "a/1.avi": 8, "b/0.avi": 4, "b/1.avi": 8}
    error = next(entry.error for entry in lower.index if entry.name == "a/2.avi")
    assert error == "a/2.avi: has 12 frames, more than max_frames=8"
    # A limit that was tried before, and a run that only opens, try nothing.
    assert len(usable(open_with(videos, 12))) == 5
    assert len(usable(open_with(videos, 100, only_open=True))) == 5


def test_a_retry_that_was_killed_before_the_index_was_written_is_repeated(tmp_path, monkeypatch):
    videos = write_lengths(tmp_path / "videos")
    open_with(videos, 4)
    replace = os.replace

    def killed(source, target):
        if os.path.basename(target) == "metadata.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        open_with(videos, 12)
    dataset = open_with(videos, 12)
    names = [dataset.parse(r, ["name"])["name"].numpy().decode() for r in
             tf.data.TFRecordDataset(dataset.records())]  # fmt: skip
    assert sorted(names) == sorted(usable(dataset)) == [
        "a/0.avi", "a/1.avi", "a/2.avi", "b/0.avi", "b/1.avi"
    ]  # fmt: skip


def test_data_prepared_with_limits_in_its_spec_is_opened(tmp_path):
    videos = write_lengths(tmp_path / "videos")
    folder = pathlib.Path(open_with(videos, 10_000).builder.data_dir)
    # The index of version 2.0.0 as it was first written: without `limits`, which the spec held.
    metadata = json.loads((folder / "metadata.json").read_text())
    del metadata["limits"]
    defaults = {"max_bytes": 2**32, "max_pixels": 8192 * 4608, "max_seconds": 600.0}
    metadata["spec"] |= {"max_frames": 10_000} | defaults
    (folder / "metadata.json").write_text(json.dumps(metadata))
    made_from = {
        "spec": metadata["spec"], "videos": str(videos), "lists": "", "options": {},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    assert folder.parent.name == f"32x32-{digest[:12]}"
    assert len(usable(open_with(videos, 20_000))) == 5
