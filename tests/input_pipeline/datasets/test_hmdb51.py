"""HMDB51 on a few clips in the published format."""

from pathlib import Path

import pytest

from moclip_jax.input_pipeline.batches import prepare_dataset
from moclip_jax.input_pipeline.video.clip import VideoSpec
from tests.hmdb51_fixture import CLASSES, CLIPS, file_name, write_hmdb51


@pytest.fixture
def hmdb51(tmp_path: Path) -> tuple[Path, Path]:
    return write_hmdb51(tmp_path)


def _prepare(videos: Path, lists: Path, data_dir: Path):
    return prepare_dataset(
        "hmdb51",
        data_dir=data_dir,
        spec=VideoSpec(width=64, height=48, clip_frames=1),
        videos=str(videos),
        lists=str(lists),
        num_workers=1,
    )


def test_classes_and_subsets_are_those_of_the_lists(hmdb51, tmp_path):
    dataset = _prepare(*hmdb51, tmp_path / "data")
    assert dataset.class_names == CLASSES
    marks = {"0": "unused", "1": "train", "2": "test"}
    expected = {
        f"{name}/{file_name(source, name)}": tuple(marks[m] for m in splits)
        for name in CLASSES
        for source, splits in CLIPS.items()
    }
    assert {entry.name: entry.subsets for entry in dataset.index} == expected
    assert {entry.group for entry in dataset.index} == {
        f"{name}/{source}" for name in CLASSES for source in CLIPS
    }
    splits = dataset.splits(split=2, selection="last")
    assert splits["train"] == [n for n, subsets in expected.items() if subsets[1] == "train"]
    assert splits["test"] == [n for n, subsets in expected.items() if subsets[1] == "test"]


def test_a_missing_file_or_list_and_a_wrong_line_are_named(hmdb51, tmp_path):
    videos, lists = hmdb51
    wrong = lists / "ride_bike_test_split2.txt"
    text = wrong.read_text()
    wrong.write_text(text.replace(" 1", " 7", 1))
    with pytest.raises(ValueError, match=r"ride_bike_test_split2.txt:\d: must be 'file.avi 0"):
        _prepare(videos, lists, tmp_path / "data")
    wrong.unlink()
    with pytest.raises(ValueError, match=r"ride_bike_test_split2\.txt: no such list"):
        _prepare(videos, lists, tmp_path / "data")
    wrong.write_text(text)
    absent = videos / "ride_bike" / file_name("Movie_a", "ride_bike")
    absent.unlink()
    with pytest.raises(ValueError, match=r"Movie_a.*: no such file, though the lists name it"):
        _prepare(videos, lists, tmp_path / "data")
