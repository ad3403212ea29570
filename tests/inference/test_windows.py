"""Windows of a timeline are cut by the frames' own times."""

import numpy as np
import pytest

from moclip_jax.inference.windows import split_windows
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=96, height=64, clip_frames=4, gop_size=5)


def test_windows_of_a_variable_frame_rate_are_equal_in_time(tmp_path):
    """60 frames in 2 s, one that is shown for 4 s, and 60 in the last 2 s."""
    step = 1000 / 30
    early, late = np.arange(60) * step, 6000 + np.arange(60) * step
    times = np.append(early, late).round().astype(int)
    clip = read_clip(write_video(tmp_path / "a.mkv", drifting_frames(120), times_ms=times), SPEC)
    windows = split_windows(clip, 2.0, SPEC)
    assert len(windows) == round(clip.duration / 2) == 4
    length = clip.duration / 4
    for number, window in enumerate(windows):
        # It begins with the frame that is shown then, or up to a GOP earlier.
        shown = clip.frame_at(number * length)
        begin = int(np.argmin(np.abs(clip.times - window.start_s)))
        assert shown - SPEC.gop_size < begin <= shown
        assert clip.is_intra[begin]
        end = np.append(clip.times, clip.duration)[begin + window.clip.num_frames]
        assert window.end_s == pytest.approx(end)
    assert windows[0].start_s == 0
    assert windows[-1].end_s == pytest.approx(clip.duration)
    # The long frame alone is the second and third window, after the rest of its GOP.
    assert [window.clip.num_frames > 20 for window in windows] == [True, False, False, True]


@pytest.mark.parametrize("rate", [25, 30])
def test_windows_of_a_constant_frame_rate_are_equal_in_frames(tmp_path, rate):
    path = write_video(tmp_path / "a.avi", drifting_frames(100), rate=rate)
    clip = read_clip(path, SPEC)
    count = round(100 / rate)
    windows = split_windows(clip, 1.0, SPEC)
    assert len(windows) == count
    begins = [100 * number // count for number in range(count)]
    starts = np.flatnonzero(clip.is_intra)
    for begin, window in zip(begins, windows, strict=True):
        assert window.start_s == pytest.approx(starts[starts <= begin][-1] / rate)
    assert windows[-1].end_s == pytest.approx(100 / rate)
