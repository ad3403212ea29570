"""Key frames hit what happens, where as many evenly spaced frames mostly do not."""

import itertools

import numpy as np
import pytest

from moclip_jax import codec
from moclip_jax.codec.activity import Activity, ChunkCutter
from moclip_jax.codec.selection import divide, frame_activity, spread
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

FRAMES, EVENTS, LENGTH = 600, 4, 15


def with_events(seed: int) -> tuple[np.ndarray, list[range]]:
    """A still scene with noise, into which something moves for 0.6 seconds, a few times."""
    rng = np.random.default_rng(seed)
    background = drifting_frames(1, 96, 128, step=(0, 0), seed=seed)[0].astype(np.int16)
    noise = rng.normal(0, 2, (96, 128, 1)).astype(np.int16)
    frames = np.empty((FRAMES, 96, 128, 3), np.uint8)
    for index in range(FRAMES):
        shifted = np.roll(noise, rng.integers(0, 96, 2), axis=(0, 1))
        frames[index] = np.clip(background + shifted, 0, 255)
    # Apart from each other by two seconds at least.
    places = np.sort(rng.integers(0, FRAMES - EVENTS * (LENGTH + 50) - 60, EVENTS))
    events = [range(p + 50 + i * (LENGTH + 50), p + 50 + i * (LENGTH + 50) + LENGTH)
              for i, p in enumerate(places.tolist())]  # fmt: skip
    for event in events:
        thing = drifting_frames(1, 30, 30, step=(0, 0), seed=int(rng.integers(1000)))[0]
        x, y = rng.integers(0, (128 - 30 - 3 * LENGTH, 96 - 30 - LENGTH))
        for step, index in enumerate(event):
            frames[index, y + step : y + step + 30, x + 3 * step : x + 3 * step + 30] = thing
    return frames, events


def hits(chosen: np.ndarray, events: list[range]) -> int:
    return sum(any(index in event for index in chosen.tolist()) for event in events)


@pytest.mark.parametrize("encoder", ["mpeg4", "libx264"])
def test_short_events_are_hit_where_even_spacing_mostly_misses_them(tmp_path, encoder):
    found = even = total = 0
    for seed in range(5):
        frames, events = with_events(seed)
        path = write_video(tmp_path / f"{seed}.mp4", frames, codec=encoder)
        chosen = codec.keyframes(path, 8)
        assert len(np.unique(chosen)) == 8 and (np.diff(chosen) > 0).all()
        found += hits(chosen, events)
        even += hits(((np.arange(8) + 0.5) / 8 * FRAMES).astype(int), events)
        total += len(events)
    assert found >= 0.95 * total, (found, total)
    assert even <= 0.4 * total, (even, total)


def test_a_cut_in_a_still_video_is_a_border(tmp_path):
    """Scenes that rest: only what the I-frames show, or intra blocks, tells them apart."""
    scenes = [
        drifting_frames(1, 96, 128, step=(0, 0), seed=seed).repeat(40, 0) for seed in range(3)
    ]
    frames = np.concatenate(scenes)
    for name, encoder, options in (
        ("own_cuts.mp4", "libx264", {}),
        ("no_cuts.mp4", "libx264", {"x264-params": "scenecut=0"}),
        ("mpeg4.avi", "mpeg4", {"g": "40"}),
        ("then_an_i_frame.mp4", "libx264", {"x264-params": "scenecut=0:keyint=30"}),
    ):
        path = write_video(tmp_path / name, frames, codec=encoder, options=options)
        assert frame_activity(path).borders.tolist() == [0, 40, 80, 120], name
        assert [index // 40 for index in codec.keyframes(path, 3)] == [0, 1, 2]


def test_without_activity_frames_are_even_and_there_are_never_more_than_the_video_has(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(1).repeat(40, 0), codec="libx264")
    assert codec.keyframes(path, 4).tolist() == [4, 14, 24, 34] or (
        np.abs(codec.keyframes(path, 4) - [5, 15, 25, 35]).max() <= 1
    )
    assert codec.keyframes(path, 100).tolist() == list(range(40))
    assert len(codec.keyframes(path, 39)) == 39
    with pytest.raises(ValueError, match="k is 0, must be at least 1"):
        codec.keyframes(path, 0)


def test_a_codec_without_vectors_is_read_too(tmp_path):
    frames, events = with_events(7)
    path = write_video(tmp_path / "a.webm", frames[:300], codec="libvpx-vp9", rate=25)
    events = [event for event in events if event.stop < 300]
    assert events and hits(codec.keyframes(path, 6), events) == len(events)


def test_chosen_frames_lie_in_the_middle_of_equal_parts_of_the_activity():
    """Against a search through all frames, for random weights."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 20))
        border = int(rng.integers(1, n))
        weight = rng.exponential(size=n) + 1e-3
        shares = [int(rng.integers(0, border + 1)), int(rng.integers(0, n - border + 1))]
        borders = np.array([0, border, n])
        chosen = spread(weight, borders, shares).tolist()
        expected = []
        for begin, end, share in ((0, border, shares[0]), (border, n, shares[1])):
            total, taken = weight[begin:end].sum(), []
            for part in range(share):
                at = next(
                    i for i in range(begin, end)
                    if weight[begin : i + 1].sum() >= (part + 0.5) / share * total - 1e-12
                )  # fmt: skip
                taken.append(max(at, taken[-1] + 1) if taken else at)
            # Those pushed over the end move back, each before the next.
            for place in range(share):
                taken[place] = min(taken[place], end - share + place)
            expected += taken
        assert chosen == expected


def test_frames_are_divided_as_sainte_lague_does():
    """Against the highest quotients of all."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        n, total = int(rng.integers(1, 6)), int(rng.integers(0, 20))
        weights, shares = rng.exponential(size=n), np.zeros(n, int)
        most = rng.integers(0, 9, n)
        total = min(total, int(most.sum()))
        divide(shares, weights, most, total)
        quotients = sorted(
            ((w / (2 * s + 1), i) for i, w in enumerate(weights) for s in range(most[i])),
            reverse=True,
        )
        expected = np.bincount([i for _, i in quotients[:total]], minlength=n)
        np.testing.assert_array_equal(shares, expected)


def cut(
    changes: list[float], rate: float = 10.0, cuts: tuple[int, ...] = (), **options
) -> list[int]:
    cutter = ChunkCutter(**options)
    found = []
    for index, change in enumerate(changes):
        activity = Activity(index, index / rate, change, index in cuts)
        found += [border for border, _ in cutter.add(activity)]
    return found


def test_chunks_end_where_activity_rises_and_falls():
    assert cut([0.0] * 50 + [0.1] * 40 + [0.0] * 50) == [50, 90]
    assert cut([0.05] * 50 + [0.06] * 40 + [0.05] * 50) == []
    # Shorter than the window, longer than half of it.
    assert cut([0.0] * 50 + [0.2] * 7 + [0.0] * 50) == [50, 57]
    assert cut([0.1] * 30, cuts=(12, 20)) == [12, 20]
    assert cut([0.1] * 100, longest_s=3.0) == [30, 60, 90]
    assert cut([0.0] * 20 + [0.1] * 60, longest_s=3.0) == [20, 50]
    with pytest.raises(ValueError, match=r"longest_s is 1.0, must be at least 2 \* 1.0 s"):
        ChunkCutter(longest_s=1.0)


def test_borders_rise_and_chunks_keep_the_largest_length_on_random_activity():
    for seed, longest in itertools.product(range(20), (2.0, 5.0)):
        rng = np.random.default_rng(seed)
        changes = np.repeat(rng.exponential(0.05, 30), rng.integers(3, 30, 30))
        cuts = tuple(rng.integers(1, len(changes), 3).tolist())
        borders = cut(changes.tolist(), cuts=cuts, longest_s=longest)
        assert borders == sorted(set(borders)) and set(cuts) <= set(borders)
        assert np.diff([0, *borders]).max() <= round(longest * 10)


def test_a_real_clip_is_cut_where_its_scenes_change():
    """bikes.mp4 changes the scene five times, and x264 wrote an I-frame there."""
    borders = frame_activity(real_clips.path("bikes")).borders.tolist()
    assert {30, 76, 137, 187, 242} <= set(borders)
