"""Flipping a field gives what a mirrored camera would have given, up to the block grid.

Frames are really encoded twice, once mirrored, and the pipeline's flip of the one field is held
against the other.
"""

import numpy as np
import pytest

from moclip_jax.input_pipeline.motion_fields import Crop, CropResizer, scale_to_uint8, ten_crops
from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.clip import VideoSpec, clip_from_frames
from moclip_jax.input_pipeline.video.decode import decode_frames
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import drifting_frames

# A multiple of 16, so that the macroblocks of the mirrored frame are the mirrored macroblocks.
SPEC = VideoSpec(width=336, height=256)
SIDE = 256  # At which the resize leaves the rows alone.
# 255 - v turns the sign of a byte up to half a grey level on either side; a pixel is 6.4 of them.
ONE_LEVEL, ONE_PIXEL = 1, 7


def field_of(frames: np.ndarray, index: int) -> np.ndarray:
    """Encode uint8 `[n, h, w, 3]` and return the field uint8 `[SIDE, SIDE, 2]` of one frame."""
    prepared = clip_from_frames(frames, SPEC, 25)
    motion = accumulate(prepared.displacements, prepared.is_intra, SPEC.height, SPEC.width, [index])
    field = scale_to_uint8(motion[0], (SPEC.height, SPEC.width), SPEC, 20.0)
    return CropResizer(SPEC.height, SPEC.width, Crop(SIDE, 0, 0, SIDE))(field)


def views(frames: np.ndarray, index: int) -> dict[str, np.ndarray]:
    """Return int `[SIDE, SIDE, 2]`: the mirrored video's field, and what is held against it."""
    field = field_of(frames, index)
    # The sixth of the ten crops is the first one flipped; at this size all are the whole frame.
    crops = ten_crops(field[None], SIDE)[:, 0].astype(int)
    mirrored = np.ascontiguousarray(frames[:, :, ::-1])
    expected = field_of(mirrored, index).astype(int)
    return {
        "expected": expected,
        "flipped": crops[5],
        "sign not turned": crops[0][:, ::-1],
        "not flipped": crops[0],
    }


def test_exact_where_the_content_leaves_the_encoder_no_choice():
    """A texture that drifts evenly has one right vector everywhere but at the edges."""
    fields = views(drifting_frames(6, SPEC.height, SPEC.width, step=(3, 2)), 4)
    inner = np.s_[48:-48, 48:-48]
    difference = np.abs(fields["flipped"] - fields["expected"])[inner]
    assert (difference.max(-1) <= ONE_LEVEL).mean() > 0.99
    assert np.abs(fields["sign not turned"] - fields["expected"])[inner].min(axis=(0, 1))[0] > 100


@pytest.mark.parametrize("name", real_clips.NAMES)
def test_real_clips_agree_within_the_freedom_of_the_motion_search(name):
    """The search goes from left to right, so flat or repeating patches may end at other vectors.

    Of the pixels that move in both fields more than half must agree to a grey level and seven in
    ten to a pixel; without the turned sign or without the flip far fewer do.
    """
    frames = []
    for frame in decode_frames(real_clips.path(name)):
        frames.append(frame.to_ndarray(format="rgb24"))
        if len(frames) == 4:
            break
    fields = views(np.stack(frames), 3)
    expected = fields.pop("expected")
    moving = (np.abs(expected - 128).max(-1) >= ONE_PIXEL) & (
        np.abs(fields["flipped"] - 128).max(-1) >= ONE_PIXEL
    )
    assert moving.mean() > 0.03
    off = {key: np.abs(field - expected).max(-1)[moving] for key, field in fields.items()}
    shares = {key: (difference <= ONE_PIXEL).mean() for key, difference in off.items()}
    assert np.median(off["flipped"]) <= ONE_LEVEL
    assert shares["flipped"] > 0.7
    assert shares["sign not turned"] < 0.6 * shares["flipped"]
    assert shares["not flipped"] < 0.6 * shares["flipped"]
