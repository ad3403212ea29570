"""Lists as people have them: CSV, Kinetics' own, lines `path label`; files here and elsewhere."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from moclip_jax.input_pipeline.batches import (
    MotionViews,
    prepare_dataset,
    train_batches,
    view_batches,
)
from moclip_jax.input_pipeline.datasets.records import clip_from_record
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=64, height=48, clip_frames=1)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"{number}.mp4", drifting_frames(5, 48, 64, step=(number, 1)))
    return folder


def prepare(lists: Path, tmp_path: Path, videos: Path | str = "", **options):
    return prepare_dataset(
        "video_list", data_dir=tmp_path / "data", spec=SPEC, videos=str(videos), lists=str(lists),
        num_workers=1, options=options,
    )  # fmt: skip


def told(dataset) -> list[tuple[str, str, str, str]]:
    """Return name, class, group and subset of each video."""
    return [
        (entry.name, dataset.class_names[entry.label], entry.group, *entry.subsets)
        for entry in dataset.index
    ]


def test_a_csv_file_with_splits_groups_and_paths_of_every_kind(videos, tmp_path):
    address = (videos / "3.mp4").as_uri()
    lists = tmp_path / "videos.csv"
    lists.write_text(
        "path,label,split,group\n"
        "0.mp4,run,train,ann\n"
        f'{videos / "1.mp4"},"jump, high",train,ben\n'
        "2.mp4,run,validation,ann\n"
        f'{address},"jump, high",test,\n'
    )
    dataset = prepare(lists, tmp_path, videos)
    assert told(dataset) == [
        ("0.mp4", "run", "ann", "train"),
        (str(videos / "1.mp4"), "jump, high", "ben", "train"),
        ("2.mp4", "run", "ann", "unused"),
        (address, "jump, high", address, "test"),
    ]
    # What an address holds is what the file there holds.
    fields = ["name", "num_frames", "is_intra", "displacements"]
    stored = {}
    for record in tf.data.TFRecordDataset(dataset.records()):
        example = {name: value.numpy() for name, value in dataset.parse(record, fields).items()}
        stored[example["name"].decode()] = example
    found = clip_from_record(stored[address], SPEC, range(5))
    expected = read_clip(videos / "3.mp4", SPEC)
    np.testing.assert_array_equal(found.displacements, expected.displacements)


def test_kinetics_lists_and_its_missing_videos(videos, tmp_path, capsys):
    (videos / "high jump").mkdir()
    os.rename(videos / "0.mp4", videos / "high jump" / "abc_000003_000013.mp4")
    os.rename(videos / "1.mp4", videos / "d_f_000120_000130.mp4")
    lists = tmp_path / "lists"
    lists.mkdir()
    header = "label,youtube_id,time_start,time_end,split\n"
    (lists / "train.csv").write_text(
        header + "high jump,abc,3,13,train\nyoga,gone,0,10,train\nyoga,lost,1,11,train\n"
    )
    (lists / "validate.csv").write_text(header + "yoga,d_f,120,130,validate\n")
    with pytest.raises(ValueError, match=r"2 videos that are not there: gone_0.*missing=skip"):
        prepare(lists, tmp_path, videos)
    dataset = prepare(lists, tmp_path, videos, missing="skip")
    assert told(dataset) == [
        ("abc_000003_000013.mp4", "high jump", "abc_000003_000013.mp4", "train"),
        ("d_f_000120_000130.mp4", "yoga", "d_f_000120_000130.mp4", "test"),
    ]
    assert "warning: the lists name 2 videos that are not there" in capsys.readouterr().out


def test_lines_with_numbers_that_a_file_of_classes_names(videos, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "k_train_list.txt").write_text("0.mp4 1\n1.mp4 0\n")
    (lists / "k_val_list.txt").write_text("2.mp4 1\n")
    with pytest.raises(ValueError, match=r"classes\.txt: no such file; it must name the classes"):
        prepare(lists, tmp_path, videos)
    (lists / "classes.txt").write_text("yoga\n")
    with pytest.raises(ValueError, match=r"k_train_list\.txt:1: .*has 1 classes, from 0: not 1"):
        prepare(lists, tmp_path, videos)
    # The name of a class may be the number of another.
    (lists / "classes.txt").write_text("1\nhigh jump\n")
    assert told(prepare(lists, tmp_path / "other", videos))[0][1] == "high jump"
    (lists / "classes.txt").write_text("yoga\nhigh jump\n")
    assert told(prepare(lists, tmp_path, videos)) == [
        ("0.mp4", "high jump", "0.mp4", "train"),
        ("1.mp4", "yoga", "1.mp4", "train"),
        ("2.mp4", "high jump", "2.mp4", "test"),
    ]


def test_several_labels_of_a_video_are_multi_hot_from_the_list_to_the_batches(videos, tmp_path):
    lists = tmp_path / "videos.csv"
    lists.write_text(
        "path,labels,split\n0.mp4,run;jump,train\n1.mp4, swim | run|run,train\n2.mp4,jump,test\n"
    )
    with pytest.raises(ValueError, match=r"labels is the column of config\.dataset\.options\.mul"):
        prepare(lists, tmp_path, videos)
    dataset = prepare(lists, tmp_path, videos, multi_label=True)
    assert dataset.class_names == ("jump", "run", "swim")
    assert [entry.classes for entry in dataset.index] == [(1, 0), (2, 1), (0,)]
    names, expected = ["1.mp4", "0.mp4"], np.array([[0, 1, 1], [1, 1, 0]], np.float32)
    np.testing.assert_array_equal(dataset.labels(names), expected)
    assert dataset.labels([]).shape == (0, 3)
    views = MotionViews(num_segments=1, image_size=16, resize_size=16)
    sizes = {"batch_size": 2, "seed": 0}
    (viewed,) = view_batches(dataset, names, motion=views, **sizes).as_numpy_iterator()
    np.testing.assert_array_equal(viewed["label"], expected[viewed["index"]])
    (trained,) = train_batches(dataset, names, views, epoch=0, **sizes).as_numpy_iterator()
    assert sorted(trained["label"].tolist()) == sorted(expected.tolist())
    # TFDS reads the records by itself.
    stored = {
        example["name"]: example["label"].tolist()
        for example in dataset.builder.as_dataset(split="videos").as_numpy_iterator()
    }
    assert stored == {b"0.mp4": [1, 0], b"1.mp4": [2, 1], b"2.mp4": [0]}


def test_lines_of_numbers_may_name_several_labels(videos, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classes.txt").write_text("yoga\nhigh jump\n")
    (lists / "train.txt").write_text("0.mp4 0;1\n")
    (lists / "test.txt").write_text("1.mp4 1|2\n")
    with pytest.raises(ValueError, match=r"test\.txt:1: .*has 2 classes, from 0: not 2"):
        prepare(lists, tmp_path, videos, multi_label=True)
    (lists / "test.txt").write_text("1.mp4 ;\n")
    with pytest.raises(ValueError, match=r"test\.txt:1: must be 'path label'"):
        prepare(lists, tmp_path, videos, multi_label=True)
    (lists / "test.txt").write_text("1.mp4 1\n")
    index = prepare(lists, tmp_path, videos, multi_label=True).index
    assert {entry.name: entry.classes for entry in index} == {"0.mp4": (0, 1), "1.mp4": (1,)}


def test_a_changed_list_is_noticed(videos, tmp_path):
    lists = tmp_path / "videos.csv"
    lists.write_text("path,label,split\n0.mp4,a,train\n1.mp4,b,test\n")
    prepare(lists, tmp_path, videos)
    lists.write_text("path,label,split\n0.mp4,b,train\n1.mp4,a,test\n")
    with pytest.raises(ValueError, match="have changed since they were prepared"):
        prepare(lists, tmp_path, videos)


def test_an_address_that_cannot_be_opened_rejects_its_video_by_name(videos, tmp_path):
    lists = tmp_path / "videos.csv"
    absent = (videos / "absent.mp4").as_uri()
    lists.write_text(f"path,label,split\n0.mp4,a,train\n1.mp4,b,test\n{absent},b,train\n")
    index = prepare(lists, tmp_path, videos).index
    assert index[2].error.startswith(f"{absent}: cannot be read: ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "file,label\n0.mp4,a\n",
            r"a\.csv: its first line must name the columns path and",
        ),
        ("a.csv", "path,label,split\n0.mp4,a,tran\n", r"a\.csv:2: split is 'tran', must be train"),
        (
            "a.csv",
            "path,label,split\n0.mp4,,train\n",
            r"a\.csv:2: the path or the label is missing",
        ),
        ("a.csv", "label,youtube_id,time_start,time_end\na,x,1.5,3\n", r"a\.csv:2: times are \['1"),
        ("a.csv", "label,youtube_id,time_start,time_end\na,x\n", r"times are .* must be whole sec"),
        (
            "a.csv",
            "path,label,split\nno://x,a,train\n1.mp4,b,test\n",
            r"no://x cannot be opened here: ",
        ),
        ("train.txt", "0.mp4\n", r"train\.txt:1: must be 'path label', is '0\.mp4'"),
        ("train.txt", "0.mp4 a\n0.mp4 b\n", r"train\.txt:2: 0\.mp4 is listed twice"),
        ("train.txt", "0.mp4 a\n1.mp4 a\n", r"the lists need at least two classes, have \['a'\]"),
        ("list.txt", "0.mp4 a\n", r"list\.txt: its name must say train, val or test"),
        ("a.csv", "path,label,split\nx,a,train\ny,b,test\n", r"2 videos that are not there: x \("),
    ],
)
def test_a_mistake_in_a_list_is_named_with_its_line(videos, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / name, tmp_path, videos)


def test_no_list_and_a_wrong_option_are_named(videos, tmp_path):
    with pytest.raises(ValueError, match="is neither a list nor a folder of lists"):
        prepare(tmp_path / "absent.csv", tmp_path)
    with pytest.raises(ValueError, match=r"has no \.csv or \.txt with train, val or test in its"):
        prepare(videos, tmp_path)
    (tmp_path / "a.csv").write_text("path,label,split\nx,a,train\ny,b,test\n")
    with pytest.raises(ValueError, match="names no video that is there"):
        prepare(tmp_path / "a.csv", tmp_path, videos, missing="skip")
    with pytest.raises(ValueError, match="missing is 'no', must be 'error' or 'skip'"):
        prepare(tmp_path / "a.csv", tmp_path, videos, missing="no")
