"""Accuracies over a test set, the weights of classes, and the table of results."""

from typing import Any

import numpy as np


def topk_accuracy(scores: np.ndarray, labels: np.ndarray, k: int, rejected: int = 0) -> float:
    """Return the share of videos whose label is among the k highest scores `[videos, classes]`.

    `rejected` videos could not be read, and count as wrong.

    Raises:
      ValueError: A score is not finite; a NaN would compare as False and count as correct.
    """
    total = len(labels) + rejected
    right = _rank(scores, labels) <= min(k, scores.shape[1])
    return float(right.sum() / total) if total else float("nan")


def class_accuracy(scores: np.ndarray, labels: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Return top-1 accuracy of each class, float `[classes]`; NaN without test videos.

    Args:
      scores: float `[videos, classes]`.
      labels: int `[videos]`.
      rejected: int `[rejected]`, the classes of test videos that could not be read, which count as
        wrong.

    Raises:
      ValueError: As `topk_accuracy`.
    """
    num_classes = scores.shape[1]
    correct = np.bincount(labels[_rank(scores, labels) == 1], minlength=num_classes)
    videos = np.bincount(np.concatenate([labels, rejected]), minlength=num_classes)
    return np.where(videos > 0, correct / np.maximum(videos, 1), np.nan)


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray, rejected: np.ndarray) -> float:
    """Return the mean over the tested classes of their top-1 accuracy; as `class_accuracy`."""
    each = class_accuracy(scores, labels, rejected)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return weights of classes that make them count alike, float `[classes]`, 1 in the mean.

    Args:
      labels: int `[videos]`.
      num_classes: Number of classes; one without videos has weight 0.
    """
    videos = np.bincount(labels, minlength=num_classes)
    alike = len(labels) / (np.count_nonzero(videos) * np.maximum(videos, 1))
    return np.where(videos > 0, alike, 0.0)


def _rank(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the place of the label among the scores, from 1, int `[videos]`."""
    if not np.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite numbers")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    # A tie counts as wrong: equal scores for all classes are no recognition.
    return (scores >= own).sum(axis=1)


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows of the results as a table of fixed-width text."""
    header = (
        "row",
        "top-1",
        "top-5",
        "balanced",
        "videos",
        "GMACs/video",
        "params",
        "trained",
        "protocol",
    )
    lines = [header]
    for name, row in rows.items():
        lines.append(
            (
                name,
                f"{100 * row['top1']:.1f}",
                f"{100 * row['top5']:.1f}",
                # Rows of earlier versions have none.
                f"{100 * row.get('balanced_accuracy', float('nan')):.1f}",
                f"{row['num_examples']}",
                f"{row['gflops']:.3g}",
                f"{row['params']:,}",
                f"{row['trainable_params']:,}",
                row["protocol"],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rendered = [
        "  ".join(
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([rendered[0], "-" * max(map(len, rendered)), *rendered[1:]])
