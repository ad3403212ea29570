"""Draws the figures of docs/method.md: `python docs/make_figures.py --workdir=runs/demo`.

One shows what motion vectors are, the other what the four rows of a finished run of the demo
confuse.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[1]
# Run as a file, so that the packages beside it are found without an installation.
sys.path.insert(0, str(REPOSITORY))

from moclip_jax.configs import demo  # noqa: E402
from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, SHAPES, render_clip  # noqa: E402
from moclip_jax.input_pipeline.video.accumulate import accumulate  # noqa: E402
from moclip_jax.input_pipeline.video.clip import VideoSpec, clip_from_frames  # noqa: E402
from moclip_jax.reporting.motion_figures import field_to_rgb  # noqa: E402
from moclip_jax.reporting.run_figures import ROW_TITLES, confusion_counts  # noqa: E402

FRAMES = (1, 4, 8, 11, 12, 16, 23)


def draw_motion(path: Path) -> None:
    """Draw frames of a clip, the motion since the frame before, and since the I-frame."""
    spec = VideoSpec(**demo.get_config().video.to_dict())
    frames = render_clip(
        "star", "growing", group_seed=1, clip_seed=2, num_frames=24, height=128, width=128
    )
    video = clip_from_frames(frames, spec, fps=25.0)
    shape = (spec.height, spec.width)
    since_i_frame = accumulate(video.displacements, video.is_intra, *shape, list(FRAMES))
    # A frame's own motion is the accumulated one if every frame before it were an I-frame.
    always = np.ones_like(video.is_intra)
    own = []
    for index in FRAMES:
        intra = always.copy()
        intra[index] = video.is_intra[index]
        own.append(accumulate(video.displacements, intra, *shape, [index])[0])
    figure = Figure(figsize=(9, 4.3), layout="constrained")
    axes = figure.subplots(3, len(FRAMES))
    for column, index in enumerate(FRAMES):
        kind = "I" if video.is_intra[index] else "P"
        axes[0, column].imshow(frames[index])
        axes[0, column].set_title(f"frame {index} ({kind})", fontsize=9)
        axes[1, column].imshow(field_to_rgb(own[column], bound=8))
        axes[2, column].imshow(field_to_rgb(since_i_frame[column], bound=8))
    for axis, title in zip(axes[:, 0], ("frame", "own vectors", "accumulated"), strict=True):
        axis.set_ylabel(title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=100)


def draw_confusions(workdir: Path, path: Path) -> None:
    """Draw the confusion matrix of every row, six classes of one shape after another."""
    scores = np.load(workdir / "evaluate" / "scores.npz")
    metadata = json.loads((workdir / "export" / "metadata.json").read_text())
    names = [f"{shape} {motion}" for shape in SHAPES for motion in MOTIONS]
    order = np.array([metadata["class_names"].index(name) for name in names])
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    axes = figure.subplots(1, len(ROW_TITLES))
    for axis, (row, title) in zip(axes, ROW_TITLES.items(), strict=True):
        counts = confusion_counts(scores["label"], scores[row].argmax(axis=1), len(names))
        axis.imshow(counts[np.ix_(order, order)], cmap="Greys", interpolation="nearest")
        axis.set_title(f"{title}: {100 * metadata['rows'][row]['top1']:.1f}", fontsize=10)
        edges = np.arange(0, len(names) + 1, len(MOTIONS)) - 0.5
        for edge in edges:
            axis.axhline(edge, color="0.75", linewidth=0.5)
            axis.axvline(edge, color="0.75", linewidth=0.5)
        middles = edges[:-1] + len(MOTIONS) / 2
        axis.set_xticks(middles, SHAPES, rotation=90, fontsize=7)
        axis.set_yticks(middles, SHAPES if axis is axes[0] else [""] * len(SHAPES), fontsize=7)
        axis.tick_params(length=0)
    axes[0].set_ylabel("true", fontsize=8)
    figure.supxlabel("called", fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="finished run of configs/demo.py")
    parser.add_argument("--out", default=str(REPOSITORY / "docs" / "images"))
    arguments = parser.parse_args()
    draw_motion(Path(arguments.out) / "motion.png")
    draw_confusions(Path(arguments.workdir), Path(arguments.out) / "confusions.png")
