"""Draw the figures of a run: training curves, accuracy of each class, confusion matrix."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Rows of the results in the order of the table, and their titles in the report.
ROW_TITLES = {
    "zero_shot": "zero-shot CLIP",
    "clip_head": "appearance head",
    "motion": "motion",
    "fusion": "fusion",
}
HISTORIES = {
    "motion network": "motion/history.jsonl",
    "appearance head": "fusion/clip_head/history.jsonl",
    "fusion head": "fusion/fusion/history.jsonl",
}
# With more labels than this on an axis, only every second, third ... class is named.
MOST_LABELS = 40
CLASSES_IN_FIGURE = 34
LONGEST_LABEL = 30
# From light to dark, so that the four rows can be distinguished in black and white.
GREYS = {"zero_shot": "#c9c9c9", "clip_head": "#8fb8de", "motion": "#e08a3c", "fusion": "#26456e"}
STYLE: dict[Any, Any] = {
    # A dollar sign in a class name does not start a formula.
    "text.parse_math": False,
    # Text stays text: files are smaller, and the reader's fonts can show every script.
    "svg.fonttype": "none",
    # The ids in the figures then do not change when a report is written again.
    "svg.hashsalt": "moclip_jax",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Set the fonts and colours that all figures share."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Matplotlib measures the text in a font that lacks some scripts; browsers have others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def confusion_counts(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int `[classes, classes]`: videos by true class (row) and predicted class (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (label, predicted), 1)
    return counts


def label_step(num_classes: int) -> int:
    """Return k if every k-th class is named on an axis."""
    return -(-num_classes // MOST_LABELS)


def draw_curves(workdir: Path) -> list[Figure]:
    """Draw loss and accuracy of each trained network by epoch; nothing if all were fitted."""
    # Fisher vectors and heads in closed form have no epochs.
    histories = {title: workdir / path for title, path in HISTORIES.items()}
    histories = {title: path for title, path in histories.items() if path.exists()}
    if not histories:
        return []
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(2, len(histories), sharex="col", squeeze=False)
    styles = {
        "train": {"color": "0.55", "linestyle": "--"},
        "validation": {"color": "#26456e", "linestyle": "-"},
    }
    for column, (title, path) in enumerate(histories.items()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for row, (metric, name) in enumerate((("loss", "loss"), ("top1", "top-1, percent"))):
            axis = axes[row, column]
            for part, style in styles.items():
                key = f"{part}_{metric}"
                points = [(line["epoch"], line[key]) for line in lines if key in line]
                if points:
                    epochs, values = np.array(points).T
                    marker = "o" if len(points) < 30 else ""
                    scale = 100 if metric == "top1" else 1
                    axis.plot(
                        epochs, scale * values, label=part, marker=marker, markersize=3, **style
                    )
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(name)
        axes[0, column].set_title(title, fontsize=10)
        axes[1, column].set_xlabel("epoch")
        axes[1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].legend(frameon=False)
    return [figure]


def draw_classes(accuracy: dict[str, np.ndarray], class_names: Sequence[str]) -> list[Figure]:
    """Draw the accuracy of each class in all rows, sorted by the gain of motion."""
    gain = accuracy["motion"] - accuracy["clip_head"]
    order = np.argsort(-np.nan_to_num(gain, nan=-np.inf), kind="stable")
    order = order[np.isfinite(gain[order])]
    pages = -(-len(order) // CLASSES_IN_FIGURE)
    figures = []
    for part in np.array_split(order, max(pages, 1)):
        figure = Figure(figsize=(9, 1.1 + 0.2 * len(part)), layout="constrained")
        axes = figure.subplots(1, len(accuracy) + 1, sharey=True)
        for axis, row in zip(axes, accuracy, strict=False):
            axis.barh(
                range(len(part)),
                100 * accuracy[row][part],
                color=GREYS[row],
                edgecolor="0.3",
                linewidth=0.4,
            )
            axis.set_xlim(0, 105)
            axis.set_title(ROW_TITLES[row], fontsize=9)
        axes[-1].barh(
            range(len(part)),
            100 * gain[part],
            color=np.where(gain[part] > 0, GREYS["motion"], GREYS["clip_head"]).tolist(),
            edgecolor="0.3",
            linewidth=0.4,
        )
        axes[-1].axvline(0, color="0.2", linewidth=0.8)
        axes[-1].set_xlim(-105, 105)
        axes[-1].set_title("motion - appearance", fontsize=9)
        for axis in axes:
            axis.grid(axis="x", alpha=0.3)
            axis.tick_params(axis="x", labelsize=7)
        for axis in axes[1:]:
            axis.yaxis.set_visible(False)
        axes[0].set_yticks(range(len(part)), [_short(class_names[c]) for c in part], fontsize=8)
        axes[0].set_ylim(len(part) - 0.5, -0.5)
        figure.supxlabel("top-1 of the class in percent", fontsize=8)
        figures.append(figure)
    return figures


def draw_confusion(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix as shares of each true class; darker is more frequent."""
    num_classes = len(class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = range(0, num_classes, label_step(num_classes))
    side = float(np.clip(0.17 * num_classes + 1.5, 4, 7))
    figure = Figure(figsize=(side + 1.6, side + 0.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(100 * shares, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
    names = [_short(class_names[c]) for c in named]
    size = 8 if num_classes <= 20 else 6
    axis.set_xticks(named, names, fontsize=size, rotation=90)
    axis.set_yticks(named, names, fontsize=size)
    if num_classes <= 12:
        for i, j in np.argwhere(counts):
            axis.text(
                j,
                i,
                f"{counts[i, j]}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    axis.set_xlabel("class predicted by the fusion")
    axis.set_ylabel("true class")
    figure.colorbar(image, ax=axis, label="percent of the true class", shrink=0.7)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
