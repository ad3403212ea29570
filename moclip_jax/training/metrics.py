"""Accuracies over a test set, the weights of classes, and the table of results."""

from typing import Any

import numpy as np


def topk_accuracy(scores: np.ndarray, labels: np.ndarray, k: int, rejected: int = 0) -> float:
    """Return the share of videos whose label is among the k highest scores `[videos, classes]`.

    Of several labels a video, multi-hot `[videos, classes]`, one has to be among them. `rejected`
    videos could not be read, and count as wrong.

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
    return mean_over_classes(class_accuracy(scores, labels, rejected))


def mean_over_classes(values: np.ndarray) -> float:
    """Return the mean of the values `[classes]` that are not NaN; NaN if all are."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def average_precision(scores: np.ndarray, labels: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, float `[classes]`; NaN without positive videos.

    That is the mean, over the videos that have the class, of the precision among all videos that
    score as high; as `sklearn.metrics.average_precision_score`.

    Args:
      scores: float `[videos, classes]`.
      labels: Multi-hot `[videos, classes]`.
      rejected: Multi-hot `[rejected, classes]` of test videos that could not be read, whose
        precision is 0.

    Raises:
      ValueError: As `topk_accuracy`.
    """
    _check_finite(scores)
    result = np.full(scores.shape[1], np.nan)
    for position, (score, positive) in enumerate(zip(scores.T, labels.T > 0, strict=True)):
        own, ranked = np.sort(score[positive]), np.sort(score)
        # As many of the class, and of all videos, score at least as high; ties count for all.
        found = len(own) - np.searchsorted(own, own)
        every = len(ranked) - np.searchsorted(ranked, own)
        total = len(own) + rejected[:, position].sum()
        if total:
            result[position] = (found / every).sum() / total
    return result


def class_quality(
    scores: np.ndarray, labels: np.ndarray, rejected: np.ndarray
) -> tuple[str, np.ndarray]:
    """Return the name of the mean over the classes, and the value of each class, 0 to 1 or NaN.

    `balanced_accuracy` and `class_accuracy` for one label a video; `mAP` (mean average precision)
    and `average_precision` for multi-hot labels.
    """
    if labels.ndim == 1:
        return "balanced_accuracy", class_accuracy(scores, labels, rejected)
    return "mAP", average_precision(scores, labels, rejected)


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return weights of classes that make them count alike, float `[classes]`, 1 in the mean.

    Args:
      labels: int `[videos]`.
      num_classes: Number of classes; one without videos has weight 0.
    """
    videos = np.bincount(labels, minlength=num_classes)
    alike = len(labels) / (np.count_nonzero(videos) * np.maximum(videos, 1))
    return np.where(videos > 0, alike, 0.0)


def regression_targets(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one-against-all targets, 1 or -1 `[videos, classes]`, and weights `[videos]`.

    The weights make classes count alike; videos with several labels, multi-hot, count alike.
    """
    if labels.ndim == 2:
        return 2.0 * labels - 1, np.ones(len(labels))
    return 2.0 * np.eye(num_classes)[labels] - 1, class_weights(labels, num_classes)[labels]


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite numbers")


def _rank(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the place of the label, or of the best of several, among the scores, from 1."""
    _check_finite(scores)
    if labels.ndim == 1:
        own = np.take_along_axis(scores, labels[:, None], axis=1)
    else:
        own = np.where(labels > 0, scores, -np.inf).max(axis=1, keepdims=True)
    # A tie counts as wrong: equal scores for all classes are no recognition.
    return (scores >= own).sum(axis=1)


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows of the results as a table of fixed-width text."""
    multi_label = any("mAP" in row for row in rows.values())
    header = (
        "row",
        "top-1",
        "top-5",
        "mAP" if multi_label else "balanced",
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
                f"{100 * row.get('mAP', row.get('balanced_accuracy', float('nan'))):.1f}",
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
