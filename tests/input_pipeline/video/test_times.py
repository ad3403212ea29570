"""Times and rates of frames are those of the time stamps, in every container."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest

from moclip_jax.input_pipeline.video.clip import (
    clip_from_frames,
    read_clip,
)
from moclip_jax.input_pipeline.video.decode import check_video
from moclip_jax.input_pipeline.video.times import frame_times
from tests.input_pipeline.video.test_containers import NATIVE, SIZE, SPEC, UNEVEN, seconds
from tests.input_pipeline.video_fixtures import drifting_frames, remux, write_video


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.flv", "libx264"), ("a.ts", "libx264"), ("a.webm", "libvpx")],
)
def test_the_rate_is_that_of_the_time_stamps_whatever_is_declared(tmp_path, name, codec):
    frames = drifting_frames(30, *SIZE)
    times = [40 * index for index in range(30)]
    path = write_video(tmp_path / name, frames, codec=codec, rate=1000, times_ms=times)
    for spec in (SPEC, dataclasses.replace(SPEC, source="auto")):
        clip = read_clip(path, spec)
        assert clip.fps == 25
        np.testing.assert_allclose(clip.times, np.arange(30) / 25, atol=1e-9)
        assert clip.duration == pytest.approx(1.2)
    assert check_video(path).fps == 25


def test_a_browsers_webm_declares_neither_rate_nor_duration(tmp_path):
    frames = drifting_frames(len(UNEVEN), *SIZE)
    recorded = write_video(tmp_path / "a.mkv", frames, codec="libvpx", times_ms=UNEVEN)
    path = remux(recorded, tmp_path / "a.webm", container_options={"live": "1"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (container.duration, stream.average_rate) == (None, None)
    clip = read_clip(path, SPEC)
    np.testing.assert_allclose(clip.times, UNEVEN / 1000)
    assert clip.fps == check_video(path).fps == pytest.approx(14 / (UNEVEN[-1] / 1000))


def test_a_single_frame_has_the_declared_rate(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(1, *SIZE), rate=10)
    clip = read_clip(path, SPEC)
    assert (clip.fps, clip.times.tolist(), clip.duration) == (10, [0], 0.1)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.flv"])
@pytest.mark.parametrize("spec", [SPEC, NATIVE])
def test_every_frame_carries_its_own_time(tmp_path, name, spec):
    frames = drifting_frames(len(UNEVEN), *SIZE)
    codec = "libx264"
    path = write_video(tmp_path / name, frames, codec=codec, times_ms=UNEVEN, options={"bf": "2"})
    clip = read_clip(path, spec)
    assert clip.times.dtype == np.float64
    np.testing.assert_allclose(clip.times, UNEVEN / 1000, atol=1e-3)
    assert clip.fps == pytest.approx(14 / (UNEVEN[-1] / 1000), rel=1e-3)
    np.testing.assert_allclose(np.diff(seconds(path)), np.diff(UNEVEN) / 1000, atol=1e-3)
    for index, time in enumerate(UNEVEN / 1000):
        assert clip.frame_at(time + 0.002) == index


def test_a_part_of_a_video_has_the_times_since_its_first_frame(tmp_path):
    frames = drifting_frames(len(UNEVEN), *SIZE)
    clip = read_clip(write_video(tmp_path / "a.mkv", frames, times_ms=UNEVEN), SPEC)
    part = clip.part(5, 9, np.ones(len(clip.frames), bool))
    np.testing.assert_allclose(part.times, (UNEVEN[5:9] - UNEVEN[5]) / 1000)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv"])
def test_the_frames_decoded_at_the_end_have_times_too(tmp_path, name):
    frames = drifting_frames(40, *SIZE)
    options = {"bf": "3", "g": "20"}
    path = write_video(tmp_path / name, frames, codec="libx264", options=options)
    times = seconds(path)
    assert len(times) == 40
    np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1e-3)


def test_a_raw_stream_has_the_rate_that_ffmpeg_assumes(tmp_path):
    path = write_video(tmp_path / "a.h264", drifting_frames(20, *SIZE), codec="libx264")
    clip = read_clip(path, SPEC)
    assert clip.fps == 25
    np.testing.assert_allclose(clip.times, np.arange(20) / 25)


def test_time_stamps_that_run_backwards_are_not_believed(tmp_path):
    """Recordings that were joined byte by byte begin again at zero."""
    path = tmp_path / "joined.mpg"
    part = write_video(tmp_path / "a.mpg", drifting_frames(20, *SIZE), codec="mpeg2video")
    path.write_bytes(part.read_bytes() * 2)
    clip = read_clip(path, SPEC)
    assert clip.num_frames == 40
    np.testing.assert_allclose(clip.times, np.arange(40) / 25)


@pytest.mark.parametrize(
    ("stamps", "times", "fps"),
    [
        ([10, 20, 40], [0, 0.1, 0.3], 2 / 0.3),
        ([10, float("nan"), 40], [0, 0.2, 0.4], 5),
        ([10, 40, 20], [0, 0.2, 0.4], 5),
        ([7], [0], 5),
        ([7, 7], [0, 0], 5),
    ],
)
def test_frame_times(stamps, times, fps):
    found, rate = frame_times(stamps, Fraction(1, 100), 5)
    np.testing.assert_allclose(found, times)
    assert rate == pytest.approx(fps)


def test_without_any_rate_25_frames_a_second_are_assumed():
    times, rate = frame_times([float("nan")] * 3, None, 0)
    assert (times.tolist(), rate) == ([0, 0.04, 0.08], 0)


def test_generated_frames_have_times():
    clip = clip_from_frames(drifting_frames(5, *SIZE), SPEC, 10.0)
    np.testing.assert_allclose(clip.times, np.arange(5) / 10)
    assert (clip.fps, clip.num_corrupt) == (10, 0)
