"""What is said of a user's own videos before a run is spent on them."""

import pathlib
import shutil

import pytest

from moclip_jax.input_pipeline.datasets.data_checks import copies
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset, prepare_dataset
from moclip_jax.input_pipeline.video.clip import VideoSpec
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=32, height=32, gop_size=4, clip_frames=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[pathlib.Path]:
    """Twelve short clips, all different."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(12):
        write_video(folder / f"{number:02d}.avi", drifting_frames(3, seed=number))
    return sorted(folder.iterdir())


def fill(root: pathlib.Path, **classes: list[pathlib.Path]) -> pathlib.Path:
    for name, paths in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            shutil.copy(path, root / name / f"clip{number}.avi")
    return root


def prepare(videos: pathlib.Path, data_dir: pathlib.Path) -> PreparedDataset:
    return prepare_dataset(
        "video_folder", data_dir=data_dir, spec=SPEC, videos=str(videos), num_workers=1
    )


def warnings_said(capsys) -> list[str]:
    return [w for w in capsys.readouterr().out.splitlines() if w.startswith("warning: ")]


def test_nothing_is_said_of_data_without_a_flaw(clips, tmp_path, capsys):
    prepare(fill(tmp_path / "videos", run=clips[:4], jump=clips[4:8]), tmp_path / "data")
    assert warnings_said(capsys) == []


def test_a_class_of_one_video_is_trained_on_and_said_to_be_untested(clips, tmp_path, capsys):
    videos = fill(tmp_path / "videos", run=clips[:4], jump=clips[4:5])
    dataset = prepare(videos, tmp_path / "data")
    assert [e.subsets for e in dataset.index if e.name.startswith("jump")] == [("train",)]
    (warning,) = warnings_said(capsys)
    assert "class 'jump' has no test video" in warning


def test_a_folder_without_videos_is_no_class(clips, tmp_path, capsys):
    videos = fill(tmp_path / "videos", run=clips[:4], jump=clips[4:8], notes=[])
    (videos / "notes" / "readme.txt").write_text("no video")
    assert prepare(videos, tmp_path / "data").class_names == ("jump", "run")
    (warning,) = warnings_said(capsys)
    assert "notes: no video in it" in warning


def test_unbalanced_classes_are_said(clips, tmp_path, capsys):
    prepare(fill(tmp_path / "videos", run=clips[:10], jump=clips[10:12]), tmp_path / "data")
    (warning,) = warnings_said(capsys)
    assert "'run' has 8 training videos and 'jump' 1" in warning


def test_copies_stay_on_one_side_and_in_two_classes_are_said(clips, tmp_path, capsys):
    # Of four files in a class, two are copies; one in four is for testing, whatever the seed.
    run = [clips[0], clips[0], clips[1], clips[2]]
    dataset = prepare(
        fill(tmp_path / "videos", run=run, jump=[*clips[3:7], clips[2]]), tmp_path / "data"
    )
    of_name = {entry.name: entry for entry in dataset.index}
    twins = [of_name[f"run/clip{number}.avi"] for number in (0, 1)]
    assert twins[0].subsets == twins[1].subsets
    assert twins[0].group == twins[1].group != of_name["run/clip2.avi"].group
    said = " ".join(warnings_said(capsys))
    assert "the same video is in the classes jump, run: jump/clip4.avi, run/clip3.avi" in said


def test_copies_across_listed_splits_are_said(clips, tmp_path, capsys):
    videos = fill(tmp_path / "videos", run=[clips[0], clips[0], clips[1]], jump=clips[2:5])
    (videos / "classInd.txt").write_text("1 run\n2 jump\n")
    (videos / "trainlist01.txt").write_text("run/clip0.avi 1\njump/clip0.avi 2\n")
    (videos / "testlist01.txt").write_text("run/clip1.avi\njump/clip1.avi\n")
    prepare(videos, tmp_path / "data")
    (warning,) = warnings_said(capsys)
    assert "1 test videos are copies of training videos" in warning
    assert "run/clip1.avi of run/clip0.avi" in warning


def test_where_nothing_could_be_tested_is_an_error(clips, tmp_path):
    videos = fill(tmp_path / "videos", run=clips[:1], jump=clips[1:2])
    with pytest.raises(ValueError, match="nothing to test on"):
        prepare(videos, tmp_path / "data")


def test_files_are_copies_by_content_and_not_by_size_or_name(tmp_path):
    contents = {"a": b"12", "b": b"34", "c": b"12", "d": b"123", "e": b"", "f": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert copies(sorted(tmp_path.iterdir())) == [[tmp_path / "a", tmp_path / "c"]]
