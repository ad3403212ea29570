"""Counting of top-k against a definition by sorting."""

import numpy as np
import pytest

from moclip_jax.training.metrics import format_table, topk_accuracy


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


def test_scores_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        topk_accuracy(np.full((2, 3), np.nan), np.zeros(2, int), 1)


def test_the_table_shows_every_row_with_its_numbers():
    row = {
        "top1": 0.892,
        "top5": 0.97,
        "num_examples": 3783,
        "protocol": "25 segments x 10 crops",
        "gflops": 101.9,
        "params": 92_954_134,
        "trainable_params": 969829,
    }
    text = format_table({"fusion": row})
    numbers = ("89.2", "97.0", "3783", "102", "92,954,134", "969,829")
    for shown in ("fusion", *numbers, "25 segments x 10 crops"):
        assert shown in text
