"""Patches that changed, against a definition block by block and against the pixels themselves."""

import numpy as np
import pytest

from moclip_jax import codec
from moclip_jax.codec.patches import cell_change
from moclip_jax.input_pipeline.datasets.shapes import render_clip
from tests.input_pipeline.video_fixtures import drifting_frames, write_video


def moving_square(num_frames: int = 20, side: int = 40, *, step=(5, 3)) -> np.ndarray:
    background = drifting_frames(1, 168, 224, step=(0, 0), seed=1)
    frames = np.repeat(background, num_frames, 0)
    square = drifting_frames(1, side, side, step=(0, 0), seed=2)[0]
    for index in range(num_frames):
        x, y = 8 + step[0] * index, 30 + step[1] * index
        frames[index, y : y + side, x : x + side] = 255 - square
    return frames


def change_by_definition(frame) -> np.ndarray:
    """How much each pixel changed, from each block's own motion: [H, W] as it is coded."""
    height, width = frame.coded_size
    speed = np.asarray(frame.cell_speed, np.float64)
    moving = speed / (speed + 1)
    left_behind = np.zeros((len(speed), len(speed[0])))
    for y, x in np.ndindex(*speed.shape):
        dx, dy = frame.blocks.displacements[y, x]
        for v, u in np.ndindex(8, 8):
            row, column = (8 * y + v + dy) // 8, (8 * x + u + dx) // 8
            if 0 <= row < len(speed) and 0 <= column < len(speed[0]):
                left_behind[row, column] += moving[y, x] / 64
    change = np.minimum(moving + left_behind, 1)
    change[frame.uncovered] = 1
    spread = change.copy()
    for y, x in np.ndindex(*change.shape):
        for reach, share in ((1, 1 / 4), (2, 1 / 10)):
            around = change[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            spread[y, x] = max(spread[y, x], share * around.max())
    change = spread
    return change.repeat(8, 0).repeat(8, 1)[:height, :width]


@pytest.mark.parametrize("rotation", [0, 90, 180])
def test_scores_are_the_changed_pixels_of_each_patch(tmp_path, rotation):
    frames = moving_square(6)[:, 20:120, 10:150]
    path = write_video(
        tmp_path / "a.mp4", frames, codec="libx264", options={"bf": "0"}, rotation=rotation
    )
    described = list(codec.frames(path, accumulated=False))
    masks = codec.patch_mask(path, patch=14, keep=0.2)
    height, width = described[0].height, described[0].width
    assert masks.shape == (6, height // 14, width // 14)
    for frame, mask in zip(described, masks, strict=True):
        changes = change_by_definition(described[max(frame.index, 1)])
        shown = {0: changes, 90: np.rot90(changes, 1), 180: np.rot90(changes, 2)}[rotation]
        score = np.array(
            [
                [
                    shown[14 * r : 14 * r + 14, 14 * c : 14 * c + 14].sum()
                    for c in range(width // 14)
                ]
                for r in range(height // 14)
            ]
        )
        assert mask.sum() == round(0.2 * mask.size)
        # No patch that is left out changed more than one that is kept.
        assert score[mask].min() >= score[~mask].max() - 1e-3


def kept_share(frames: np.ndarray, masks: np.ndarray, patch: int) -> float:
    """Share of the pixels that differ from the frame before which lie in kept patches."""
    kept = changed = 0
    rows, columns = masks.shape[1:]
    for index in range(1, len(frames)):
        difference = np.abs(frames[index].astype(int) - frames[index - 1]).max(axis=-1) > 12
        inside = difference[: rows * patch, : columns * patch]
        in_patches = inside.reshape(rows, patch, columns, patch).sum((1, 3))
        kept, changed = kept + in_patches[masks[index]].sum(), changed + in_patches.sum()
    assert changed
    return kept / changed


@pytest.mark.parametrize(("encoder", "options"), [("mpeg4", {}), ("libx264", {})])
@pytest.mark.parametrize("step", [(5, 3), (2, 0), (0, -1), (8, 1)])
def test_a_quarter_of_the_patches_holds_99_percent_of_what_changed(
    tmp_path, encoder, options, step
):
    frames = moving_square(step=step)
    path = write_video(tmp_path / "a.mp4", frames, codec=encoder, options=options)
    masks = codec.patch_mask(path, patch=14, keep=0.25)
    assert masks.mean() == pytest.approx(0.25, abs=0.01)
    assert kept_share(frames, masks, 14) >= 0.99


def test_of_chosen_frames_the_change_since_the_row_before_counts(tmp_path):
    frames = moving_square()
    path = write_video(tmp_path / "a.mp4", frames, codec="mpeg4")
    chosen = [2, 9, 15]
    masks = codec.patch_mask(path, patch=14, keep=0.3, indices=chosen)
    assert kept_share(frames[chosen], masks, 14) >= 0.97
    every = codec.patch_mask(path, patch=14, keep=0.3)
    np.testing.assert_array_equal(masks[0], every[2])
    np.testing.assert_array_equal(
        codec.patch_mask(path, keep=0.3, indices=[15, 2, 9]), masks[[2, 0, 1]]
    )
    by_time = codec.patch_mask(path, keep=0.3, times=[index / 25 for index in chosen])
    np.testing.assert_array_equal(by_time, masks)


def test_a_drawn_clip_under_a_drifting_camera(tmp_path):
    frames = render_clip(
        "star", "rising", group_seed=1, clip_seed=2, num_frames=24, height=224, width=224
    )
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264")
    *_, frame = codec.frames(path)
    assert cell_change(frame).shape == (28, 28)
    masks = codec.patch_mask(path, patch=16, keep=0.5)
    assert masks.shape == (24, 14, 14) and masks.mean() == 0.5


def test_a_video_of_i_frames_alone_keeps_the_first_patches(tmp_path):
    path = write_video(
        tmp_path / "a.mp4", drifting_frames(4, 56, 56), codec="libx264", options={"g": "1"}
    )
    masks = codec.patch_mask(path, source="native")
    assert masks.tolist() == [[[True] * 4] + [[False] * 4] * 3] * 4


def test_what_cannot_be_is_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(4, 48, 64))
    for arguments, message in (
        ({"keep": 0.0}, "keep is 0.0, must be above 0 and at most 1"),
        ({"patch": 0}, "patch is 0, must be at least 1"),
        ({"patch": 50}, "patch is 50, larger than the frame of 64x48"),
        ({"indices": [0], "times": [0.0]}, "takes indices or times, not both"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.patch_mask(path, **arguments)
    with pytest.raises(IndexError, match="frame 4 is outside the video"):
        codec.patch_mask(path, indices=[0, 4])
    with pytest.raises(IndexError, match="no frame chosen"):
        codec.patch_mask(path, indices=[])
