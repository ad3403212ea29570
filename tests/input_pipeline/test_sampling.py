"""Segments against the published formulas, written out in plain Python."""

import collections

import numpy as np
import pytest

from moclip_jax.input_pipeline import sampling


def training_bounds(num_frames: int, num_segments: int, s: int) -> tuple[int, int]:
    """Return the first and last frame of a part, both possible; Python rounds half to even."""
    mv_frames = num_frames - 1
    size = (mv_frames - 1) / num_segments
    begin = round(size * s)
    end = max(round(size * (s + 1)), begin + 1)
    return begin + 1, end


def clip(index: int, num_frames: int) -> int:
    return min(max(index, 0), num_frames - 1)


@pytest.mark.parametrize("num_segments", [1, 3, 25, 32])
def test_test_segments_follow_the_formula_at_every_length(num_segments):
    for num_frames in range(1, 400):
        expected = [
            clip(round((num_frames - 1) / num_segments * (s + 0.5)) + 1, num_frames)
            for s in range(num_segments)
        ]
        assert sampling.test_segments(num_frames, num_segments).tolist() == expected, num_frames


def test_test_segments_of_an_average_ucf101_video():
    # 185 / 3 * .5 = 30.83, 92.5 (half to even: 92) and 154.17, plus one.
    assert sampling.test_segments(186, 3).tolist() == [32, 93, 155]


@pytest.mark.parametrize("num_segments", [1, 3, 8])
def test_training_segments_stay_in_their_parts_at_every_length(num_segments):
    rng = np.random.default_rng(5)
    for num_frames in range(1, 200):
        indices = sampling.training_segments(num_frames, num_segments, rng.random(num_segments))
        for s, index in enumerate(indices):
            first, last = training_bounds(num_frames, num_segments, s)
            assert clip(first, num_frames) <= index <= clip(last, num_frames), (num_frames, s)


def test_training_segments_reach_every_frame_of_a_part_equally_often():
    num_frames, draws = 20, 4000
    uniform = np.random.default_rng(0).random((draws, 3))
    indices = np.stack([sampling.training_segments(num_frames, 3, one) for one in uniform])
    for s in range(3):
        first, last = training_bounds(num_frames, 3, s)
        counts = collections.Counter(indices[:, s].tolist())
        assert sorted(counts) == list(range(first, last + 1))
        expected = draws / (last - first + 1)
        assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in counts.values())


def test_the_least_and_the_greatest_number_draw_the_ends_of_the_parts():
    bounds = [training_bounds(186, 3, s) for s in range(3)]
    for uniform, ends in (
        (0.0, [first for first, _ in bounds]),
        (1.0, [last for _, last in bounds]),
    ):
        numbers = np.full(3, np.nextafter(uniform, 0))
        assert sampling.training_segments(186, 3, numbers).tolist() == ends


def test_an_i_frame_gives_way_to_the_last_frame_of_the_gop_before():
    is_intra = np.array([True] + [False] * 11 + [True, False, True, True])
    indices = np.array([0, 1, 11, 12, 13, 14, 15])
    moved = sampling.frame_before_intra(indices, is_intra)
    assert moved.tolist() == [0, 1, 11, 11, 13, 13, 14]


@pytest.mark.parametrize("num_windows", [1, 5, 24])
@pytest.mark.parametrize("window", [1, 15])
def test_test_windows_are_evenly_spaced_and_end_with_the_video(num_windows, window):
    for num_frames in range(1, 120):
        frames = sampling.test_windows(num_frames, num_windows, window)
        last_start = max(num_frames - 1 - window, 0)
        for k, row in enumerate(frames.tolist()):
            place = last_start * k / (num_windows - 1) if num_windows > 1 else 0
            start = 1 + round(place)
            assert row == [min(start + t, num_frames - 1) for t in range(window)], num_frames
