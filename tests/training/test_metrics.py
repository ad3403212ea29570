"""Accuracies against definitions by sorting and by counting one video at a time."""

import numpy as np
import pytest

from moclip_jax.training.metrics import (
    average_precision,
    balanced_accuracy,
    class_weights,
    format_table,
    topk_accuracy,
)


def test_topk_equals_membership_among_the_sorted_scores():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 12)), rng.integers(12, size=200)
    for k in (1, 3, 5):
        expected = np.mean([y in np.argsort(-s)[:k] for s, y in zip(scores, labels, strict=True)])
        assert topk_accuracy(scores, labels, k) == pytest.approx(expected)


def test_rejected_videos_count_as_wrong():
    scores, labels = np.eye(4), np.arange(4)
    assert topk_accuracy(scores, labels, 1) == 1.0
    assert topk_accuracy(scores, labels, 1, rejected=4) == 0.5


def test_equal_scores_for_all_classes_are_no_recognition():
    assert topk_accuracy(np.zeros((3, 7)), np.zeros(3, int), 5) == 0.0


def test_k_beyond_the_number_of_classes_is_everything():
    assert topk_accuracy(np.random.default_rng(0).normal(size=(9, 3)), np.zeros(9, int), 5) == 1.0


def test_balanced_accuracy_is_the_mean_recall_of_the_tested_classes():
    """Against counting by hand; class 4 has rejected videos alone and class 5 none."""
    rng = np.random.default_rng(1)
    labels, rejected = rng.choice(4, size=300, p=[0.7, 0.2, 0.07, 0.03]), np.array([4, 4, 0])
    scores = rng.normal(size=(300, 6)) + 2 * np.eye(6)[labels] * (labels < 2)[:, None]
    recall = []
    for c in range(5):
        own = [int(s.argmax() == c) for s, y in zip(scores, labels, strict=True) if y == c]
        recall.append(sum(own) / (len(own) + sum(rejected == c)))
    assert balanced_accuracy(scores, labels, rejected) == pytest.approx(np.mean(recall))
    # The common classes are the easy ones here.
    assert topk_accuracy(scores, labels, 1, 3) > balanced_accuracy(scores, labels, rejected) + 0.1
    assert np.isnan(balanced_accuracy(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int)))


def test_average_precision_follows_its_definition_with_ties_and_rejected_videos():
    """The sum over the thresholds of precision times the step in recall, counted one by one."""
    rng = np.random.default_rng(2)
    labels, rejected = rng.integers(2, size=(80, 4)), np.array([[1, 0, 0, 0], [1, 1, 0, 0]])
    labels[:, 2] = 0  # No video has class 2.
    scores = rng.integers(12, size=(80, 4)) + 4.0 * labels * (np.arange(4) == 3)
    found = average_precision(scores, labels, rejected)
    for c in (0, 1, 3):
        expected, before = 0.0, 0.0
        for threshold in sorted(set(scores[:, c]), reverse=True):
            chosen = scores[:, c] >= threshold
            right = (chosen & (labels[:, c] == 1)).sum()
            recall = right / (labels[:, c].sum() + rejected[:, c].sum())
            expected += right / chosen.sum() * (recall - before)
            before = recall
        assert found[c] == pytest.approx(expected)
    assert np.isnan(found[2]) and found[3] > found[0] + 0.1
    with pytest.raises(ValueError, match="not finite"):
        average_precision(np.full((80, 4), np.nan), labels, rejected)


def test_one_of_several_labels_is_to_be_among_the_highest_scores():
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = np.array([[0, 1, 1], [1, 0, 1]])
    assert [topk_accuracy(scores, labels, k) for k in (1, 2)] == [0.5, 1.0]


def test_scores_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        topk_accuracy(np.full((2, 3), np.nan), np.zeros(2, int), 1)


def test_the_table_shows_every_row_with_its_numbers():
    row = {
        "top1": 0.892,
        "top5": 0.97,
        "balanced_accuracy": 0.883,
        "num_examples": 3783,
        "protocol": "25 segments x 10 crops",
        "gflops": 101.9,
        "params": 92_954_134,
        "trainable_params": 969829,
    }
    text = format_table({"fusion": row})
    numbers = ("89.2", "97.0", "88.3", "3783", "102", "92,954,134", "969,829")
    for shown in ("fusion", *numbers, "25 segments x 10 crops"):
        assert shown in text


def test_class_weights_make_classes_count_alike_and_are_one_where_they_do():
    labels = np.array([0] * 6 + [1] * 2 + [3])
    weights = class_weights(labels, 4)
    assert weights[2] == 0
    totals = [weights[labels[labels == c]].sum() for c in (0, 1, 3)]
    np.testing.assert_allclose(totals, 3)
    np.testing.assert_array_equal(class_weights(np.tile(np.arange(7), 11), 7), np.ones(7))
