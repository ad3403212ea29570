"""The report of a run: one HTML file with its numbers, curves, confusions and hardest clips.

`python -m moclip_jax.report --workdir=DIR` writes it again. The file needs no network and no other
file: pictures are inside it.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from absl import logging
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from input_pipeline.dataset import PreparedDataset, view_batches
from moclip_jax.run_data import open_dataset, video_roles
from moclip_jax.templates import render
from moclip_jax.train_motion import motion_views
from moclip_jax.visualize import field_to_rgb

NAME = "report.html"
TIME_FILE = "time.json"
# Rows of results in the order of the table, and as they are called on the page.
ROW_TITLES = {
    "zero_shot": "zero-shot CLIP",
    "clip_head": "head on CLIP",
    "motion": "motion",
    "fusion": "fusion",
}
HISTORIES = {
    "motion network": "motion/history.jsonl",
    "head on CLIP": "fusion/clip_head/history.jsonl",
    "fusion head": "fusion/fusion/history.jsonl",
}
# More labels than this on one axis cannot be read; every second, third ... is then named.
MOST_LABELS = 40
CLASSES_IN_FIGURE = 34
LONGEST_LABEL = 30
# Light to dark, so that the four rows stay apart on grey paper.
GREYS = {"zero_shot": "#c9c9c9", "clip_head": "#8fb8de", "motion": "#e08a3c", "fusion": "#26456e"}
FIELDS_OF_CLIP = 3
STYLE: dict[Any, Any] = {
    # A dollar sign in a name is no formula.
    "text.parse_math": False,
    # The reader's own fonts: smaller files, and every script can be shown.
    "svg.fonttype": "none",
    # Names inside the pictures then do not change from one writing to the next.
    "svg.hashsalt": "moclip_jax",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_report(
    config: ConfigDict,
    dataset: PreparedDataset,
    roles: dict[str, list[str]],
    workdir: Path,
    *,
    num_clips: int = 12,
) -> Path:
    """Writes `workdir/report.html`, whole or not at all.

    Args:
      config: the whole configuration of the run.
      dataset: its prepared videos.
      roles: what each video is for, as `PreparedDataset.roles` says.
      workdir: the run's folder, with the stages up to `evaluate` done.
      num_clips: how many of the hardest test clips are shown; 0 reads no video.

    Returns:
      The file's path.

    Raises:
      FileNotFoundError: a stage's result is missing.
    """
    scores = dict(np.load(workdir / "evaluate" / "scores.npz"))
    label = scores.pop("label")
    rows = json.loads((workdir / "evaluate" / "rows.json").read_text())
    class_names = dataset.class_names
    entries = {entry.name: entry for entry in dataset.index}
    refused = np.array([entries[name].label for name in roles["refused_test"]], np.int64)
    accuracy = {row: class_accuracy(scores[row], label, refused) for row in scores}
    counts = confusion_counts(label, scores["fusion"].argmax(axis=1), len(class_names))
    with _style():
        pictures = {
            "curves": _svg(draw_curves(workdir)),
            "class_figures": [_svg(figure) for figure in draw_classes(accuracy, class_names)],
            "confusion": _svg(draw_confusion(counts, class_names)),
        }
    text = render(
        "report.html.jinja",
        **pictures,
        title=f"{config.dataset.name}: report of a run",
        workdir=workdir.name,
        num_classes=len(class_names),
        num_videos={role: len(names) for role, names in roles.items()},
        rows={ROW_TITLES[name]: row for name, row in rows.items()},
        agreement=agreement(scores, label),
        helped=_helped(accuracy, class_names),
        named_classes=label_step(len(class_names)),
        confused=[
            {"true": class_names[i], "guess": class_names[j], "count": n, "of": counts[i].sum()}
            for i, j, n in most_confused(counts, 15)
        ],
        clips=_hard_clips(config, dataset, roles["test"], scores, label, num_clips),
        refused=[entry for entry in dataset.index if entry.error],
        times=_times(workdir),
        settings=_settings(config),
        versions=_versions(workdir),
    )
    path = workdir / NAME
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def class_accuracy(scores: np.ndarray, label: np.ndarray, refused: np.ndarray) -> np.ndarray:
    """Returns top-1 accuracy of each class, float `[classes]`; NaN where no video is tested.

    Args:
      scores: float `[videos, classes]`.
      label: int `[videos]`.
      refused: int `[refused]`, classes of the test videos that could not be read; they are wrong.
    """
    num_classes = scores.shape[1]
    right = np.bincount(label[scores.argmax(axis=1) == label], minlength=num_classes)
    videos = np.bincount(np.concatenate([label, refused]), minlength=num_classes)
    return np.where(videos > 0, right / np.maximum(videos, 1), np.nan)


def confusion_counts(label: np.ndarray, guess: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int `[classes, classes]`: videos of the row's class that were called the column's."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (label, guess), 1)
    return counts


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Returns the largest entries off the diagonal as (true, guess, count), largest first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def probability_of_truth(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns float `[videos]`: the softmax of logits `[videos, classes]` at each true class."""
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds[np.arange(len(label)), label] / odds.sum(axis=1)


def agreement(scores: dict[str, np.ndarray], label: np.ndarray) -> list[dict[str, Any]]:
    """Returns, for each way motion and the head on CLIP can be right or wrong, what fusion makes.

    Args:
      scores: of each row, float `[videos, classes]`.
      label: int `[videos]`.

    Returns:
      Four entries with `clip_head` and `motion` (bool: right), `videos` and `fusion` (of these
      videos, how many the fusion gets right).
    """
    right = {row: values.argmax(axis=1) == label for row, values in scores.items()}
    cells = []
    for by_clip in (True, False):
        for by_motion in (True, False):
            chosen = (right["clip_head"] == by_clip) & (right["motion"] == by_motion)
            cells.append(
                {
                    "clip_head": by_clip,
                    "motion": by_motion,
                    "videos": int(chosen.sum()),
                    "fusion": int((chosen & right["fusion"]).sum()),
                }
            )
    return cells


def label_step(num_classes: int) -> int:
    """Returns k where every k-th class is named on an axis."""
    return -(-num_classes // MOST_LABELS)


def draw_curves(workdir: Path) -> Figure:
    """Draws loss and accuracy of every trained stage over its epochs."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(2, len(HISTORIES), sharex="col", squeeze=False)
    styles = {
        "train": {"color": "0.55", "linestyle": "--"},
        "validation": {"color": "#26456e", "linestyle": "-"},
    }
    for column, (title, path) in enumerate(HISTORIES.items()):
        lines = [json.loads(line) for line in (workdir / path).read_text().splitlines()]
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
    return figure


def draw_classes(accuracy: dict[str, np.ndarray], class_names: Sequence[str]) -> list[Figure]:
    """Draws the rows' accuracy of each class side by side, where motion helps most first."""
    gain = accuracy["motion"] - accuracy["clip_head"]
    order = np.argsort(-np.nan_to_num(gain, nan=-np.inf), kind="stable")
    order = order[np.isfinite(gain[order])]
    pages = -(-len(order) // CLASSES_IN_FIGURE)
    figures = []
    for part in np.array_split(order, max(pages, 1)):
        figure = Figure(figsize=(9, 1.1 + 0.2 * len(part)), layout="constrained")
        axes = figure.subplots(1, len(ROW_TITLES) + 1, sharey=True)
        for axis, (row, title) in zip(axes, ROW_TITLES.items(), strict=False):
            axis.barh(
                range(len(part)),
                100 * accuracy[row][part],
                color=GREYS[row],
                edgecolor="0.3",
                linewidth=0.4,
            )
            axis.set_xlim(0, 105)
            axis.set_title(title, fontsize=9)
        axes[-1].barh(
            range(len(part)),
            100 * gain[part],
            color=np.where(gain[part] > 0, GREYS["motion"], GREYS["clip_head"]).tolist(),
            edgecolor="0.3",
            linewidth=0.4,
        )
        axes[-1].axvline(0, color="0.2", linewidth=0.8)
        axes[-1].set_xlim(-105, 105)
        axes[-1].set_title("motion - head on CLIP", fontsize=9)
        for axis in axes:
            axis.grid(axis="x", alpha=0.3)
            axis.tick_params(axis="x", labelsize=7)
        axes[0].set_yticks(
            range(len(part)),
            [_short(class_names[c]) for c in part],
            fontsize=8,
        )
        axes[0].set_ylim(len(part) - 0.5, -0.5)
        figure.supxlabel("top-1 of the class in percent", fontsize=8)
        figures.append(figure)
    return figures


def draw_confusion(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws a confusion matrix as shares of each true class; dark is often."""
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
    axis.set_xlabel("called by the fusion")
    axis.set_ylabel("true class")
    figure.colorbar(image, ax=axis, label="percent of the true class", shrink=0.7)
    return figure


def clip_pictures(
    config: ConfigDict, dataset: PreparedDataset, names: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the pictures of some videos, as both networks see them.

    Args:
      config: the whole configuration.
      dataset: the prepared videos.
      names: which.

    Returns:
      For each, in their order, the middle frame uint8 `[160, 160, 3]` and motion fields as colours,
      float32 `[3, size, size, 3]`, 0 to 1.
    """
    if not names:
        return []
    (batch,) = view_batches(
        dataset,
        names,
        motion=motion_views(config.motion, num_segments=FIELDS_OF_CLIP),
        frames="middle",
        image_size=160,
        batch_size=len(names),
    ).as_numpy_iterator()
    pictures = {}
    for row, position in enumerate(batch["index"]):
        fields = (batch["motion"][row, 0].astype(np.float32) - 128) * config.motion.bound / 127.5
        # One scale for the fields of a clip, so that a still one looks still.
        bound = max(float(np.percentile(np.hypot(*np.moveaxis(fields, -1, 0)), 99)), 1.0)
        colours = np.stack([field_to_rgb(field, bound) for field in fields])
        pictures[int(position)] = (batch["images"][row, 0], colours)
    return [pictures[position] for position in range(len(names))]


def _hard_clips(
    config: ConfigDict,
    dataset: PreparedDataset,
    names: Sequence[str],
    scores: dict[str, np.ndarray],
    label: np.ndarray,
    most: int,
) -> list[dict[str, Any]]:
    truth = probability_of_truth(scores["fusion"], label)
    chosen = np.argsort(truth, kind="stable")[:most]
    pictures = clip_pictures(config, dataset, [names[position] for position in chosen])
    class_names = dataset.class_names
    return [
        {
            "name": names[position],
            "true": class_names[label[position]],
            "probability": truth[position],
            "guesses": {
                title: {
                    "label": class_names[scores[row][position].argmax()],
                    "right": scores[row][position].argmax() == label[position],
                }
                for row, title in ROW_TITLES.items()
            },
            "frame": _jpeg(frame),
            "fields": [_jpeg((255 * field).astype(np.uint8)) for field in fields],
        }
        for position, (frame, fields) in zip(chosen, pictures, strict=True)
    ]


def _helped(accuracy: dict[str, np.ndarray], class_names: Sequence[str]) -> dict[str, list[str]]:
    gain = accuracy["motion"] - accuracy["clip_head"]
    tested = np.flatnonzero(np.isfinite(gain))
    best = tested[np.argsort(-gain[tested], kind="stable")]
    return {
        "motion": [f"{class_names[c]} (+{100 * gain[c]:.0f})" for c in best[:5] if gain[c] > 0],
        "appearance": [
            f"{class_names[c]} (+{-100 * gain[c]:.0f})" for c in best[::-1][:5] if gain[c] < 0
        ],
    }


def _times(workdir: Path) -> list[dict[str, Any]]:
    """Returns what is known of the time of each stage; a stage of an older run has no file."""
    times = []
    for stage in common.STAGES:
        path = workdir / stage / TIME_FILE
        known = json.loads(path.read_text()) if path.exists() else {}
        times.append({"stage": stage, "seconds": None, "gone_on": False} | known)
    return times


def _settings(config: ConfigDict) -> list[dict[str, Any]]:
    # As JSON both, so that a tuple and the list read back from an export are the same.
    published, own = (
        _flatten(json.loads(settings.to_json())) for settings in (common.get_config(), config)
    )
    return [
        {"name": name, "value": json.dumps(value), "changed": published.get(name, ...) != value}
        for name, value in own.items()
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _versions(workdir: Path) -> dict[str, str]:
    """Returns versions of the exported model's packages, if any, and of what writes the page."""
    metadata = workdir / "export" / "metadata.json"
    versions = json.loads(metadata.read_text())["versions"] if metadata.exists() else {}
    device = jax.devices()[0]
    written_by = {
        "Python": platform.python_version(),
        "matplotlib": matplotlib.__version__,
        "device": f"{jax.device_count()} x {device.platform} ({device.device_kind})",
    }
    return versions | {f"{name} (of this page)": value for name, value in written_by.items()}


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The layout is measured in a font that lacks some scripts; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri(buffer.getvalue(), "image/svg+xml")


def _jpeg(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of a finished run and prints its path; returns 1 if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m moclip_jax.report",
        description="Write WORKDIR/report.html, one file that says all of a finished run.",
        epilog="example: python -m moclip_jax.report --workdir=runs/demo",
    )
    parser.add_argument("--workdir", required=True, help="folder of a finished run")
    parser.add_argument(
        "--clips", type=int, default=12, help="hardest test clips to show; 0 reads no video"
    )
    arguments = parser.parse_args(argv)
    if arguments.clips < 0:
        parser.error(f"--clips={arguments.clips} must be 0 or more")
    # TensorFlow Datasets warns about its own internals.
    logging.set_verbosity(logging.ERROR)
    workdir = Path(arguments.workdir).expanduser()
    metadata = workdir / "export" / "metadata.json"
    try:
        if not metadata.exists():
            raise FileNotFoundError(
                f"no {metadata}; finish a run first: "
                f"python -m moclip_jax.main --config=CONFIG --workdir={workdir}"
            )
        config = ConfigDict(json.loads(metadata.read_text())["config"])
        dataset = open_dataset(config, workdir, only_open=True)
        roles = video_roles(config, dataset)
        print(write_report(config, dataset, roles, workdir, num_clips=arguments.clips))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
