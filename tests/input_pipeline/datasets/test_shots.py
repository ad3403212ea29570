"""Few-shot training splits: who is drawn, and what a list may say."""

import collections

import numpy as np
import pytest

from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset
from moclip_jax.input_pipeline.datasets.shots import choose_shots, read_shot_list
from moclip_jax.input_pipeline.video.clip import VideoSpec

CLASSES = ("jump", "long jump", "run")


def entry(name: str, label: int, group: str, subset: str = "train", error: str = "") -> VideoEntry:
    return VideoEntry(name, label, group, (subset,), error=error)


def random_videos(rng: np.random.Generator) -> list[VideoEntry]:
    """Some classes, groups of many sizes, in any order."""
    videos = [
        entry(f"c{label}_g{group}_v{video}", label, f"g{group}")
        for label in range(rng.integers(1, 5))
        for group in range(rng.integers(1, 7))
        for video in range(rng.integers(1, 5))
    ]
    return [videos[i] for i in rng.permutation(len(videos))]


@pytest.mark.parametrize("seed", range(30))
def test_shots_are_nested_balanced_over_groups_and_each_class_draws_for_itself(seed):
    videos = random_videos(np.random.default_rng(seed))
    sizes = collections.Counter(video.label for video in videos)
    smaller: set[str] = set()
    for shots in range(1, max(sizes.values()) + 2):
        drawn = choose_shots(videos, shots, seed)
        names = {video.name for video in drawn}
        assert len(names) == len(drawn) and smaller <= names
        smaller = names
        # In the order given, whatever the order of the videos that they are drawn from.
        assert drawn == [video for video in videos if video.name in names]
        assert {v.name for v in choose_shots(videos[::-1], shots, seed)} == names
        for label, size in sizes.items():
            own = [video for video in videos if video.label == label]
            mine = [video for video in drawn if video.label == label]
            assert len(mine) == min(shots, size)
            assert choose_shots(own, shots, seed) == mine
            # No group gives one more than it must while another has videos left.
            taken = collections.Counter(video.group for video in mine)
            held = collections.Counter(video.group for video in own)
            for group, number in taken.items():
                assert all(taken[g] >= min(number - 1, held[g]) for g in held), group


def test_another_seed_draws_others_and_a_class_with_too_few_videos_says_so(capsys):
    videos = [entry(f"v{i}", 0, f"g{i}") for i in range(20)] + [entry("w", 1, "g0")]
    drawn = [choose_shots(videos, 3, seed) for seed in range(5)]
    assert any(chosen != drawn[0] for chosen in drawn)
    assert "few-shot: fewer than 3 videos are all used: class 1 has 1" in capsys.readouterr().out
    # Every video can be drawn.
    assert {v.name for s in range(200) for v in choose_shots(videos, 1, s)} == {
        v.name for v in videos
    }


VIDEOS = [
    entry("jump/v_a.avi", 0, "g1"),
    entry("long jump/v_b.avi", 1, "g1"),
    entry("run/v c.avi", 2, "g1"),
    entry("run/v_a.avi", 2, "g2"),
    entry("run/v_d.avi", 2, "g3", error="cut off"),
    entry("run/v_e.avi", 2, "g4", "test"),
]
TRAIN = VIDEOS[:5]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("long jump/v_b.avi long jump\nrun/v c.avi run", ["long jump/v_b.avi", "run/v c.avi"]),
        ("v_b 1\nv c.avi 2\njump/v_a.avi\t0", ["jump/v_a.avi", "long jump/v_b.avi", "run/v c.avi"]),
        ("/data/videos/v_b.avi,2\n\nrun/v c.avi, 3", ["long jump/v_b.avi", "run/v c.avi"]),
        ("run/v_a.avi", ["run/v_a.avi"]),
    ],
)
def test_a_list_names_videos_with_classes_by_name_or_number(tmp_path, lines, names):
    (tmp_path / "list.txt").write_text(lines)
    assert sorted(read_shot_list(tmp_path / "list.txt", TRAIN, CLASSES)) == names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "lists no video"),
        ("run/v_e.avi 2", r"list.txt:1: the training split has no video 'run/v_e.avi'"),
        ("v_a.avi 0", r"the training split has no video 'v_a.avi'"),  # two of this name
        ("v_b.avi jump", r"long jump/v_b.avi is of class 'long jump', not 'jump'"),
        (
            "v_b 1\nv c 3",
            r"list.txt:2: run/v c.avi is of class 2, counted from 0, but the line says 3",
        ),
        ("v_b 7", r"is of class 1, counted from 0, but the line says 7"),
    ],
)
def test_mistakes_in_a_list_of_shots_are_named_by_line(tmp_path, lines, message):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_shot_list(tmp_path / "list.txt", TRAIN, CLASSES)


def test_a_split_has_the_listed_videos_alone_and_shots_are_drawn_from_these(tmp_path):
    more = [entry(f"run/x{i}.avi", 2, f"x{i}") for i in range(8)]
    dataset = PreparedDataset(CLASSES, (*VIDEOS, *more), VideoSpec(), None)  # type: ignore[arg-type]
    listed = ["run/v_d.avi", *(video.name for video in more[:6])]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    shot_list = str(tmp_path / "list.txt")
    splits = dataset.splits(selection="last", shot_list=shot_list)
    assert splits["train"] == listed[1:]  # what is rejected cannot be trained on
    assert splits["test"] == ["run/v_e.avi"]
    few = dataset.splits(selection="heldout", shot_list=shot_list, shots=4, heldout_fraction=0.25)
    assert len(few["train"]) == 3 and len(few["validation"]) == 1
    assert set(few["train"] + few["validation"]) < set(listed)
