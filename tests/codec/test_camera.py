"""The camera's motion is found although things move, and however the frame is turned."""

import numpy as np
import pytest

from moclip_jax import codec
from moclip_jax.codec.camera import fit_camera
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

CAMERAS = {
    "still": np.zeros((2, 3)),
    "pan": np.array([[0, 0, 5.0], [0, 0, -3.0]]),
    "zoom": np.array([[0.03, 0, -4.0], [0, 0.03, -2.0]]),
    "turn": np.array([[0, -0.02, 1.0], [0.02, 0, -3.0]]),
}


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_camera_is_what_most_vectors_agree_on(name, share):
    y, x = np.mgrid[:144, :256]
    exact = np.einsum("ij,jhw->ihw", CAMERAS[name], np.stack([x, y, np.ones_like(x)]))
    motion = np.round(exact)  # As vectors are.
    moving = np.zeros((144, 256), bool)
    moving[40 : 40 + int(144 * share), 20:240] = True
    motion[:, moving] += np.array([9, 4])[:, None]
    found = codec.remove_camera(motion)
    assert found.dtype == np.float32
    # Half a pixel of rounding, and a little.
    assert np.abs(found[:, ~moving]).max() < 0.8
    if share:
        assert np.abs(found[:, moving] - np.array([9, 4])[:, None]).max() < 0.8
    np.testing.assert_allclose(
        found, codec.remove_camera(motion, codec.camera_motion(motion)), atol=0
    )
    where = ~moving
    only = codec.camera_motion(np.where(moving, 99, motion), where)
    assert np.abs(exact - codec_map(only, 144, 256)).max() < 0.5


def codec_map(camera: np.ndarray, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.einsum("ij,jhw->ihw", camera, np.stack([x, y, np.ones_like(x)]))


def test_few_vectors_or_vectors_in_a_row_give_their_median():
    assert not fit_camera(np.zeros((0, 2)), np.zeros((0, 2))).any()
    few = np.array([[1.0, 2], [3, 2], [3, 8]])
    np.testing.assert_array_equal(fit_camera(few, few), [[0, 0, 3], [0, 0, 2]])
    row = np.stack([np.arange(40.0) * 8, np.full(40, 4.0)], -1)
    moved = np.stack([np.arange(40.0) % 3, np.zeros(40)], -1)
    np.testing.assert_array_equal(fit_camera(row, moved), [[0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_pan_is_removed_and_what_moves_stays_in_a_file_of_any_turn(tmp_path, rotation):
    frames = drifting_frames(10, 96, 160, step=(4, 2))
    moving = drifting_frames(10, 32, 32, step=(0, 0), seed=3)
    for index in range(10):
        frames[index, 20 : 20 + 32, 20 + 8 * index : 52 + 8 * index] = moving[index]
    path = write_video(
        tmp_path / "a.mp4", frames, codec="libx264", options={"bf": "0"}, rotation=rotation
    )
    for frame in list(codec.frames(path))[2:]:
        # What the file says of the whole map, fitted where it is shown, not where it is coded.
        shown = codec.camera_motion(frame.raw, ~frame.intra)
        assert np.abs(camera_difference(frame, shown)).max() < 0.5
        rest = np.hypot(*frame.object_motion)
        at_rest = rest < 1
        assert 0.6 < at_rest.mean() < 0.97
        # It passes at 4 pixels a frame to the right of the background, and 2 up.
        fastest = np.median(np.hypot(*frame.raw)[~at_rest])
        assert fastest > 5


def camera_difference(frame, camera) -> np.ndarray:
    return codec_map(frame.camera - camera, frame.height, frame.width)
