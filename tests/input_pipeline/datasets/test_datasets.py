"""Data sets from folders, lists and the renderer: who is in them, and what is said of a mistake."""

import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from moclip_jax import config
from moclip_jax.input_pipeline.batches import PreparedDataset, prepare_dataset
from moclip_jax.input_pipeline.datasets.definition import DatasetConfig
from moclip_jax.input_pipeline.datasets.records import clip_from_record
from moclip_jax.input_pipeline.datasets.registry import DATASETS
from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, REVERSIBLE_MOTIONS, SHAPES
from moclip_jax.input_pipeline.datasets.split_lists import read_split_lists
from moclip_jax.input_pipeline.datasets.ucf101 import LISTS_URL, VIDEOS_URL, Ucf101
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.video.files import find_videos
from tests.input_pipeline.video_fixtures import drifting_frames, write_video
from tests.ucf101_fixture import CLASSES, GROUPS, write_ucf101

SPEC = VideoSpec(width=64, height=48, clip_frames=2)
SHAPES_SPEC = VideoSpec(width=64, height=64, clip_frames=2)


def examples(dataset: PreparedDataset) -> dict[str, dict[str, np.ndarray]]:
    """Read everything that is stored, by name, with the displacements of all frames."""
    features = list(dataset.builder.info.features)
    stored = {}
    for record in tf.data.TFRecordDataset(dataset.records()):
        example = {k: v.numpy() for k, v in dataset.parse(record, features).items()}
        clip = clip_from_record(example, dataset.spec, range(example["num_frames"]))
        stored[example["name"].decode()] = example | {"displacements": clip.displacements}
    return stored


def test_the_checks_of_the_configuration_know_the_same_data_sets():
    assert set(config.DATASETS) == set(DATASETS)


def prepare(name: str, data_dir: pathlib.Path, spec: VideoSpec = SPEC, **options):
    return prepare_dataset(name, data_dir=data_dir, spec=spec, num_workers=1, **options)


# UCF101


@pytest.fixture(scope="module")
def ucf101_folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    return write_ucf101(tmp_path_factory.mktemp("ucf101"))


def test_ucf101_is_read_with_its_three_splits(ucf101_folders, tmp_path):
    videos, lists = ucf101_folders
    dataset = prepare("ucf101", tmp_path, videos=str(videos), lists=str(lists))
    assert dataset.class_names == CLASSES
    assert len(dataset.index) == len(CLASSES) * GROUPS
    assert not any(entry.error for entry in dataset.index)
    for entry in dataset.index:
        number = int(entry.group[1:])
        expected = tuple("test" if number in (2 * k - 1, 2 * k) else "train" for k in (1, 2, 3))
        assert entry.subsets == expected
        assert entry.name.endswith(f"_{entry.group}_c01.avi")
    # The trap: the lists spell this class's files with another capital than the archive does.
    trapped = [entry for entry in dataset.index if entry.label == CLASSES.index("HandstandPushups")]
    assert len(trapped) == GROUPS


def test_stored_examples_are_the_prepared_videos(ucf101_folders, tmp_path):
    videos, lists = ucf101_folders
    dataset = prepare("ucf101", tmp_path, videos=str(videos), lists=str(lists))
    stored = examples(dataset)
    assert set(stored) == {entry.name for entry in dataset.index}
    entry = next(e for e in dataset.index if e.label == 2)
    example = stored[entry.name]
    prepared = read_clip(videos / entry.name, SPEC)
    np.testing.assert_array_equal(example["displacements"], prepared.displacements)
    np.testing.assert_array_equal(example["is_intra"], prepared.is_intra)
    np.testing.assert_array_equal(example["frame_indices"], prepared.frame_indices)
    assert example["frames"].tolist() == prepared.frames
    assert example["label"] == 2
    assert example["num_frames"] == prepared.num_frames == entry.num_frames
    assert example["fps"] == pytest.approx(25)


def test_ucf101_videos_may_lie_in_one_folder(ucf101_folders, tmp_path):
    videos, lists = ucf101_folders
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in videos.rglob("*.avi"):
        shutil.copy(path, flat)
    dataset = prepare("ucf101", tmp_path / "data", videos=str(flat), lists=str(lists))
    assert len(dataset.index) == len(CLASSES) * GROUPS


def test_missing_ucf101_videos_are_named(ucf101_folders, tmp_path):
    videos, lists = ucf101_folders
    part = shutil.copytree(videos, tmp_path / "part")
    (part / "YoYo" / "v_YoYo_g03_c01.avi").unlink()
    with pytest.raises(ValueError, match=r"1 videos that are not there: YoYo/v_YoYo_g03_c01\.avi"):
        prepare("ucf101", tmp_path / "data", videos=str(part), lists=str(lists))


def test_ucf101_is_downloaded_where_no_folder_is_given(ucf101_folders, tmp_path):
    # As the published archives unpack: UCF101/*.avi and ucfTrainTestlist/*.txt.
    videos, lists = ucf101_folders
    (tmp_path / "videos" / "UCF101").mkdir(parents=True)
    for path in videos.rglob("*.avi"):
        shutil.copy(path, tmp_path / "videos" / "UCF101")
    shutil.copytree(lists, tmp_path / "lists" / "ucfTrainTestlist")

    def download(url: str) -> str:
        return str(tmp_path / {VIDEOS_URL: "videos", LISTS_URL: "lists"}[url])

    class_names, sources = Ucf101(DatasetConfig(spec=SPEC)).sources(download)
    assert class_names == CLASSES
    assert len(sources) == len(CLASSES) * GROUPS
    assert sources[0].prepare().num_frames > 0


def test_two_workers_write_what_one_writes(ucf101_folders, tmp_path):
    videos, lists = ucf101_folders
    folders = {"videos": str(videos), "lists": str(lists)}
    one = prepare("ucf101", tmp_path / "one", **folders)
    two = prepare_dataset("ucf101", data_dir=tmp_path / "two", spec=SPEC, num_workers=2, **folders)
    assert one.index == two.index
    contents = [[pathlib.Path(p).read_bytes() for p in d.records()] for d in (one, two)]
    assert contents[0] == contents[1]


# Lists


def write_lists(folder: pathlib.Path, **changes: str | None) -> pathlib.Path:
    """Write good lists with some files changed (None: left out)."""
    files = {
        "classInd": "1 Run\n2 Jump high\n",
        "trainlist01": "Run/a.avi 1\r\nJump high/b c.avi 2\r\n",
        "testlist01": "Run/c.avi\nJump high/d.avi\n",
    }
    for name, text in (files | changes).items():
        if text is not None:
            (folder / f"{name}.txt").write_text(text, newline="")
    return folder


def test_lists_are_read_with_spaces_and_windows_line_ends(tmp_path):
    lists = read_split_lists(write_lists(tmp_path))
    assert lists.class_names == ("Run", "Jump high")
    (split,) = lists.splits
    assert [(v.path, v.label) for v in split["train"]] == [
        ("Run/a.avi", 0),
        ("Jump high/b c.avi", 1),
    ]
    assert [(v.path, v.label) for v in split["test"]] == [("Run/c.avi", 0), ("Jump high/d.avi", 1)]


def test_lists_are_read_with_tabs_commas_and_leading_dots(tmp_path):
    plain = read_split_lists(write_lists(tmp_path))
    (tmp_path / "other").mkdir()
    other = write_lists(
        tmp_path / "other",
        classInd="1\tRun\n2, Jump high\n",
        trainlist01="./Run/a.avi\t1\nJump high/b c.avi, 2\n",
        testlist01="Run//c.avi\n./Jump high/./d.avi,2\n",
    )
    read = read_split_lists(other)
    assert read.class_names == plain.class_names
    for subset in ("train", "test"):
        expected = [(video.path, video.label) for video in plain.splits[0][subset]]
        assert [(video.path, video.label) for video in read.splits[0][subset]] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classInd": None}, r"classInd\.txt: no such file"),
        ({"classInd": ""}, r"classInd\.txt: names no class"),
        ({"classInd": "1 Run\n3 Jump\n"}, r"classInd\.txt:2: must be '2 Class', is '3 Jump'"),
        ({"classInd": "1 Run\n2 run\n"}, "two classes have the same name"),
        ({"testlist01": None}, r"testlist01\.txt: no such list"),
        ({"trainlist01": None, "testlist01": None}, "needs trainlist01"),
        ({"trainlist03": "Run/a.avi 1\n", "testlist03": "Run/b.avi\n"}, r"splits \['01', '03'\]"),
        ({"testlist01": "\n"}, r"testlist01\.txt: lists no video"),
        ({"testlist01": "Swim/c.avi\n"}, r"testlist01\.txt:1: class 'Swim' is not in classInd"),
        ({"trainlist01": "Run/a.avi 2\n"}, r"trainlist01\.txt:1: class 'Run' is number 1"),
        ({"testlist01": "c.avi\n"}, r"testlist01\.txt:1: must be 'Class/file'"),
        ({"testlist01": "Run/a.avi\n"}, r"testlist01\.txt:1: Run/a\.avi is already listed"),
        ({"testlist01": "./Run/a.avi\n"}, r"testlist01\.txt:1: Run/a\.avi is already listed"),
        ({"trainlist01": "Run/a.avi,2\n"}, r"trainlist01\.txt:1: class 'Run' is number 1"),
        (
            {"testlist01": "Run/c.avi\n/data/Run/d.avi\n"},
            r"testlist01\.txt:2: paths are taken from the folder of the videos; write 'Class/file'",
        ),
        ({"testlist01": "../Run/d.avi\n"}, r"testlist01\.txt:1: paths are taken from the folder"),
    ],
)
def test_mistakes_in_lists_are_named_by_file_and_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_split_lists(write_lists(tmp_path, **changes))


# A folder of videos


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("folder")
    for label, name in enumerate(("jump", "run")):
        (folder / name).mkdir()
        for number in range(4):
            suffix = ".mp4" if number % 2 else ".avi"
            frames = drifting_frames(4, seed=10 * label + number)
            write_video(folder / name / f"clip{number}{suffix}", frames)
        (folder / name / "notes.txt").write_text("no video")
        (folder / name / ".hidden.mp4").write_bytes(b"")
    return folder


def test_folder_without_lists_is_split_by_seed(class_folders, tmp_path):
    def split(seed: int, number: int) -> PreparedDataset:
        return prepare(
            "video_folder",
            tmp_path / str(number),
            videos=str(class_folders),
            options={"test_fraction": 0.25, "seed": seed},
        )

    dataset = split(0, 0)
    assert dataset.class_names == ("jump", "run")
    assert len(dataset.index) == 8
    splits = dataset.splits(selection="last")
    assert [len(splits[split]) for split in ("train", "test")] == [6, 2]
    assert {name.split("/")[0] for name in splits["test"]} == {"jump", "run"}
    assert split(0, 1).index == dataset.index
    assert any(split(seed, seed + 1).index != dataset.index for seed in range(1, 4))


def test_folder_with_lists_follows_them(class_folders, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    write_lists(
        lists,
        classInd="1 run\n2 jump\n",
        trainlist01="run/clip0.avi 1\njump/clip0.avi 2\n",
        testlist01="run/clip1.mp4\n",
    )
    dataset = prepare(
        "video_folder", tmp_path / "data", videos=str(class_folders), lists=str(lists)
    )
    assert dataset.class_names == ("run", "jump")
    assert [(e.name, e.label, e.subsets) for e in dataset.index] == [
        ("run/clip0.avi", 0, ("train",)),
        ("jump/clip0.avi", 1, ("train",)),
        ("run/clip1.mp4", 0, ("test",)),
    ]


def test_class_folders_are_read_by_the_rule_of_predict(tmp_path, capsys):
    videos = tmp_path / "videos"
    for label, name in enumerate(("jump", "run")):
        (videos / name).mkdir(parents=True)
        for number in range(2):
            write_video(
                videos / name / f"{number}.avi", drifting_frames(4, seed=2 * label + number)
            )
    jump = videos / "jump"
    # Used: videos whose suffix says nothing, or is a less common one.
    write_video(jump / "2.mp4", drifting_frames(4, seed=7), codec="libx264")
    (jump / "2.mp4").rename(jump / "no_suffix")
    write_video(jump / "3.mp4", drifting_frames(4, seed=8), codec="libx264")
    (jump / "3.mp4").rename(jump / "3.f4v")
    # Left out: hidden ones, folders that are called like videos, images, files beside the classes.
    for folder in (jump / ".ipynb_checkpoints", videos / ".trash", jump / "folder.mp4"):
        folder.mkdir()
    shutil.copy(jump / "0.avi", jump / ".ipynb_checkpoints" / "0.avi")
    shutil.copy(jump / "0.avi", videos / ".trash" / "0.avi")
    still = PIL.Image.new("RGB", (32, 32))
    for suffix in ("ico", "gif", "png"):
        still.save(jump / f"still.{suffix}")
    shutil.copy(jump / "0.avi", videos / "beside.avi")
    dataset = prepare("video_folder", tmp_path / "data", videos=str(videos))
    assert [entry.name for entry in dataset.index] == [
        "jump/0.avi", "jump/1.avi", "jump/3.f4v", "jump/no_suffix", "run/0.avi", "run/1.avi",
    ]  # fmt: skip
    assert not any(entry.error for entry in dataset.index)
    # `predict` and the page take what this function finds.
    assert sorted(find_videos([str(jump)])) == [
        str(videos / entry.name) for entry in dataset.index if entry.name.startswith("jump/")
    ]
    said = capsys.readouterr().out
    left_out = (jump / ".ipynb_checkpoints", videos / ".trash", videos / "beside.avi")
    for path in (*left_out, *(jump / f"still.{suffix}" for suffix in ("ico", "gif", "png"))):
        assert str(path) in said
    assert "skipped 1 (not in the folder of a class)" in said
    # A hidden file that appears later is no change of the data set.
    (jump / ".DS_Store").write_bytes(b"new")
    assert prepare("video_folder", tmp_path / "data", videos=str(videos)).index == dataset.index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"videos": ""}, "folder of the videos is not given"),
        ({"videos": "/nowhere"}, "/nowhere: the folder of the videos does not exist"),
        ({"lists": "/nowhere"}, "/nowhere: the folder of the lists does not exist"),
        ({"options": {"test_fraction": 1.0}}, "test_fraction is 1.0"),
        ({"options": {"fraction": 0.1}}, "unknown options"),
    ],
)
def test_wrong_folders_and_options_are_named(class_folders, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare("video_folder", tmp_path, **({"videos": str(class_folders)} | options))


def test_a_folder_without_classes_is_named(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(ValueError, match="at least two"):
        prepare("video_folder", tmp_path / "data", videos=str(tmp_path))


def test_no_usable_video_at_all_is_an_error(tmp_path):
    videos = tmp_path / "videos"
    for name in ("a", "b"):
        (videos / name).mkdir(parents=True)
        for number in range(2):
            (videos / name / f"{number}.avi").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no video could be prepared; first: .*is empty"):
        prepare("video_folder", tmp_path / "data", videos=str(videos))


# Moving shapes


def shapes(data_dir: pathlib.Path, spec: VideoSpec = SHAPES_SPEC, **options) -> PreparedDataset:
    defaults = {
        "num_train_groups": 2,
        "num_test_groups": 1,
        "num_frames": 4,
        "height": 64,
        "width": 64,
    }
    return prepare("moving_shapes", data_dir, spec, options=defaults | options)


def test_moving_shapes_has_every_class_in_every_group(tmp_path):
    dataset = shapes(tmp_path)
    assert dataset.class_names == tuple(f"{s} {m}" for s in SHAPES for m in MOTIONS)
    members: dict[str, list[int]] = {}
    subsets: dict[str, set[str]] = {}
    for entry in dataset.index:
        members.setdefault(entry.group, []).append(entry.label)
        subsets.setdefault(entry.group, set()).update(entry.subsets)
    assert all(labels == list(range(len(dataset.class_names))) for labels in members.values())
    # No group crosses the split.
    assert subsets == {"g000": {"train"}, "g001": {"train"}, "g002": {"test"}}
    stored = examples(dataset)
    assert len(stored) == 3 * len(dataset.class_names)
    assert {example["displacements"].shape for example in stored.values()} == {(4, 8, 8, 2)}
    moving = [np.abs(example["displacements"]).max() > 0 for example in stored.values()]
    assert np.mean(moving) > 0.9


def test_turning_shapes_are_classes_that_differ_in_what_comes_first(tmp_path):
    dataset = shapes(tmp_path, turning=True, shapes=["star"])
    assert dataset.class_names == tuple(f"star {m} first" for m in REVERSIBLE_MOTIONS)


def test_moving_shapes_depends_on_its_seed_alone(tmp_path):
    one, two = (examples(shapes(tmp_path / name)) for name in "ab")
    other = examples(shapes(tmp_path / "c", seed=1))
    assert one.keys() == two.keys() == other.keys()
    for name, example in one.items():
        assert example["frames"].tolist() == two[name]["frames"].tolist()
        np.testing.assert_array_equal(example["displacements"], two[name]["displacements"])
    assert all(one[n]["frames"].tolist() != other[n]["frames"].tolist() for n in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 48}, "renders 64x48 but VideoSpec is 64x64"),
        ({"num_test_groups": 0}, "moving_shapes: num_test_groups is 0, least is 1"),
        ({"colour": "red"}, r"unknown options \['colour'\]"),
        ({"shapes": ["blob"]}, r"shapes are \['blob'\]; choose from circle, "),
    ],
)
def test_wrong_options_of_moving_shapes_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        shapes(tmp_path, **options)
