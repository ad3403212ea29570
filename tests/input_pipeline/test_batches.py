"""Roles, and batches that depend on nothing but the seed, the epoch and the position."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from moclip_jax.input_pipeline.batches import (
    MotionViews,
    PreparedDataset,
    prepare_dataset,
    train_batches,
    view_batches,
)
from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.input_pipeline.sampling import Draws
from moclip_jax.input_pipeline.video.clip import VideoSpec, clip_from_frames, read_clip
from moclip_jax.input_pipeline.views import images, test_view, training_view
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=96, height=64, clip_frames=4)
VIEWS = MotionViews(num_segments=3, image_size=24, resize_size=32)
CLASSES = ("Clap", "Jump", "Run")
GROUPS = range(1, 8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> pathlib.Path:
    """Make 3 classes x 7 groups in UCF101's format, with a broken training and test video.

    Split 1 tests groups 1 and 2, split 2 group 3 and leaves group 4 out.
    """
    folder = tmp_path_factory.mktemp("videos")
    lines: dict[str, list[str]] = {}
    (folder / "classInd.txt").write_text("".join(f"{i + 1} {c}\n" for i, c in enumerate(CLASSES)))
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for group in GROUPS:
            file = f"{name}/v_{name}_g{group:02d}_c01.avi"
            step = ((3, 0), (0, 3), (-3, 2))[label]
            frames = drifting_frames(8 + 4 * group, step=step, seed=10 * label + group)
            write_video(folder / file, frames)
            for split, test, unused in ((1, (1, 2), ()), (2, (3,), (4,))):
                if group in test:
                    lines.setdefault(f"testlist0{split}.txt", []).append(file)
                elif group not in unused:
                    lines.setdefault(f"trainlist0{split}.txt", []).append(f"{file} {label + 1}")
    for file, content in lines.items():
        (folder / file).write_text("\n".join(content) + "\n")
    broken = folder / "Jump/v_Jump_g01_c01.avi"  # a test video of split 1
    broken.write_bytes(broken.read_bytes()[:7000])
    (folder / "Run/v_Run_g07_c01.avi").write_text("no video")  # a training video
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("data")


def prepare(videos: pathlib.Path, data_dir: pathlib.Path) -> PreparedDataset:
    return prepare_dataset(
        "video_folder", data_dir=data_dir, spec=SPEC, videos=str(videos), num_workers=1
    )


@pytest.fixture(scope="module")
def dataset(videos, data_dir) -> PreparedDataset:
    return prepare(videos, data_dir)


def collect(batches: tf.data.Dataset) -> list[dict[str, np.ndarray]]:
    return list(batches.as_numpy_iterator())


def assert_same(left, right) -> None:
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert sorted(one) == sorted(two)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def train(dataset, names, **options):
    defaults = {"batch_size": 4, "seed": 3, "epoch": 0}
    return collect(train_batches(dataset, names, VIEWS, **(defaults | options)))


def test_index_holds_every_video_and_why_some_cannot_be_used(dataset):
    assert dataset.class_names == CLASSES
    assert dataset.num_splits == 2
    assert dataset.spec == SPEC
    index = {entry.name: entry for entry in dataset.index}
    assert len(index) == 21
    good = index["Run/v_Run_g04_c01.avi"]
    assert (good.label, good.group, good.subsets) == (2, "g04", ("train", "unused"))
    assert (good.num_frames, good.error) == (24, "")
    rejected = {name: entry.error for name, entry in index.items() if entry.error}
    assert set(rejected) == {"Jump/v_Jump_g01_c01.avi", "Run/v_Run_g07_c01.avi"}
    assert all(name in error for name, error in rejected.items())


def test_subsets_of_the_published_splits(dataset):
    splits = dataset.splits(split=1, selection="last")
    assert (len(splits["train"]), splits["validation"], len(splits["test"])) == (14, [], 5)
    assert splits["rejected_test"] == ["Jump/v_Jump_g01_c01.avi"]
    assert all("_g01_" in name or "_g02_" in name for name in splits["test"])
    second = dataset.splits(split=2, selection="test")
    assert second["validation"] == second["test"]
    assert (len(second["train"]), len(second["test"]), second["rejected_test"]) == (13, 3, [])
    assert not any("_g04_" in name for names in second.values() for name in names)


def test_whole_groups_are_held_out_of_the_training_subset(dataset):
    splits = dataset.splits(split=1, heldout_fraction=0.4, seed=1)
    group = {entry.name: entry.group for entry in dataset.index}
    held = {group[name] for name in splits["validation"]}
    assert len(held) == 2  # of five
    assert held.isdisjoint({group[name] for name in splits["train"]})
    everything = dataset.splits(split=1, selection="last")
    assert sorted(splits["train"] + splits["validation"]) == sorted(everything["train"])
    assert splits["test"] == everything["test"]
    assert splits == dataset.splits(split=1, heldout_fraction=0.4, seed=1)
    seeds = [dataset.splits(heldout_fraction=0.4, seed=s)["validation"] for s in range(6)]
    assert any(names != seeds[0] for names in seeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 3}, "split is 3, the data set has 1 to 2"),
        ({"selection": "best"}, "selection is 'best'"),
        ({"heldout_fraction": 0.0}, "heldout_fraction"),
    ],
)
def test_wrong_splits_are_named(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        dataset.splits(**options)


def test_train_batches_have_the_documented_shapes(dataset):
    names = dataset.splits(selection="last")["train"]
    batches = train(dataset, names)
    assert len(batches) == 3  # 14 videos; the incomplete batch is left out
    for batch in batches:
        assert batch["motion"].shape == (4, 3, 24, 24, 2)
        assert batch["motion"].dtype == np.uint8
        assert batch["label"].shape == (4,)
        assert batch["label"].dtype == np.int32


def test_every_training_video_is_drawn_with_its_own_label(dataset):
    names = dataset.splits(selection="last")["train"]
    labels = {entry.name: entry.label for entry in dataset.index}
    drawn = np.concatenate([b["label"] for b in train(dataset, names, batch_size=1)])
    assert sorted(drawn) == sorted(labels[name] for name in names)


@pytest.mark.parametrize("first_step", [1, 2, 3])
def test_a_resumed_epoch_equals_an_uninterrupted_one(dataset, first_step):
    names = dataset.splits(selection="last")["train"]
    whole = train(dataset, names, epoch=5)
    assert_same(train(dataset, names, epoch=5, first_step=first_step), whole[first_step:])


def test_order_and_draws_depend_on_seed_and_epoch(dataset):
    names = dataset.splits(selection="last")["train"]
    one = train(dataset, names)
    assert_same(one, train(dataset, names))
    for other in (train(dataset, names, epoch=1), train(dataset, names, seed=4)):
        assert any((a["motion"] != b["motion"]).any() for a, b in zip(one, other, strict=True))
    orders = {
        tuple(np.concatenate([b["label"] for b in train(dataset, names, epoch=e)]))
        for e in range(4)
    }
    assert len(orders) > 1


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_batches_of_a_single_one(dataset, process_count):
    names = dataset.splits(selection="last")["train"]
    whole = train(dataset, names, first_step=1)
    parts = [
        train(dataset, names, first_step=1, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    joined = [
        {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_view_batches_give_every_video_once_and_pad_the_last_batch(dataset):
    splits = dataset.splits()
    names = splits["test"] + splits["train"][:4]
    batches = collect(
        view_batches(dataset, names, motion=VIEWS, frames="middle", image_size=16, batch_size=4)
    )
    assert len(batches) == 3
    for batch in batches:
        assert batch["motion"].shape == (4, 1, 3, 24, 24, 2)
        assert batch["images"].shape == (4, 1, 16, 16, 3)
        assert {batch[name].dtype for name in ("label", "index")} == {np.dtype(np.int32)}
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.tolist() == [True] * 9 + [False] * 3
    index = np.concatenate([batch["index"] for batch in batches])[mask]
    assert sorted(index) == list(range(9))
    labels = {entry.name: entry.label for entry in dataset.index}
    got = np.concatenate([batch["label"] for batch in batches])[mask]
    assert got.tolist() == [labels[names[i]] for i in index]
    assert not batches[-1]["motion"][1:].any()
    assert not batches[-1]["images"][1:].any()


@pytest.mark.parametrize("process_count", [2, 4])
def test_view_batches_are_shared_by_processes_and_start_anywhere(dataset, process_count):
    names = dataset.splits()["test"] + dataset.splits()["train"][:4]
    options = {"motion": None, "frames": "middle", "image_size": 16, "batch_size": 4}
    whole = collect(view_batches(dataset, names, **options))
    assert_same(collect(view_batches(dataset, names, first_batch=1, **options)), whole[1:])
    assert collect(view_batches(dataset, names, first_batch=3, **options)) == []
    parts = [
        collect(
            view_batches(dataset, names, process_index=p, process_count=process_count, **options)
        )
        for p in range(process_count)
    ]
    joined = [
        {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_stored_video_gives_what_the_file_itself_gives(dataset, videos):
    # predict runs on files, evaluation on the prepared data set; both must see the same.
    names = dataset.splits()["test"]
    views = MotionViews(num_segments=5, image_size=24, resize_size=32, crops=10)
    options = {"motion": views, "frames": "uniform_3", "image_size": 16}
    for batch in collect(view_batches(dataset, names, batch_size=1, **options)):
        prepared = read_clip(videos / names[batch["index"][0]], SPEC)
        motion = test_view(prepared, views, SPEC)
        assert motion.shape == (10, 5, 24, 24, 2)
        np.testing.assert_array_equal(motion, batch["motion"][0])
        np.testing.assert_array_equal(images(prepared, "uniform_3", 16), batch["images"][0])


def test_augmented_views_differ_and_depend_on_the_position_alone(dataset):
    names = dataset.splits(selection="last")["train"]
    options = {"motion": VIEWS, "augmented_views": 3, "seed": 7}
    one = collect(view_batches(dataset, names, batch_size=14, **options))[0]
    assert one["motion"].shape == (14, 3, 3, 24, 24, 2)
    assert (one["motion"][:, 0] != one["motion"][:, 1]).any()
    two = collect(view_batches(dataset, names, batch_size=5, **options))
    rows = {
        index: motion
        for batch in two
        for index, motion, real in zip(batch["index"], batch["motion"], batch["mask"], strict=True)
        if real
    }
    for index, motion in zip(one["index"], one["motion"], strict=True):
        np.testing.assert_array_equal(motion, rows[index])


def test_random_frame_is_a_stored_one_and_follows_the_seed(videos):
    prepared = read_clip(videos / "Clap/v_Clap_g05_c01.avi", SPEC)
    stored = [clip_image(jpeg, 16) for jpeg in prepared.frames]
    seen = set()
    for draw in np.random.default_rng(1).integers(0, 2**32, 30):
        (image,) = images(prepared, "random", 16, int(draw))
        seen.add(next(i for i, s in enumerate(stored) if (image == s).all()))
    assert seen == set(range(len(stored)))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("middle", [14]),
        ("uniform_4", [3, 10, 17, 24]),
        ("uniform_1", [14]),
        ("uniform_2", [10, 24]),
    ],
)
def test_chosen_frames_are_the_stored_ones_next_to_those_wanted(videos, frames, expected):
    prepared = read_clip(videos / "Clap/v_Clap_g05_c01.avi", SPEC)
    assert prepared.num_frames == 28
    assert prepared.frame_indices.tolist() == [3, 10, 14, 17, 24]
    chosen = images(prepared, frames, 16)
    stored = dict(zip(prepared.frame_indices.tolist(), prepared.frames, strict=True))
    wanted = [clip_image(stored[i], 16) for i in expected]
    np.testing.assert_array_equal(chosen, wanted)


def test_a_video_of_one_frame_has_views_without_motion():
    clip = clip_from_frames(drifting_frames(1, 64, 96), SPEC, 25.0)
    rng = np.random.default_rng(0)
    draws = Draws(rng.random(3), rng.integers(0, 2**32, 3, np.uint32), np.float32(0.1))
    assert images(clip, "uniform_3", 16).shape == (3, 16, 16, 3)
    for view in (test_view(clip, VIEWS, SPEC), training_view(clip, draws, VIEWS, SPEC)):
        # Flipped, no motion is 255 - 128.
        assert np.isin(view, [127, 128]).all()


def test_a_prepared_data_set_is_opened_and_not_made_again(dataset, videos, data_dir, monkeypatch):
    def fail(*_):
        raise AssertionError("prepared again")

    monkeypatch.setattr("moclip_jax.input_pipeline.datasets.preparation.make_records", fail)
    again = prepare(videos, data_dir)
    assert again.index == dataset.index
    assert again.class_names == dataset.class_names


def test_files_changed_since_the_preparation_are_an_error(dataset, videos, data_dir):
    added = videos / "Clap" / "new.avi"
    added.write_bytes(b"more")
    try:
        with pytest.raises(ValueError, match="have changed"):
            prepare(videos, data_dir)
    finally:
        added.unlink()
    prepare(videos, data_dir)


def test_wrong_arguments_are_named(dataset, data_dir):
    names = dataset.splits(selection="last")["train"]
    for options, message in (
        ({"names": ["nowhere.avi"], "batch_size": 1}, "nowhere.avi"),
        ({"names": [names[0]] * 2, "batch_size": 1}, "named twice"),
        ({"names": names, "batch_size": 15}, "do not fill a batch"),
        ({"names": names, "batch_size": 3, "process_count": 2}, "does not divide"),
        (
            {"names": names, "batch_size": 2, "process_count": 2, "process_index": 2},
            "process_index",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train_batches(dataset, views=VIEWS, seed=0, epoch=0, **options)
    with pytest.raises(ValueError, match="neither motion nor frames"):
        view_batches(dataset, names, motion=None, batch_size=1)
    with pytest.raises(ValueError, match="frames is 'first', must be 'middle', 'random' or"):
        view_batches(dataset, names, motion=None, frames="first", batch_size=1)
    with pytest.raises(ValueError, match="unknown data set 'kinetics'"):
        prepare_dataset("kinetics", data_dir=data_dir, spec=SPEC)
    with pytest.raises(ValueError, match="crops is 5"):
        MotionViews(crops=5)
    with pytest.raises(ValueError, match="image_size is 300"):
        MotionViews(image_size=300)
