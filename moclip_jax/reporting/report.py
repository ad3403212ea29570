"""Write the report of a run: one HTML file with results, curves, confusions and hardest clips.

`python -m moclip_jax.reporting.report --workdir=DIR` writes it again. The file needs no
network and no other file: images are inside it.
"""

import base64
import io
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from flax.traverse_util import flatten_dict
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from moclip_jax.config import STAGES, default_config, motion_views
from moclip_jax.input_pipeline.batches import PreparedDataset, view_batches
from moclip_jax.reporting.motion_figures import common_bound, field_to_rgb
from moclip_jax.reporting.run_figures import (
    ROW_TITLES,
    confusion_counts,
    draw_classes,
    draw_confusion,
    draw_curves,
    figure_style,
    label_step,
)
from moclip_jax.reporting.templates import render
from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.runtime.files import atomic_write
from moclip_jax.training.losses import is_right
from moclip_jax.training.metric_log import data_wait
from moclip_jax.training.metrics import class_quality, mean_over_classes
from moclip_jax.training.prepare import open_dataset, video_splits

NAME = "report.html"
TIME_FILE = "time.json"
FIELDS_OF_CLIP = 3


def write_report(
    config: ConfigDict,
    dataset: PreparedDataset,
    splits: dict[str, list[str]],
    workdir: Path,
    *,
    num_clips: int = 12,
) -> Path:
    """Write `workdir/report.html` atomically.

    Args:
      splits: The names of the videos of each split, see `PreparedDataset.splits`.
      workdir: The run's folder, with the stages up to `evaluate` done.
      num_clips: Number of the hardest test clips to show; 0 reads no video.

    Raises:
      FileNotFoundError: The result of a stage is missing.
    """
    scores = dict(np.load(workdir / "evaluate" / "scores.npz"))
    label = scores.pop("label")
    rows = json.loads((workdir / "evaluate" / "rows.json").read_text())
    class_names = dataset.class_names
    rejected = dataset.labels(splits["rejected_test"])
    quality = {row: class_quality(scores[row], label, rejected) for row in scores}
    accuracy = {row: values for row, (_, values) in quality.items()}
    # With several labels a video, there is no single class that it was taken for.
    counts = (
        np.zeros((0, 0), np.int64)
        if dataset.multi_label
        else confusion_counts(label, scores["fusion"].argmax(axis=1), len(class_names))
    )
    with figure_style():
        figures = {
            "curves": [_svg(figure) for figure in draw_curves(workdir)],
            "class_figures": [_svg(figure) for figure in draw_classes(accuracy, class_names)],
            "confusion": _svg(draw_confusion(counts, class_names)) if len(counts) else "",
        }
    text = render(
        "report.html.jinja",
        **figures,
        title=f"{config.dataset.name}: report of a run",
        workdir=workdir.name,
        num_classes=len(class_names),
        num_videos={split: len(names) for split, names in splits.items()},
        rows={
            ROW_TITLES[name]: row | {"over_classes": mean_over_classes(accuracy[name])}
            for name, row in rows.items()
        },
        multi_label=dataset.multi_label,
        agreement=agreement(scores, label),
        classes=class_gains(accuracy, class_names),
        named_classes=label_step(len(class_names)),
        confused=[
            {"true": class_names[i], "guess": class_names[j], "count": n, "of": counts[i].sum()}
            for i, j, n in most_confused(counts, 15)
        ],
        clips=[]
        if dataset.multi_label
        else _hard_clips(config, dataset, splits["test"], scores, label, num_clips),
        rejected=[entry for entry in dataset.index if entry.error],
        times=_times(workdir),
        settings=_settings(config),
        versions=_versions(workdir),
    )
    path = workdir / NAME
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return the largest entries off the diagonal as (true, predicted, count), largest first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def probability_of_truth(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the softmax of logits `[videos, classes]` at the true classes, float `[videos]`."""
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds[np.arange(len(label)), label] / odds.sum(axis=1)


def agreement(scores: dict[str, np.ndarray], label: np.ndarray) -> list[dict[str, Any]]:
    """Count test videos by whether the CLIP head, motion and the fusion are correct.

    Returns four entries with `clip_head` and `motion` (whether they are correct), `videos`, and
    `fusion` (for how many of these videos the fusion is correct).
    """
    right = {row: is_right(values, label) for row, values in scores.items()}
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


def clip_images(
    config: ConfigDict, dataset: PreparedDataset, names: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the middle frame and the motion fields of some videos, as the networks see them.

    The frame is uint8 `[160, 160, 3]`; the fields are RGB, float32 `[3, size, size, 3]`, 0 to 1.
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
    images = {}
    for row, position in enumerate(batch["index"]):
        fields = (batch["motion"][row, 0].astype(np.float32) - 128) * config.motion.bound / 127.5
        # All fields of a clip share one scale, so that a field without motion looks still.
        bound = common_bound(fields)
        colours = np.stack([field_to_rgb(field, bound) for field in fields])
        images[int(position)] = (batch["images"][row, 0], colours)
    return [images[position] for position in range(len(names))]


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
    images = clip_images(config, dataset, [names[position] for position in chosen])
    class_names = dataset.class_names
    return [
        {
            "name": names[position],
            "true": class_names[label[position]],
            "probability": truth[position],
            "guesses": {
                title: {
                    "label": class_names[scores[row][position].argmax()],
                    "correct": scores[row][position].argmax() == label[position],
                }
                for row, title in ROW_TITLES.items()
                if row in scores
            },
            "frame": _jpeg(frame),
            "fields": [_jpeg((255 * field).astype(np.uint8)) for field in fields],
        }
        for position, (frame, fields) in zip(chosen, images, strict=True)
    ]


def class_gains(
    accuracy: dict[str, np.ndarray], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what motion adds to each tested class, the largest gain first.

    Each entry has `name`, the accuracy of `clip_head`, `motion` and `fusion` (0 to 1), and `gain`:
    that of the fusion over `clip_head`.
    """
    gain = accuracy["fusion"] - accuracy["clip_head"]
    tested = np.flatnonzero(np.isfinite(gain))
    order = tested[np.argsort(-gain[tested], kind="stable")]
    rows = ("clip_head", "motion", "fusion")
    return [
        {"name": class_names[c], "gain": gain[c]} | {row: accuracy[row][c] for row in rows}
        for c in order
    ]


def _times(workdir: Path) -> list[dict[str, Any]]:
    """Return the time of each stage; stages of very old runs did not record it."""
    times = []
    for stage in STAGES:
        path = workdir / stage / TIME_FILE
        known = json.loads(path.read_text()) if path.exists() else {}
        times.append(
            {
                "stage": stage,
                "seconds": None,
                # Runs of earlier versions wrote "gone_on".
                "resumed": known.get("gone_on", False),
                "data_wait": data_wait(workdir / stage),
            }
            | known
        )
    return times


def _settings(config: ConfigDict) -> list[dict[str, Any]]:
    # Both as JSON, so that tuples compare equal to the lists read back from an export.
    published, own = (
        flatten_dict(json.loads(settings.to_json()), sep=".")
        for settings in (default_config(), config)
    )
    return [
        {"name": name, "value": json.dumps(value), "changed": published.get(name, ...) != value}
        for name, value in own.items()
    ]


def _versions(workdir: Path) -> dict[str, str]:
    """Return the versions that the exported model, if any, and this page were made with."""
    metadata = workdir / "export" / "metadata.json"
    versions = json.loads(metadata.read_text())["versions"] if metadata.exists() else {}
    device = jax.devices()[0]
    written_by = {
        "Python": platform.python_version(),
        "matplotlib": matplotlib.__version__,
        "device": f"{jax.device_count()} x {device.platform} ({device.device_kind})",
    }
    return versions | {f"{name} (of this page)": value for name, value in written_by.items()}


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri(buffer.getvalue(), "image/svg+xml")


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a finished run, print its path, and return the exit status."""
    parser = CommandParser(
        "moclip_jax.reporting.report",
        "Write WORKDIR/report.html, the report of a finished run in one file.",
        ("--workdir=runs/demo",),
        usage="--workdir=DIR [OPTION ...]",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a finished run")
    parser.add_argument(
        "--clips", type=int, default=12, metavar="N",
        help="number of hardest test clips to show (12); 0 reads no video",
    )  # fmt: skip
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse(argv)
    if arguments.clips < 0:
        parser.error(f"--clips={arguments.clips} must be 0 or more")

    def work() -> None:
        workdir = Path(arguments.workdir).expanduser()
        metadata = workdir / "export" / "metadata.json"
        if not metadata.exists():
            raise FileNotFoundError(
                f"no {metadata}; finish a run first: "
                f"python -m moclip_jax.main --config=CONFIG --workdir={workdir}"
            )
        config = ConfigDict(json.loads(metadata.read_text())["config"])
        dataset = open_dataset(config, workdir, only_open=True)
        splits = video_splits(config, dataset)
        print(write_report(config, dataset, splits, workdir, num_clips=arguments.clips))

    return run(work, traceback=arguments.traceback)


if __name__ == "__main__":
    sys.exit(main())
