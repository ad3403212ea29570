"""Compute top-k accuracy over a test set, and format the table of results."""

from typing import Any

import numpy as np


def topk_accuracy(scores: np.ndarray, labels: np.ndarray, k: int, rejected: int = 0) -> float:
    """Return the share of videos whose label is among the k highest scores `[videos, classes]`.

    `rejected` videos could not be read, and count as wrong.

    Raises:
      ValueError: A score is not finite; a NaN would compare as False and count as correct.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite numbers")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    # A tie counts as wrong: equal scores for all classes are no recognition.
    rank = (scores >= own).sum(axis=1)
    total = len(labels) + rejected
    return float((rank <= min(k, scores.shape[1])).sum() / total) if total else float("nan")


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows of the results as a table of fixed-width text."""
    header = ("row", "top-1", "top-5", "videos", "GMACs/video", "params", "trained", "protocol")
    lines = [header]
    for name, row in rows.items():
        lines.append(
            (
                name,
                f"{100 * row['top1']:.1f}",
                f"{100 * row['top5']:.1f}",
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
