"""Pictures: motion fields of a video; curves, confusion and examples of a finished run."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from absl import logging
from matplotlib import pyplot as plt
from matplotlib.colors import hsv_to_rgb
from PIL import Image

from input_pipeline.motion_vectors import accumulate
from input_pipeline.video import VideoError, VideoSpec, prepare_video


def field_to_rgb(field: np.ndarray, bound: float | None = None) -> np.ndarray:
    """Returns a motion field as colours: hue is the direction, brightness the length.

    Args:
      field: `[H, W, 2]` (x, y) in pixels.
      bound: length in pixels drawn fully bright; None takes the field's 99th percentile.

    Returns:
      float32 `[H, W, 3]`, 0 to 1. No motion is black; red points right, and hues go clockwise.
    """
    field = np.asarray(field, np.float32)
    length = np.hypot(field[..., 0], field[..., 1])
    bound = bound if bound is not None else max(float(np.percentile(length, 99)), 1.0)
    hue = (np.arctan2(field[..., 1], field[..., 0]) / (2 * np.pi)) % 1.0
    value = np.clip(length / bound, 0, 1)
    return hsv_to_rgb(np.stack([hue, np.ones_like(hue), value], axis=-1)).astype(np.float32)


def draw_video(path: str, out: Path, *, columns: int = 6) -> Path:
    """Draws frames of a video above their accumulated motion, and returns the picture's path.

    The motion is that of the canonical MPEG-4 form, which the motion network sees too.

    Raises:
      VideoError: the file cannot be read; the message names it and the reason.
    """
    spec = VideoSpec(clip_frames=columns)
    prepared = prepare_video(path, spec)
    indices = prepared.frame_indices.tolist()
    fields = accumulate(prepared.displacements, prepared.is_intra, spec.height, spec.width, indices)
    figure, axes = plt.subplots(
        2, len(indices), figsize=(2.4 * len(indices), 4.4), squeeze=False, layout="constrained"
    )
    for column, (index, picture, field) in enumerate(
        zip(indices, prepared.frames, fields, strict=True)
    ):
        axes[0, column].imshow(Image.open(io.BytesIO(picture)))
        axes[0, column].set_title(f"frame {index}", fontsize=9)
        axes[1, column].imshow(field_to_rgb(field))
        axes[1, column].set_title(f"largest {np.abs(field).max()} px", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(f"{Path(path).name}: frames, and motion since the last I-frame")
    target = out / f"{Path(path).name}_motion.png"
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def draw_curves(workdir: Path, out: Path) -> Path:
    """Draws loss and accuracy of every trained stage over its epochs."""
    histories = {
        "motion": workdir / "motion" / "history.jsonl",
        "CLIP head": workdir / "fusion" / "clip_head" / "history.jsonl",
        "fusion": workdir / "fusion" / "fusion" / "history.jsonl",
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.5), layout="constrained", sharex="col")
    for column, (title, path) in enumerate(histories.items()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for row, metric in enumerate(("loss", "top1")):
            for part in ("train", "validation"):
                points = [
                    (line["epoch"], line[f"{part}_{metric}"])
                    for line in lines
                    if f"{part}_{metric}" in line
                ]
                if points:
                    axes[row, column].plot(*zip(*points, strict=True), label=part)
            axes[row, column].set_ylabel(metric)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("epoch")
        axes[0, column].legend()
    target = out / "curves.png"
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def draw_results(workdir: Path, out: Path) -> list[Path]:
    """Draws the rows as bars, and the fusion row's confusion matrix."""
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    class_names = json.loads((workdir / "export" / "metadata.json").read_text())["class_names"]
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    bars = axis.barh(list(rows), [100 * row["top1"] for row in rows.values()])
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set_xlim(0, 110)
    axis.invert_yaxis()
    axis.set_xlabel("top-1 accuracy in percent")
    figure.savefig(out / "rows.png", dpi=110)
    plt.close(figure)

    scores = np.load(workdir / "evaluate" / "scores.npz")
    counts = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(counts, (scores["label"], scores["fusion"].argmax(axis=1)), 1)
    side = max(4.0, 0.22 * len(class_names))
    figure, axis = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
    image = axis.imshow(counts, cmap="viridis")
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(range(len(class_names)), class_names, fontsize=6)
    axis.tick_params(axis="x", rotation=90)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.colorbar(image, ax=axis, label="test videos")
    figure.savefig(out / "confusion.png", dpi=110)
    plt.close(figure)
    return [out / "rows.png", out / "confusion.png"]


def draw_examples(workdir: Path, out: Path, *, columns: int = 8) -> Path:
    """Draws test videos as both networks saw them, with what each row of results made of them."""
    from ml_collections import ConfigDict

    from input_pipeline.dataset import view_batches
    from moclip_jax.run_data import open_dataset, video_roles
    from moclip_jax.train_motion import motion_views

    metadata = json.loads((workdir / "export" / "metadata.json").read_text())
    config = ConfigDict(metadata["config"])
    class_names = metadata["class_names"]
    dataset = open_dataset(config, workdir, only_open=True)
    roles = video_roles(config, dataset)
    chosen = np.unique(np.linspace(0, len(roles["test"]) - 1, columns).astype(int))
    (batch,) = view_batches(
        dataset,
        [roles["test"][position] for position in chosen],
        motion=motion_views(config.motion, num_segments=1),
        frames="middle",
        image_size=128,
        batch_size=len(chosen),
    ).as_numpy_iterator()
    scores = np.load(workdir / "evaluate" / "scores.npz")
    figure, axes = plt.subplots(
        2, len(chosen), figsize=(2.0 * len(chosen), 5.2), squeeze=False, layout="constrained"
    )
    for row, index in enumerate(batch["index"]):
        position, column = chosen[index], row
        field = (batch["motion"][row, 0, 0].astype(np.float32) - 128) * config.motion.bound / 127.5
        axes[0, column].imshow(batch["images"][row, 0])
        axes[0, column].set_title(class_names[batch["label"][row]], fontsize=9)
        axes[1, column].imshow(field_to_rgb(field))
        guesses = [
            f"{name}: {class_names[scores[name][position].argmax()]}"
            for name in ("zero_shot", "motion", "fusion")
        ]
        axes[1, column].set_title("\n".join(guesses), fontsize=7)
        for axis in axes[:, column]:
            axis.set_axis_off()
    target = out / "examples.png"
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Draws what was asked for and prints the paths; returns 1 if a video failed."""
    parser = argparse.ArgumentParser(
        prog="python -m moclip_jax.visualize",
        description="Draw the motion of videos, or the curves and results of a run.",
        epilog="example: python -m moclip_jax.visualize clip.mp4 --out=pictures",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files to draw the motion of")
    parser.add_argument("--workdir", default="", help="finished run to draw")
    parser.add_argument("--out", required=True, help="folder for the pictures, made if absent")
    arguments = parser.parse_args(argv)
    if not arguments.videos and not arguments.workdir:
        parser.error("name a VIDEO or a --workdir")
    out = Path(arguments.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for video in arguments.videos:
        try:
            print(draw_video(video, out))
        except VideoError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if arguments.workdir:
        # TensorFlow Datasets warns about its own internals.
        logging.set_verbosity(logging.ERROR)
        workdir = Path(arguments.workdir).expanduser()
        for needed in ("results.json", "export/metadata.json"):
            if not (workdir / needed).exists():
                print(f"error: no {needed} in {workdir}; finish its run first", file=sys.stderr)
                return 1
        drawn = (
            draw_curves(workdir, out),
            *draw_results(workdir, out),
            draw_examples(workdir, out),
        )
        for path in drawn:
            print(path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
