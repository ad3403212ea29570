"""Draw docs/images/block_motion.png: what sign, unit and blocks of a motion field mean.

    python docs/make_motion_figure.py

The clip is one of the embedded moving shapes, encoded as any file is; nothing is drawn by hand.
"""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

# Runs from a checkout, without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moclip_jax.input_pipeline.datasets.shapes import render_clip
from moclip_jax.input_pipeline.video.clip import VideoSpec, clip_from_frames

FRAME = 8
BOUND = 20.0


def main() -> None:
    """Write the figure."""
    frames = render_clip(
        "star", "rising", group_seed=3, clip_seed=1, num_frames=24, height=128, width=128
    )
    spec = VideoSpec(width=128, height=128, clip_frames=24, frame_size=128)
    prepared = clip_from_frames(frames, spec, 25.0)
    own = prepared.displacements[FRAME].astype(int)
    field = prepared.motion.accumulate([FRAME])[0]
    as_bytes = np.clip((field * 127.5 / BOUND).astype(int) + 128, 0, 255)
    image = Image.open(io.BytesIO(prepared.frames[list(prepared.frame_indices).index(FRAME)]))

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.9), layout="constrained")
    axes[0].imshow(image)
    row, column = np.nonzero(own.any(-1))
    for y, x in zip(row, column, strict=True):
        axes[0].add_patch(plt.Rectangle((8 * x, 8 * y), 8, 8, fill=False, lw=0.5, color="white"))
    axes[0].quiver(
        8 * column + 4, 8 * row + 4, own[row, column, 0], own[row, column, 1],
        color="yellow", angles="xy", scale_units="xy", scale=0.5,
    )  # fmt: skip
    axes[0].set_title(f"frame {FRAME}: src - dst of its blocks,\nwhere they came from (x2)")
    for axis, values, title in (
        (axes[1], field[..., 0], "x since the I-frame, pixels\nposition - origin: right is +"),
        (axes[2], field[..., 1], "y since the I-frame, pixels\nposition - origin: down is +"),
    ):
        image = axis.imshow(values, cmap="coolwarm", vmin=-BOUND, vmax=BOUND)
        axis.set_title(title)
        figure.colorbar(image, ax=axis, shrink=0.8)
    image = axes[3].imshow(as_bytes[..., 1], cmap="gray", vmin=0, vmax=255)
    axes[3].set_title("y as the network sees it:\nint(v * 127.5 / 20) + 128")
    figure.colorbar(image, ax=axes[3], shrink=0.8)
    for axis in axes:
        axis.set_axis_off()
    target = Path(__file__).parent / "images" / "block_motion.png"
    figure.savefig(target, dpi=80)
    print(target)


if __name__ == "__main__":
    main()
