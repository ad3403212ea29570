"""Classes known by their words: base to novel, and another data set."""

import json
import statistics

import numpy as np
import pytest

from moclip_jax.configs import testing
from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.training import base_to_novel, transfer
from moclip_jax.training.features import load_features


def text_config(finished_run):
    config = testing.get_config()
    config.dataset.data_dir = str(finished_run / "data")
    config.fusion.head, config.fusion.alpha, config.fusion.learning_rate = "text", "1", 0.03
    return config


@pytest.fixture(scope="module")
def novel_run(finished_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("novel")
    runs = base_to_novel.run_base_to_novel(text_config(finished_run), workdir)
    return workdir, runs


def test_the_base_run_saw_half_of_the_classes_and_its_own_test_is_the_base_column(novel_run):
    workdir, (table,) = novel_run
    train = load_features(workdir / "base" / "features", "train", 18)
    assert sorted(set(train.label)) == list(range(18))
    rows = json.loads((workdir / "base" / "results.json").read_text())["rows"]
    assert rows["fusion"]["num_examples"] == 18
    assert table["1.0"]["base"] == rows["fusion"]["top1"]
    assert table["0.0"]["base"] == rows["zero_shot"]["top1"]
    assert json.loads((workdir / "base_to_novel.json").read_text())["seeds"] == [table]


def test_the_features_of_all_classes_are_computed_once(novel_run, finished_run, capsys):
    workdir, runs = novel_run
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.npz")}
    assert base_to_novel.run_base_to_novel(text_config(finished_run), workdir) == runs
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*.npz")} == before
    capsys.readouterr()


def test_another_data_set_is_scored_by_its_own_names(novel_run, tmp_path):
    config = testing.get_config()
    config.dataset.options.update(num_train_groups=1, num_test_groups=2, seed=3)
    config.dataset.options.shapes = ("star", "circle")
    scores = transfer.word_scores(novel_run[0] / "base", config, tmp_path)
    # Twelve classes; the six of the circle were among the base classes.
    assert scores.trained == 6 and len(scores.rejected) == 0
    assert sorted(scores.logits) == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert all(logits.shape == (24, 12) for logits in scores.logits.values())
    assert not np.array_equal(scores.logits[0.0], scores.logits[1.0])
    shapes = scores.logits[0.0].argmax(axis=1) // 6
    assert (shapes == scores.labels // 6).mean() > 0.9  # which CLIP knows


def test_accuracies_are_those_of_a_count_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 5)).astype(np.float32)
    labels, rejected = rng.integers(0, 5, 40), np.array([0, 4, 4])
    scores = transfer.WordScores({0.5: logits}, labels, rejected, 3)
    got = base_to_novel.accuracies(scores, 3)["0.5"]
    right = [0, 0, 0]
    for row, label in zip(logits, labels, strict=True):
        half = range(3) if label < 3 else range(3, 5)
        right[int(label >= 3)] += max(half, key=lambda c: row[c]) == label
        right[2] += row.argmax() == label
    base = right[0] / ((labels < 3).sum() + 1)
    novel = right[1] / ((labels >= 3).sum() + 2)
    assert got["base"] == base and got["novel"] == novel and got["all"] == right[2] / 43
    assert got["harmonic mean"] == pytest.approx(2 * base * novel / (base + novel))
    runs = [{"0.0": got}, {"0.0": dict.fromkeys(got, 0.5)}]
    lines = base_to_novel.format_base_to_novel(runs).splitlines()
    assert lines[0] == "| alpha | base | novel | harmonic mean | all |"
    mean, spread = 50 * (base + 0.5), statistics.stdev([100 * base, 50])
    assert lines[2].startswith(f"| 0 (zero-shot) | {mean:.1f} ± {spread:.1f} |")


def test_what_cannot_be_tested_by_words_is_named(finished_run, tmp_path):
    config = testing.get_config()
    with pytest.raises(ValueError, match=r"config.fusion.head='mean' knows its trained classes"):
        base_to_novel.run_base_to_novel(config, tmp_path)
    with pytest.raises(ValueError, match=r"config.fusion.head='mean' knows its trained classes"):
        transfer.word_scores(finished_run, config, tmp_path)
    config = text_config(finished_run)
    config.stages = "prepare,motion,features,fusion,evaluate"
    with pytest.raises(ValueError, match=r"config.stages must include export, whose model is tes"):
        base_to_novel.run_base_to_novel(config, tmp_path)
    entries = tuple(VideoEntry(f"v{i}", i, f"g{i}", ("train",)) for i in range(3))
    dataset = PreparedDataset(("a", "b", "c"), entries, VideoSpec(), None)  # type: ignore[arg-type]
    first = dataset.first_classes(2)
    assert first.class_names == ("a", "b") and first.index == entries[:2]
    with pytest.raises(ValueError, match=r"config.selection.num_classes=4: the data set has 3"):
        dataset.first_classes(4)
