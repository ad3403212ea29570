"""How often a motion-guided crop holds the moving shape of the embedded data set.

    python -m benchmarks.crop_box [--groups=38] [--width=128]

The crop is that of `benchmarks/frame_choice.py` of commit de637af: around the middle frame, which
CLIP sees, the square of most motion, less the median motion of each frame. Its side is a share of
the shorter side. The clips are those of `configs/demo.py`; where their shape is follows from the
seeds. In its square frames there is room for the shape near the centre alone; wider ones are for
other places. Beside it stands the central crop of the same size. A crop holds the shape if all
pixels of the shape, or of the tile that bears it, are inside.
"""

import argparse
from typing import Any

import numpy as np

from moclip_jax.config import video_spec
from moclip_jax.configs import demo
from moclip_jax.input_pipeline.datasets import moving_shapes, shapes
from moclip_jax.input_pipeline.datasets.shape_masks import TILE_PIXELS, shape_mask
from moclip_jax.input_pipeline.video.clip import clip_from_frames
from moclip_jax.runtime.progress import Progress

SHARES = (1.0, 0.75, 0.5)
_AROUND = 8


def motion_energy(clip: Any, frame: int) -> np.ndarray:
    """Return motion around a frame on the grid, float64 `[gh, gw]`."""
    frames = np.arange(max(frame - _AROUND, 0), min(frame + _AROUND, clip.num_frames - 1) + 1)
    motion = clip.motion.cells(frames).astype(np.float64)
    motion -= np.median(motion, axis=(1, 2), keepdims=True)
    return np.hypot(motion[..., 0], motion[..., 1]).sum(0)


def best_square(energy: np.ndarray, share: float) -> tuple[float, float]:
    """Return top and left, from 0 to 1 of the room there is, of the square of most energy."""
    rows, columns = energy.shape
    side = max(round(share * min(rows, columns)), 1)
    total = np.pad(energy, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
    inside += total[:-side, :-side]
    # The middle of all that are equally good, so that no motion gives the central crop.
    good = np.argwhere(inside >= inside.max() * (1 - 1e-9)).mean(0)
    room = np.maximum(np.array(inside.shape) - 1, 1)
    return float(good[0] / room[0]) if inside.shape[0] > 1 else 0.5, float(good[1] / room[1])


def middle_outlines(
    shape: str, group: int, clip: int, width: int, height: int
) -> dict[str, np.ndarray]:
    """Return points (x, y) of the shape and of its tile in the middle frame, float64 `[n, 2]`."""
    state = shapes._draw_state(group, clip)
    reach = max(state.radius + state.travel / 2, state.radius * state.zoom)
    middle, size = np.array((width, height)) / 2, min(width, height)
    center = middle + state.offset * np.maximum(middle - reach * size - 1, 0)
    angles = np.linspace(0, 2 * np.pi, 360)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows, columns = np.nonzero(shape_mask(shape) > 0.5)
    u, v = ((2 * np.stack([columns, rows]) + 1) / TILE_PIXELS - 1).astype(np.float64)
    cos, sin = np.cos(state.angle), np.sin(state.angle)
    turned = np.stack([cos * u - sin * v, sin * u + cos * v], axis=1)
    radius = state.radius * size
    return {"shape": center + radius * turned, "tile": center + radius * circle}


def main() -> int:
    """Print the shares of clips by the size of the crop."""
    parser = argparse.ArgumentParser("benchmarks.crop_box", description=__doc__)
    parser.add_argument("--groups", type=int, default=38, help="30 to train on and 8 to test on")
    parser.add_argument("--width", type=int, default=128, help="of the frame; its height is 128")
    arguments = parser.parse_args()
    config = demo.get_config()
    config.video.width = width = arguments.width
    spec, height = video_spec(config), config.video.height
    num_frames = config.dataset.options.num_frames
    classes = [(shape, motion) for shape in shapes.SHAPES for motion in shapes.MOTIONS]
    held: dict[tuple[str, float, str], dict[str, list[bool]]] = {}
    progress = Progress(arguments.groups, "crop_box", "groups")
    for number in range(arguments.groups):
        group = moving_shapes._GROUPS_PER_SEED + number
        for label, (shape, motion) in enumerate(classes):
            frames = shapes.render_clip(
                shape,
                motion,
                group_seed=group,
                clip_seed=label,
                num_frames=num_frames,
                height=height,
                width=width,
            )
            clip = clip_from_frames(frames, spec, moving_shapes.FPS)
            energy = motion_energy(clip, num_frames // 2)
            outlines = middle_outlines(shape, group, label, width, height)
            for share in SHARES:
                side = round(share * min(width, height))
                room = np.array((width, height)) - side
                found = room * best_square(energy, share)[::-1]
                for crop, corner in (("motion", found), ("central", room / 2)):
                    for what, points in outlines.items():
                        inside = (points >= corner) & (points <= corner + side)
                        of_motion = held.setdefault((crop, share, what), {})
                        of_motion.setdefault(motion, []).append(bool(inside.all()))
        progress.advance()
    progress.done()
    print(f"{arguments.groups * len(classes)} clips of {width}x{height}, percent")
    print("| crop | holds | all |", " | ".join(shapes.MOTIONS), "|")
    print("|---" * (3 + len(shapes.MOTIONS)) + "|")
    for (crop, share, what), of_motion in held.items():
        every = np.mean([inside for each in of_motion.values() for inside in each])
        cells = [every, *(np.mean(of_motion[motion]) for motion in shapes.MOTIONS)]
        print(f"| {crop}, {share} | {what} |", " | ".join(f"{100 * x:.1f}" for x in cells), "|")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
