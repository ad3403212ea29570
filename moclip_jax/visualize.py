"""Command line of figures: the motion of videos; curves and examples of a finished run."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from moclip_jax.input_pipeline.video.clip import (
    VideoError,
    VideoSpec,
    frame_positions,
    read_clip,
)
from moclip_jax.input_pipeline.video.files import describe_skipped, find_videos
from moclip_jax.reporting.motion_figures import draw_motion, field_to_rgb, write_annotated_video
from moclip_jax.reporting.run_figures import (
    GREYS,
    ROW_TITLES,
    confusion_counts,
    draw_confusion,
    draw_curves,
    figure_style,
)
from moclip_jax.runtime.cli import STATUS_ERROR, STATUS_OK, CommandParser, run
from moclip_jax.runtime.progress import Progress

if TYPE_CHECKING:
    from moclip_jax.inference.recognizer import Prediction, Recognizer

# Frames drawn of a video, and seconds between two predictions in an annotated one.
PICTURES = 6
WINDOW_S = 1.0


def draw_results(workdir: Path, out: Path) -> list[Path]:
    """Draw the curves of training, the rows as bars, and the fusion's confusion matrix, if any."""
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    class_names = json.loads((workdir / "export" / "metadata.json").read_text())["class_names"]
    scores = np.load(workdir / "evaluate" / "scores.npz")
    label, guess = scores["label"], scores["fusion"].argmax(axis=1)
    with figure_style():
        figures = dict(zip(["curves.png"], draw_curves(workdir), strict=False)) | {
            "rows.png": _draw_rows(rows)
        }
        # With several labels a video, there is no single class that it was taken for.
        if label.ndim == 1:
            counts = confusion_counts(label, guess, len(class_names))
            figures["confusion.png"] = draw_confusion(counts, class_names)
        for name, figure in figures.items():
            figure.savefig(out / name, dpi=110)
    return [out / name for name in figures]


def _draw_rows(rows: dict[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(
        [ROW_TITLES[name] for name in rows],
        [100 * row["top1"] for row in rows.values()],
        color=[GREYS[name] for name in rows],
    )
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set_xlim(0, 110)
    axis.invert_yaxis()
    axis.set_xlabel("top-1 accuracy in percent")
    return figure


def draw_examples(workdir: Path, out: Path, *, columns: int = 8) -> Path:
    """Draw test videos as both networks saw them, with what each row of results made of them."""
    from ml_collections import ConfigDict

    from moclip_jax.config import motion_views
    from moclip_jax.input_pipeline.batches import view_batches
    from moclip_jax.training.prepare import open_dataset, video_splits

    metadata = json.loads((workdir / "export" / "metadata.json").read_text())
    config = ConfigDict(metadata["config"])
    class_names = metadata["class_names"]
    dataset = open_dataset(config, workdir, only_open=True)
    splits = video_splits(config, dataset)
    chosen = np.unique(np.linspace(0, len(splits["test"]) - 1, columns).astype(int))
    (batch,) = view_batches(
        dataset,
        [splits["test"][position] for position in chosen],
        motion=motion_views(config.motion, num_segments=1),
        frames="middle",
        image_size=128,
        batch_size=len(chosen),
    ).as_numpy_iterator()
    scores = np.load(workdir / "evaluate" / "scores.npz")
    figure = Figure(figsize=(2.0 * len(chosen), 5.2), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for row, index in enumerate(batch["index"]):
        position, column = chosen[index], row
        field = (batch["motion"][row, 0, 0].astype(np.float32) - 128) * config.motion.bound / 127.5
        axes[0, column].imshow(batch["images"][row, 0])
        label = np.atleast_1d(batch["label"][row])
        classes = np.flatnonzero(label) if dataset.multi_label else label
        axes[0, column].set_title(", ".join(class_names[c] for c in classes), fontsize=9)
        axes[1, column].imshow(field_to_rgb(field))
        guesses = [
            f"{name}: {class_names[scores[name][position].argmax()]}"
            for name in ("zero_shot", "motion", "fusion")
            if name in scores
        ]
        axes[1, column].set_title("\n".join(guesses), fontsize=7)
        for axis in axes[:, column]:
            axis.set_axis_off()
    target = out / "examples.png"
    figure.savefig(target, dpi=110)
    return target


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; exits with status 2 where it is not of the right form."""
    parser = CommandParser(
        "moclip_jax.visualize",
        "Draw the motion of videos as colours and arrows, or write a video of it; with a workdir, "
        "what its model says too. A workdir alone draws the curves and results of the run.",
        (
            "clip.mp4 --out=figures",
            "clip.mp4 --workdir=runs/demo --video=annotated.mp4",
            "--workdir=runs/demo --out=runs/demo/figures",
        ),
        usage="[OPTION ...] [VIDEO ...]",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files, folders or patterns")
    parser.add_argument("--workdir", default="", metavar="DIR", help="a finished run")
    parser.add_argument("--out", metavar="DIR", help="folder for figures, made if absent")
    parser.add_argument(
        "--video", metavar="FILE", help="write frame, motion and predictions of one VIDEO"
    )
    parser.add_argument(
        "--raw", action="store_true", help="motion against the frame before, not accumulated"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse(argv)
    if not arguments.videos and not arguments.workdir:
        parser.error("name a VIDEO or a --workdir")
    if arguments.video and len(arguments.videos) != 1:
        parser.error("--video needs exactly one VIDEO")
    if not arguments.out and not arguments.video:
        parser.error("name a folder for the figures with --out, or a file with --video")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what was requested and prints the paths; returns the exit status."""
    arguments = parse_arguments(argv)
    return run(
        lambda: _draw_videos(arguments) if arguments.videos else _draw_run(arguments),
        traceback=arguments.traceback,
    )


def _draw_videos(arguments: argparse.Namespace) -> int:
    model: Recognizer | None = None
    spec = VideoSpec(clip_frames=PICTURES, max_frames=None, max_seconds=None)
    if arguments.workdir:
        from moclip_jax.inference.recognizer import load

        model = load(arguments.workdir)
        spec = dataclasses.replace(model.video, clip_frames=PICTURES)
    status = STATUS_OK
    skipped: list[VideoError] = []
    videos = list(find_videos(arguments.videos, skipped))
    for line in describe_skipped(skipped):
        print(line, file=sys.stderr)
    for found in videos:
        try:
            if isinstance(found, VideoError):
                raise found
            if arguments.out:
                out = Path(arguments.out).expanduser()
                out.mkdir(parents=True, exist_ok=True)
                wanted = functools.partial(frame_positions, clip_frames=PICTURES)
                video = read_clip(found, spec, wanted)
                guesses = _guesses(model.predict(found)) if model else []
                target = out / f"{Path(found).name}_motion.png"
                draw_motion(found, video, target, raw=arguments.raw, guesses=guesses[:3])
                print(target, flush=True)
            if arguments.video:
                print(_write_video(found, arguments, model, spec), flush=True)
        except VideoError as error:
            status = STATUS_ERROR
            print(f"error: {error}", file=sys.stderr)
    return status


def _guesses(prediction: "Prediction") -> list[tuple[str, float]]:
    return [(score.label, score.probability) for score in prediction.scores]


def _write_video(
    path: str, arguments: argparse.Namespace, model: "Recognizer | None", spec: VideoSpec
) -> Path:
    target = Path(arguments.video).expanduser()
    wanted = functools.partial(frame_positions, clip_frames=PICTURES)
    video, guesses_at = read_clip(path, spec, wanted), None
    if model:
        windows = model.timeline(path, seconds=WINDOW_S)
        shown, coming = [next(windows)], [next(windows, None)]

        def guesses_at(time_s: float) -> list[tuple[str, float]]:
            # A window may begin before the one before it has ended; then the later one holds.
            while coming[0] is not None and coming[0].start_s <= time_s:
                shown[0], coming[0] = coming[0], next(windows, None)
            return _guesses(shown[0])

    progress = Progress(video.num_frames, "visualize", "frames", file=sys.stderr)
    try:
        write_annotated_video(
            path,
            video,
            spec,
            target,
            raw=arguments.raw,
            guesses_at=guesses_at,
            each_frame=progress.advance,
        )
    finally:
        progress.clear()
    return target


def _draw_run(arguments: argparse.Namespace) -> int:
    workdir, out = (Path(path).expanduser() for path in (arguments.workdir, arguments.out))
    for needed in ("results.json", "export/metadata.json"):
        if not (workdir / needed).exists():
            raise FileNotFoundError(f"no {needed} in {workdir}; finish its run first")
    out.mkdir(parents=True, exist_ok=True)
    for path in (*draw_results(workdir, out), draw_examples(workdir, out)):
        print(path)
    return STATUS_OK


if __name__ == "__main__":
    sys.exit(main())
