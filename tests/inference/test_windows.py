"""Windows of a timeline are cut by the frames' own times."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from moclip_jax.inference.windows import equal_windows, group_windows, times_of
from moclip_jax.input_pipeline import sampling
from moclip_jax.input_pipeline.video.clip import (
    VideoError,
    VideoSpec,
    frame_jpeg,
    frame_positions,
    read_clip,
)
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.parts import Part, read_parts
from moclip_jax.input_pipeline.views import MotionViews, test_view
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=96, height=64, clip_frames=4, gop_size=5)


def test_windows_of_a_variable_frame_rate_are_equal_in_time(tmp_path):
    """60 frames in 2 s, one that is shown for 4 s, and 60 in the last 2 s."""
    step = 1000 / 30
    early, late = np.arange(60) * step, 6000 + np.arange(60) * step
    times = np.append(early, late).round().astype(int)
    clip = read_clip(write_video(tmp_path / "a.mkv", drifting_frames(120), times_ms=times), SPEC)
    windows = equal_windows(clip, 2.0, SPEC)
    assert len(windows) == round(clip.duration / 2) == 4
    length = clip.duration / 4
    for number, window in enumerate(windows):
        # It begins with the frame that is shown then, or up to a GOP earlier.
        shown = clip.frame_at(number * length)
        assert shown - SPEC.gop_size < window.begin <= shown
        assert clip.is_intra[window.begin]
        ends = np.append(clip.times, clip.duration)
        assert times_of(clip, window) == (clip.times[window.begin], ends[window.end])
    assert windows[0].begin == 0 and windows[-1].end == clip.num_frames
    # The long frame alone is the second and third window, after the rest of its GOP.
    assert [window.end - window.begin > 20 for window in windows] == [True, False, False, True]


@pytest.mark.parametrize("rate", [25, 30])
def test_windows_of_a_constant_frame_rate_are_equal_in_frames(tmp_path, rate):
    path = write_video(tmp_path / "a.avi", drifting_frames(100), rate=rate)
    clip = read_clip(path, SPEC)
    count = round(100 / rate)
    windows = equal_windows(clip, 1.0, SPEC)
    assert len(windows) == count
    begins = [100 * number // count for number in range(count)]
    starts = np.flatnonzero(clip.is_intra)
    for begin, window in zip(begins, windows, strict=True):
        start = starts[starts <= begin][-1] / rate
        assert times_of(clip, window)[0] == pytest.approx(start)
    assert times_of(clip, windows[-1])[1] == pytest.approx(100 / rate)


@pytest.mark.parametrize(
    ("name", "codec", "options", "source"),
    [
        ("a.mp4", "libx264", {"bf": "2", "g": "9"}, "native"),
        ("a.ts", "libx264", {"bf": "2", "g": "9", "x264-params": "open-gop=1"}, "native"),
        ("b.avi", "mpeg4", {"bf": "2", "g": "300"}, "native"),
        ("a.avi", "mpeg4", {"g": "7"}, "reencode"),
    ],
)
def test_parts_that_are_read_one_by_one_are_parts_of_the_whole_clip(
    tmp_path, name, codec, options, source
):
    path = write_video(tmp_path / name, drifting_frames(83), codec=codec, options=options)
    spec = dataclasses.replace(SPEC, source=source)
    views = MotionViews(num_segments=4, image_size=24, resize_size=24)
    wanted = functools.partial(sampling.test_segments, num_segments=4)
    whole = read_clip(path, spec)
    windows = equal_windows(whole, 0.5, spec)
    assert len(windows) == 7
    jpegs = [frame_jpeg(frame, spec) for frame in decode_frames(path)]
    # As the whole was cut when it was held: with RGB frames at the centres of equal parts.
    rgb = frame_positions(83, 3 * spec.clip_frames)
    no_frame = np.zeros(len(whole.frames), bool)
    parts = list(read_parts(path, spec, whole.outline, windows, wanted))
    for window, part in zip(windows, parts, strict=True):
        expected = whole.part(window.begin, window.end, no_frame)
        np.testing.assert_array_equal(
            test_view(part, views, spec), test_view(expected, views, spec)
        )
        np.testing.assert_array_equal(part.times, expected.times)
        inside = rgb[(rgb >= window.begin) & (rgb < window.end)]
        assert (part.frame_indices + window.begin).tolist() == inside.tolist()
        assert part.frames == [jpegs[index] for index in inside]
    groups = group_windows(whole, 4)
    assert groups[0].begin == 0 and groups[-1].end == 83
    assert all(one.end == two.begin for one, two in itertools.pairwise(groups))
    moved = whole.motion.accumulate()
    for group, part in zip(
        groups, read_parts(path, spec, whole.outline, groups, range), strict=True
    ):
        np.testing.assert_array_equal(
            part.motion.accumulate(range(part.num_frames)), moved[group.begin : group.end]
        )


def test_a_window_without_an_rgb_frame_of_its_own_keeps_its_middle():
    video = SimpleNamespace(
        frame_indices=np.array([2]), num_frames=20, group_starts=lambda: np.array([0, 10])
    )
    assert group_windows(video, 12) == [Part(0, 10, (2,)), Part(10, 20, (15,))]


def test_a_file_that_changes_between_the_two_passes_is_told(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(30))
    outline = read_clip(path, SPEC).outline
    write_video(path, drifting_frames(20))
    with pytest.raises(VideoError, match=r"a\.avi: has fewer frames than before"):
        list(read_parts(path, SPEC, outline, equal_windows(outline, 0.5, SPEC), lambda n: [0]))


def test_a_stream_without_i_frames_is_accumulated_over_600_frames_at_most(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(1), options={"g": "600"})
    one = read_clip(path, SPEC)
    many = dataclasses.replace(
        one,
        num_frames=2000,
        fps=25.0,
        times=np.arange(2000) / 25,
        is_intra=np.arange(2000) == 0,
        is_bidirectional=np.zeros(2000, bool),
    )
    windows = equal_windows(many, 2.0, SPEC)
    assert [window.begin for window in windows] == [max(0, 50 * n - 600) for n in range(40)]
