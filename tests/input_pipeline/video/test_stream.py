"""Windows of a growing stream hold the very motion and frames of the whole file."""

import dataclasses
import itertools
import os
import threading
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest

from moclip_jax.input_pipeline.video import window_cutter
from moclip_jax.input_pipeline.video.clip import VideoError, VideoSpec, frame_jpeg, read_clip
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.motion_vectors import FrameBlocks, NoVectorsError
from moclip_jax.input_pipeline.video.stream import read_stream
from moclip_jax.input_pipeline.video.window_cutter import WindowCutter
from moclip_jax.input_pipeline.views import MotionViews, test_view
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=64, height=48, clip_frames=2, gop_size=7)
H264 = {"bf": "2", "g": "9", "x264-params": "scenecut=0"}
RATE = 25


def windows_of(path, spec, length_s=1.0, hop_s=0.4, timeout_s=0.3, **options):
    reader = read_stream(
        str(path), spec, length_s=length_s, hop_s=hop_s, timeout_s=timeout_s, **options
    )
    return list(reader)


@pytest.mark.parametrize(
    ("name", "codec", "options", "source", "expected_source"),
    [
        ("a.ts", "libx264", H264, "native", "native"),
        ("b.ts", "mpeg2video", {"bf": "2", "g": "9"}, "auto", "native"),
        ("a.mkv", "mpeg4", {"g": "9"}, "native", "native"),
        ("b.mkv", "libx264", H264, "reencode", "reencode"),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime"}, "auto", "reencode"),
    ],
)
def test_windows_have_the_motion_and_frames_of_the_file(
    tmp_path, name, codec, options, source, expected_source
):
    frames = drifting_frames(83, step=(1, 0))
    path = write_video(tmp_path / name, frames, codec=codec, options=options, rate=RATE)
    spec = dataclasses.replace(SPEC, source=source)
    whole = read_clip(path, spec)
    fields = whole.motion.accumulate()
    jpegs = [frame_jpeg(frame, spec) for frame in decode_frames(path)]
    windows = windows_of(path, spec)
    # Windows of 25 frames at 0, 10, 20, ...; the last one starts at 60 and ends with the file.
    assert len(windows) == 7
    last = windows.pop()
    assert (last.start_s, last.end_s) == pytest.approx((2.4, 83 / RATE))
    assert last.video.num_frames == 23
    inside = np.arange(23) + last.video.lead
    np.testing.assert_array_equal(last.video.motion.accumulate(inside), fields[60:])
    assert last.video.frame_indices.tolist() == [6, 12, 18]
    assert last.video.frames == [jpegs[60 + index] for index in last.video.frame_indices]
    for number, window in enumerate(windows):
        first = 10 * number
        video = window.video
        assert (window.start_s, window.end_s) == pytest.approx((0.4 * number, 0.4 * number + 1))
        assert (video.num_frames, video.source) == (25, expected_source)
        inside = np.arange(25) + video.lead
        np.testing.assert_array_equal(video.motion.accumulate(inside), fields[first : first + 25])
        # Parts of half a second: their middles and that of the window.
        assert video.frame_indices.tolist() == [6, 12, 18]
        assert video.frames == [jpegs[first + index] for index in video.frame_indices]


UNEVEN = np.cumsum(np.random.default_rng(1).integers(5, 120, 83))


@pytest.mark.parametrize("length_s", [0.5, 0.83, 1.0, 10.0])
@pytest.mark.parametrize(
    ("name", "codec", "options", "write"),
    [
        ("a.ts", "libx264", H264, {}),
        ("a.mp4", "libx264", H264, {}),
        ("a.mpg", "mpeg2video", {"bf": "2", "g": "9"}, {}),
        ("a.avi", "mpeg4", {"bf": "2", "g": "9"}, {}),
        ("without_presentation_times.avi", "libx264", H264, {}),
        ("a.flv", "libx264", H264, {}),
        ("a.h264", "libx264", H264, {}),
        ("fragmented.mp4", "libx264", H264, {
            "container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("uneven.mkv", "libx264", H264, {"times_ms": UNEVEN}),
        ("negative.mkv", "mpeg4", {"g": "9"}, {
            "times_ms": UNEVEN - 2000, "container_options": {"avoid_negative_ts": "disabled"}}),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime"}, {}),
    ],
)  # fmt: skip
def test_every_frame_is_in_exactly_one_window_at_its_own_time(
    tmp_path, name, codec, options, write, length_s
):
    """Against the time stamps of the packets, sorted, and the motion of the whole file."""
    frames = drifting_frames(83, step=(1, 0))
    path = write_video(tmp_path / name, frames, codec=codec, options=options, rate=RATE, **write)
    with av.open(str(path)) as container:
        stamps = [p.pts for p in container.demux(video=0) if p.size]
        time_base = float(container.streams.video[0].time_base)
    if None in stamps:  # Raw H.264 has no time stamps.
        stamps, time_base = list(range(83)), 1 / RATE
    times = (np.sort(stamps) - min(stamps)) * time_base
    assert len(times) == 83 and (np.diff(times) > 0).all()
    if name.startswith("negative"):
        assert min(stamps) < 0
    spec = dataclasses.replace(SPEC, source="auto")
    fields = read_clip(path, spec).motion.accumulate()
    windows = windows_of(path, spec, length_s, length_s)
    seen = 0
    for window in windows:
        inside = (times > window.start_s - 1e-5) & (times < window.end_s - 1e-5)
        expected = np.flatnonzero(inside)
        assert expected[0] == seen and window.video.num_frames == len(expected)
        at = np.arange(len(expected)) + window.video.lead
        np.testing.assert_array_equal(window.video.motion.accumulate(at), fields[expected])
        assert window.start_s == pytest.approx(length_s * round(window.start_s / length_s))
        seen += len(expected)
    assert seen == 83
    for window in windows[:-1]:
        assert window.end_s == pytest.approx(window.start_s + length_s)
    last = windows[-1]
    assert times[-1] < last.end_s <= last.start_s + length_s + 1e-6
    if "uneven" not in name and "negative" not in name:
        end = min(times[-1] + 1 / RATE, last.start_s + length_s)
        assert last.end_s == pytest.approx(end, abs=2e-3)


def test_what_the_networks_see_of_a_window_is_what_they_see_of_its_frames(tmp_path):
    frames = drifting_frames(60, step=(1, 0))
    path = write_video(tmp_path / "a.ts", frames, codec="libx264", options=H264, rate=RATE)
    spec = dataclasses.replace(SPEC, source="native")
    views = MotionViews(num_segments=4, image_size=24, resize_size=24)
    fields = read_clip(path, spec).motion.accumulate()
    window = windows_of(path, spec)[1]
    assert window.video.lead > 0
    view = test_view(window.video, views, spec)
    # TSN's middles of four parts of 25 frames, each I-frame replaced by the frame before.
    indices = [10 + round(6 * (part + 0.5)) + 1 for part in range(4)]
    indices = [index - (index % 9 == 0) for index in indices]
    for seen, index in zip(view[0].astype(int), indices, strict=True):
        middle = fields[index, 24, 32]
        assert seen[12, 12].tolist() == [int(value * 127.5 / 20) + 128 for value in middle]


def test_a_stream_shorter_than_a_window_is_one_window(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(9), rate=RATE)
    (window,) = windows_of(path, dataclasses.replace(SPEC, source="native"))
    assert window.video.num_frames == 9


@pytest.mark.parametrize(("codec", "form"), [("mjpeg", "mjpeg"), ("h263", "h263")])
def test_a_raw_file_that_shows_what_it_is_only_at_its_end_is_read(tmp_path, codec, form):
    frames = drifting_frames(30, 144, 176, step=(1, 0))
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(
        tmp_path / f"a.{form}", frames, codec=codec, pix_fmt=pix_fmt, container_format=form
    )
    windows = windows_of(path, dataclasses.replace(SPEC, source="auto"), 0.5, 0.5)
    assert sum(window.video.num_frames for window in windows) == 30


def test_a_growing_file_is_followed(tmp_path):
    path = write_video(tmp_path / "whole.ts", drifting_frames(150), codec="mpeg2video", rate=RATE)
    content = path.read_bytes()
    growing = tmp_path / "growing.ts"
    growing.write_bytes(content[: len(content) // 2])
    spec = dataclasses.replace(SPEC, source="native")
    expected = windows_of(path, spec)
    reader = read_stream(str(growing), spec, length_s=1.0, hop_s=0.4, timeout_s=1.0)
    found = [next(reader)]  # from the half that is there

    def grow():
        with open(growing, "ab") as file:
            for piece in np.array_split(np.frombuffer(content[len(content) // 2 :], np.uint8), 8):
                file.write(piece.tobytes())
                file.flush()
                time.sleep(0.02)

    writer = threading.Thread(target=grow)
    writer.start()
    found.extend(reader)
    writer.join()
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.video.displacements, two.video.displacements)
        assert one.video.frames == two.video.frames


def test_a_fifo_is_read_to_its_end(tmp_path):
    path = write_video(tmp_path / "a.ts", drifting_frames(60), codec="mpeg2video", rate=RATE)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    writer.start()
    found = windows_of(fifo, SPEC, timeout_s=5)
    writer.join()
    assert len(found) == len(windows_of(path, SPEC))


def blocks(kind="P"):
    return FrameBlocks(np.zeros((6, 8, 2), np.int16), np.zeros((6, 8), bool), kind, 48, 64, 0)


def blank_frame():
    return av.VideoFrame.from_ndarray(drifting_frames(1)[0], format="rgb24")


@pytest.mark.parametrize(("length_s", "hop_s"), [(1.0, 0.4), (1.0, 1.0), (0.4, 3.0), (2.0, 0.1)])
@pytest.mark.parametrize("gop", [12, 10_000])
def test_memory_does_not_grow_with_the_stream(monkeypatch, length_s, hop_s, gop):
    monkeypatch.setattr(window_cutter, "MAX_LEAD", 30)
    cutter = WindowCutter(SPEC, length_s, hop_s, "native")
    shown = blank_frame()
    most, windows = 0, 0
    for index in range(1500):
        kind = "I" if index % gop == 0 else "P"
        coded = SimpleNamespace(frame=shown, picture=shown, blocks=blocks(kind))
        windows += len(list(cutter.add(coded, index / RATE)))
        most = max(most, len(cutter._times), len(cutter._blocks))
    assert windows == pytest.approx((1500 / RATE - length_s) / hop_s, abs=2)
    assert most <= RATE * (length_s + hop_s) + 30 + 12
    assert sum(map(len, cutter._jpegs.values())) <= 3 * (length_s / hop_s + 2)


def test_time_stamps_that_jump_begin_a_new_recording(tmp_path):
    parts = []
    for number in range(2):
        part = write_video(
            tmp_path / f"{number}.ts", drifting_frames(60, seed=number), codec="mpeg2video"
        )
        parts.append(part.read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    found = windows_of(path, dataclasses.replace(SPEC, source="native"))
    starts = [window.start_s for window in found]
    assert sum(two < one for one, two in itertools.pairwise(starts)) == 1
    assert starts.count(0.0) == 2


@pytest.mark.parametrize("source", ["native", "reencode"])
def test_frames_at_uneven_times(tmp_path, source):
    times = np.cumsum(np.random.default_rng(0).integers(5, 120, 90))
    path = write_video(tmp_path / "a.mkv", drifting_frames(90, step=(1, 0)), times_ms=times)
    spec = dataclasses.replace(SPEC, source=source)
    fields = read_clip(path, spec).motion.accumulate()
    seconds = (times - times[0]) / 1000
    for window in windows_of(path, spec):
        inside = np.flatnonzero((seconds >= window.start_s) & (seconds < window.end_s))
        assert window.video.num_frames == len(inside)
        at = np.arange(len(inside)) + window.video.lead
        np.testing.assert_array_equal(window.video.motion.accumulate(at), fields[inside])


def test_errors_name_the_address(tmp_path):
    (tmp_path / "text.ts").write_text("no video\n" * 100)
    vp9 = write_video(tmp_path / "a.webm", drifting_frames(30), codec="libvpx-vp9")
    for address, reason in (
        (tmp_path / "absent.ts", "no such file"),
        (tmp_path / "text.ts", "cannot be opened"),
    ):
        with pytest.raises(VideoError, match=reason) as error:
            windows_of(address, SPEC)
        assert str(address) in str(error.value)
    with pytest.raises(NoVectorsError, match="its codec, vp9, carries no motion vectors"):
        windows_of(vp9, dataclasses.replace(SPEC, source="native"))
