"""The HMDB51 builder on a few clips in the published format."""

from pathlib import Path

import pytest
from moclip_jax.input_pipeline.batches import prepare_dataset
from moclip_jax.input_pipeline.video.clip import VideoSpec

from tests.ucf101_fixture import write_avi

CLASSES = ("brush_hair", "ride_bike")
# Source of the clip, and its mark in splits 1 to 3.
CLIPS = {"April_09": "122", "April_10": "211", "Movie_a": "012", "Movie_b": "120"}


def _file(source: str, name: str) -> str:
    return f"{source}_{name}_u_nm_np1_ba_goo_0.avi"


@pytest.fixture
def hmdb51(tmp_path: Path) -> tuple[Path, Path]:
    videos, lists = tmp_path / "videos", tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    for label, name in enumerate(CLASSES):
        (videos / name).mkdir(parents=True)
        for seed, source in enumerate(CLIPS):
            write_avi(videos / name / _file(source, name), seed=10 * label + seed, num_frames=4)
        for split in range(3):
            lines = [f"{_file(source, name)} {marks[split]} \n" for source, marks in CLIPS.items()]
            (lists / f"{name}_test_split{split + 1}.txt").write_text("".join(lines))
    return videos, lists


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
        f"{name}/{_file(source, name)}": tuple(marks[m] for m in splits)
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
    absent = videos / "ride_bike" / _file("Movie_a", "ride_bike")
    absent.unlink()
    with pytest.raises(ValueError, match=r"Movie_a.*: no such file, though the lists name it"):
        _prepare(videos, lists, tmp_path / "data")
