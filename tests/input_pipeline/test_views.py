"""Test views are the accumulated motion, scaled as Python does and resized by TensorFlow."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from moclip_jax.input_pipeline import sampling
from moclip_jax.input_pipeline.video.clip import (
    Clip,
    VideoSpec,
    read_clip,
)
from moclip_jax.input_pipeline.views import (
    GridViews,
    MotionViews,
    flip_windows,
    test_view,
)
from tests.input_pipeline.test_native_motion import to_bytes
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(source="native", width=96, height=64, clip_frames=2)
VIEWS = MotionViews(num_segments=6, image_size=24, resize_size=32)
FORMS = {
    "plain": {},
    "b-frames": {"codec": "libx264", "options": {"bf": "3", "g": "15"}},
    "open groups": {"codec": "mpeg2video", "options": {"bf": "2", "g": "9"}},
    "long groups": {"codec": "libx264", "options": {"bf": "2", "g": "250", "sc_threshold": "0"}},
    "turned": {"codec": "mpeg4", "options": {"bf": "2"}, "rotation": -90},
}


def moving_video(folder: pathlib.Path, form: str) -> pathlib.Path:
    size = (58, 84) if form == "plain" else (64, 80)
    frames = drifting_frames(40, *size, step=(3, -2))
    return write_video(folder / ("a.mov" if form == "turned" else "a.mkv"), frames, **FORMS[form])


def by_definition(video: Clip, views: MotionViews, spec: VideoSpec) -> np.ndarray:
    frames = sampling.test_segments(video.num_frames, views.num_segments) + video.lead
    frames = sampling.frame_before_intra(frames, video.is_intra)
    of = video.motion.accumulate if views.accumulated else video.motion.each_alone
    fields = tf.constant(to_bytes(of(frames), spec, views.bound))
    side, size = views.resize_size, views.image_size
    resized = tf.image.resize(fields, [side, side], "bilinear", antialias=False)
    resized = tf.saturate_cast(tf.round(resized), tf.uint8).numpy()
    end, middle = side - size, (side - size) // 2
    corners = [(middle, middle)]
    if views.crops == 10:
        corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    crops = np.stack([resized[:, y : y + size, x : x + size] for y, x in corners])
    if views.crops == 1:
        return crops
    flipped = crops[..., ::-1, :].copy()
    flipped[..., 0] = 255 - flipped[..., 0]
    return np.concatenate([crops, flipped])


@pytest.mark.parametrize("accumulated", [True, False])
@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize("form", FORMS)
def test_the_test_view_of_a_file_is_the_same_in_memory_and_by_definition(
    form, crops, accumulated, tmp_path
):
    prepared = read_clip(moving_video(tmp_path, form), SPEC)
    views = dataclasses.replace(VIEWS, num_segments=7, accumulated=accumulated, crops=crops)
    # A window of a stream that begins behind an I-frame, and one that ends among B-frames.
    window = dataclasses.replace(prepared, lead=5, num_frames=21)
    part = prepared.part(0, 18, np.array([True] * len(prepared.frames)))
    moves = []
    for video in (prepared, window, part):
        expected = by_definition(video, views, SPEC)
        moves.append((expected != 128).any())
        view = test_view(video, views, SPEC)
        assert view.dtype == np.uint8
        np.testing.assert_array_equal(view, expected)
    # The middle of the turned window is at rest.
    assert all(moves) if crops == 10 else any(moves)


@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 48), (32, 32), (46, 130)])
def test_the_canonical_form_too_whatever_its_size(height, width, crops, tmp_path):
    """The square is 32 pixels wide: both axes are resized, or one, or none."""
    spec = VideoSpec(width=width, height=height)
    prepared = read_clip(moving_video(tmp_path, "plain"), spec)
    views = dataclasses.replace(VIEWS, crops=crops)
    expected = by_definition(prepared, views, spec)
    assert (expected != 128).any()
    np.testing.assert_array_equal(test_view(prepared, views, spec), expected)


GRID_SPEC = VideoSpec(width=96, height=64, clip_frames=2, gop_size=6)
GRID_VIEWS = GridViews(num_segments=3, window=5, rows=4, columns=6)


def windows_by_definition(clip: Clip, frames: np.ndarray) -> np.ndarray:
    """The motion of every block's first pixel, of the frame before if the frame is an I-frame."""
    result = np.zeros((*frames.shape, 4, 6, 2), np.uint8)
    for place in np.ndindex(*frames.shape):
        frame = frames[place] - clip.is_intra[frames[place]]
        for row in range(4):
            for column in range(6):
                back = clip.displacements[frame, 2 * row, 2 * column].astype(int)
                result[(*place, row, column)] = np.clip(128 - back, 1, 255)
    return result


def test_grid_windows_are_the_blocks_of_the_canonical_form(tmp_path):
    clip = read_clip(moving_video(tmp_path, "plain"), GRID_SPEC)
    # The canonical form's blocks have 16 pixels: all cells of a block are the same.
    assert (clip.displacements.reshape(-1, 4, 2, 6, 2, 2).std((2, 4)) == 0).all()
    frames = sampling.test_windows(clip.num_frames, 3, 5)
    expected = windows_by_definition(clip, frames)
    assert expected.std() > 1
    np.testing.assert_array_equal(test_view(clip, GRID_VIEWS, GRID_SPEC)[0], expected)

    flipped = expected[..., ::-1, :].astype(int)
    flipped[..., 0] = 256 - flipped[..., 0]
    np.testing.assert_array_equal(flip_windows(expected), flipped)
