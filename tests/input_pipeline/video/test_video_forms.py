"""Unusual but valid files: turned, odd, uneven in time, long, large, short, several streams."""

import dataclasses
import io
import itertools

import av
import numpy as np
import pytest
from PIL import Image

from moclip_jax.input_pipeline.video import limits
from moclip_jax.input_pipeline.video.clip import (
    VideoError,
    VideoSpec,
    clip_from_frames,
    read_clip,
)
from moclip_jax.input_pipeline.video.motion_vectors import accumulate_motion, read_motion_vectors
from moclip_jax.input_pipeline.video.orientation import (
    FLIPPED_X,
    FLIPPED_Y,
    TRANSPOSED,
    frame_orientation,
    orient_field,
    oriented_size,
)
from tests.input_pipeline.video.test_motion_vectors import accumulate_by_definition, plain_decode
from tests.input_pipeline.video_fixtures import drifting_frames, write_sound, write_video

SPEC = VideoSpec(width=96, height=64, clip_frames=3)
NATIVE = dataclasses.replace(SPEC, source="native")
AUTO = dataclasses.replace(SPEC, source="auto")
CODECS = {
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
    "h264.mp4": ("libx264", {"bf": "3", "g": "9"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "mpeg1.mpg": ("mpeg1video", {}),
    "msmpeg4v2.avi": ("msmpeg4v2", {}),
    "msmpeg4v3.avi": ("msmpeg4", {}),
    "wmv1.wmv": ("wmv1", {}),
    "wmv2.wmv": ("wmv2", {}),
    "h263.3gp": ("h263", {}),
    "h263p.avi": ("h263p", {}),
    "sorenson.flv": ("flv", {}),
    "rv10.rm": ("rv10", {}),
    "rv20.rm": ("rv20", {}),
}
WITHOUT_VECTORS = {
    "vp8.webm": ("libvpx", {}, "yuv420p"),
    "vp9.webm": ("libvpx-vp9", {}, "yuv420p"),
    "av1.mp4": ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}, "yuv420p"),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=0"}, "yuv420p"),
    "mjpeg.avi": ("mjpeg", {}, "yuvj420p"),
    "prores.mov": ("prores", {}, "yuv422p10le"),
    "lossless.mkv": ("ffv1", {}, "bgr0"),
    "intra.mp4": ("libx264", {"g": "1"}, "yuv420p"),
}


def rgb_frames(prepared):
    return [np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) for jpeg in prepared.frames]


@pytest.mark.parametrize("name", CODECS)
def test_the_streams_own_motion_follows_the_definition(tmp_path, name):
    codec, options = CODECS[name]
    frames = drifting_frames(11, 144, 176, step=(3, 1))  # a size that H.263 knows
    path = write_video(tmp_path / name, frames, codec=codec, options=options)
    prepared = read_clip(path, AUTO)
    assert (prepared.source, prepared.height, prepared.width) == ("native", 144, 176)
    decoded = plain_decode(path)
    assert prepared.num_frames == len(decoded) == 11
    assert prepared.is_intra.tolist() == [kind == "I" for kind, _ in decoded]
    assert prepared.is_bidirectional.tolist() == [kind == "B" for kind, _ in decoded]
    expected = accumulate_by_definition(decoded, 144, 176)
    np.testing.assert_array_equal(prepared.motion.accumulate(), expected)
    np.testing.assert_array_equal(accumulate_motion(path), expected)
    assert np.median(expected[-1, ..., 0]) >= 3


@pytest.mark.parametrize("name", WITHOUT_VECTORS)
def test_what_has_no_vectors_is_reencoded_if_that_is_allowed(tmp_path, name):
    codec, options, pix_fmt = WITHOUT_VECTORS[name]
    frames = drifting_frames(9, 64, 96, step=(3, 1))
    path = write_video(tmp_path / name, frames, codec=codec, options=options, pix_fmt=pix_fmt)
    auto, reencoded = read_clip(path, AUTO), read_clip(path, SPEC)
    assert auto.source == reencoded.source == "reencode"
    np.testing.assert_array_equal(auto.displacements, reencoded.displacements)
    assert auto.frames == reencoded.frames
    with pytest.raises(VideoError, match="source='reencode'") as error:
        read_clip(path, NATIVE)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_group_of_pictures_may_be_as_long_as_the_video(tmp_path, codec):
    frames = drifting_frames(250, 32, 48, step=(1, 0))
    options = {"g": "250", "sc_threshold": "1000000000", "bf": "2"}
    path = write_video(tmp_path / "a.mp4", frames, codec=codec, options=options)
    prepared = read_clip(path, NATIVE)
    assert prepared.is_intra.sum() == 1
    expected = accumulate_by_definition(plain_decode(path), 32, 48)
    np.testing.assert_array_equal(prepared.motion.accumulate(), expected)
    np.testing.assert_array_equal(accumulate_motion(path, [249, 125]), expected[[249, 125]])


def test_native_frames_are_those_of_the_file(tmp_path):
    frames = drifting_frames(20, 48, 80, step=(3, 1))
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", options={"crf": "10"})
    native, reencoded = read_clip(path, NATIVE), read_clip(path, SPEC)
    assert native.frames == reencoded.frames
    assert native.frame_indices.tolist() == reencoded.frame_indices.tolist()
    assert native.fps == reencoded.fps


def turn_by_hand(frames: np.ndarray, rotation: int) -> np.ndarray:
    """Turn frames `[n, h, w, c]` counterclockwise."""
    return np.rot90(frames, rotation // 90, axes=(1, 2))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_file_equals_rotated_frames(tmp_path, rotation):
    frames = drifting_frames(12, 48, 80, step=(3, 1))
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0", rotation=rotation)
    turned = turn_by_hand(frames, rotation)
    # Not scaled, because scaling rounds the two pixel formats differently.
    spec = dataclasses.replace(SPEC, height=turned.shape[1], width=turned.shape[2])
    prepared, expected = read_clip(path, spec), clip_from_frames(turned, spec, 25.0)
    np.testing.assert_array_equal(prepared.displacements, expected.displacements)
    assert prepared.frames == expected.frames


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("size", [(48, 80), (37, 51)])
def test_own_motion_of_a_turned_file_is_turned(tmp_path, rotation, size):
    frames = drifting_frames(8, *size, step=(3, 1))
    straight = write_video(tmp_path / "a.mp4", frames, options={"bf": "1"})
    turned = write_video(tmp_path / "b.mp4", frames, options={"bf": "1"}, rotation=rotation)
    before, after = read_clip(straight, NATIVE), read_clip(turned, NATIVE)
    fields = before.motion.accumulate()
    # By hand: places turn as frames do; (x, y) turns too, with y downwards.
    x, y = (turn_by_hand(fields[..., i : i + 1], rotation)[..., 0] for i in (0, 1))
    expected = {90: (y, -x), 180: (-x, -y), 270: (-y, x)}[rotation]
    np.testing.assert_array_equal(after.motion.accumulate(), np.stack(expected, -1))
    np.testing.assert_array_equal(accumulate_motion(turned), np.stack(expected, -1))
    for straight_one, turned_one in zip(rgb_frames(before), rgb_frames(after), strict=True):
        difference = turned_one - turn_by_hand(straight_one[None], rotation)[0]
        # JPEG; and at odd sizes the colours' coarser grid begins at the other side.
        assert np.abs(difference).mean() < (3 if size == (48, 80) else 10)


def test_all_eight_orientations_turn_frames_and_fields_alike(tmp_path):
    rng = np.random.default_rng(0)
    field = rng.integers(-9, 9, (5, 7, 2))
    for orientation in range(8):
        turned = orient_field(field, orientation)
        assert turned.shape[:2] == oriented_size(5, 7, orientation)
        for y, x in np.ndindex(5, 7):
            to_x, to_y = (y, x) if orientation & TRANSPOSED else (x, y)
            dx, dy = field[y, x][::-1] if orientation & TRANSPOSED else field[y, x]
            if orientation & FLIPPED_X:
                to_x, dx = turned.shape[1] - 1 - to_x, -dx
            if orientation & FLIPPED_Y:
                to_y, dy = turned.shape[0] - 1 - to_y, -dy
            assert turned[to_y, to_x].tolist() == [dx, dy]


@pytest.mark.parametrize("matrix", range(1, 8))
def test_display_matrices_of_all_orientations(tmp_path, matrix):
    a, b = ((1, 0), (0, 1)) if not matrix & 1 else ((0, 1), (1, 0))
    turn = np.array([a, b]) * [-1 if matrix & 2 else 1, -1 if matrix & 4 else 1]
    frames = drifting_frames(2, 16, 32)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        values = [*(turn[0] * 65536), 0, *(turn[1] * 65536), 0, 0, 0, 1 << 30]
        stream.set_display_matrix([int(value) for value in values])
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        orientation = frame_orientation(frame)
    corner = np.array([31, 15])  # x, y of the last pixel, seen from the middle
    to = (2 * corner - [31, 15]) @ turn
    field = np.zeros((16, 32, 2), int)
    field[15, 31] = 1
    turned = orient_field(field, orientation)
    y, x = np.argwhere(np.abs(turned[..., 0]) == 1)[0]
    height, width = turned.shape[:2]
    assert (2 * x - (width - 1), 2 * y - (height - 1)) == tuple(to)


def test_an_angle_that_is_no_quarter_turn_is_rejected(tmp_path):
    path = write_video(tmp_path / "a.mov", drifting_frames(4), rotation=30)
    for spec in (SPEC, NATIVE):
        with pytest.raises(VideoError, match="multiple of 90"):
            read_clip(path, spec)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "source"),
    [
        ("a.avi", "mpeg4", "yuv420p", "native"),
        ("a.mpg", "mpeg2video", "yuv420p", "native"),
        ("a.mkv", "libx264", "yuv444p", "native"),
        ("a.webm", "libvpx-vp9", "yuv420p", "reencode"),
    ],
)
def test_odd_sizes(tmp_path, name, codec, pix_fmt, source):
    frames = drifting_frames(9, 37, 51, step=(2, 1))
    path = write_video(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt)
    prepared = read_clip(path, AUTO)
    assert prepared.source == source
    assert rgb_frames(prepared)[0].shape == (37, 51, 3)
    if source == "native":
        expected = accumulate_by_definition(plain_decode(path), 37, 51)
        np.testing.assert_array_equal(prepared.motion.accumulate(), expected)
    assert read_clip(path, SPEC).displacements.shape == (9, 8, 12, 2)


def test_frames_at_uneven_times_are_taken_as_they_come(tmp_path):
    frames = drifting_frames(15)
    times = np.cumsum(np.random.default_rng(0).integers(10, 200, 15))
    even = write_video(tmp_path / "a.mkv", frames)
    uneven = write_video(tmp_path / "b.mkv", frames, times_ms=times)
    seconds = [frame.time_s for frame in read_motion_vectors(uneven)]
    assert np.diff(seconds) == pytest.approx(np.diff(times) / 1000)
    for spec in (SPEC, NATIVE):
        one, other = read_clip(even, spec), read_clip(uneven, spec)
        np.testing.assert_array_equal(one.displacements, other.displacements)
        assert one.frames == other.frames


def test_the_first_of_several_video_streams_is_taken(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((48, 64), (96, 128)):
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append((stream, drifting_frames(7, height, width)))
        for stream, frames in streams:
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    prepared = read_clip(path, NATIVE)
    assert (prepared.num_frames, prepared.height, prepared.width) == (7, 48, 64)


def test_sound_alone_is_rejected(tmp_path):
    path = write_sound(tmp_path / "a.wav")
    for spec in (SPEC, NATIVE, AUTO):
        with pytest.raises(VideoError, match=r"a\.wav: has no video stream"):
            read_clip(path, spec)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_a_single_frame_has_no_motion(tmp_path, name, codec):
    path = write_video(tmp_path / name, drifting_frames(1), codec=codec)
    for spec in (SPEC, NATIVE, AUTO):
        prepared = read_clip(path, spec)
        assert prepared.num_frames == 1
        assert not prepared.motion.accumulate().any()
        assert prepared.frame_indices.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "codec", "options", "shown"),
    [
        # These show what they have before the first I-frame; motion is since the first frame.
        ("a.avi", "mpeg4", {"g": "9"}, 17),
        ("a.flv", "flv", {"g": "9"}, 17),
        # These begin at the first I-frame.
        ("a.ts", "libx264", {"g": "9", "bf": "2"}, 11),
        ("b.ts", "mpeg2video", {"g": "9", "bf": "2"}, 11),
    ],
)
def test_a_file_that_does_not_begin_with_a_key_frame(tmp_path, name, codec, options, shown):
    path = write_video(tmp_path / name, drifting_frames(20), codec=codec, options=options)
    late = path.with_name(f"late_{name}")
    with av.open(str(path)) as source, av.open(str(late), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets[3:]:
            packet.stream = stream
            target.mux(packet)
    prepared = read_clip(late, NATIVE)
    assert prepared.num_frames == shown
    assert prepared.is_intra[0] == (shown == 11)
    decoded = plain_decode(late)
    expected = accumulate_by_definition(decoded, 48, 64)
    np.testing.assert_array_equal(prepared.motion.accumulate(), expected)
    assert read_clip(late, SPEC).num_frames == shown


def test_4k(tmp_path):
    small = drifting_frames(3, 216, 384, step=(2, 1))
    frames = small.repeat(10, axis=1).repeat(10, axis=2)
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", options={"preset": "ultrafast"})
    prepared = read_clip(path, NATIVE)
    assert prepared.displacements.shape == (3, 270, 480, 2)
    assert np.median(accumulate_motion(path, [2])[0], (0, 1)).tolist() == [40, 20]
    assert read_clip(path, SPEC).displacements.shape == (3, 8, 12, 2)
    with pytest.raises(VideoError, match="max_pixels=8294399"):
        read_clip(path, dataclasses.replace(SPEC, max_pixels=3840 * 2160 - 1))


def test_a_change_of_frame_size_is_rejected_only_where_that_matters(tmp_path):
    path = tmp_path / "a.h264"
    with open(path, "wb") as joined:
        for number, (height, width) in enumerate(((48, 64), (64, 80))):
            part = tmp_path / f"{number}.h264"
            write_video(part, drifting_frames(6, height, width), codec="libx264")
            joined.write(part.read_bytes())
    with pytest.raises(VideoError, match="size or orientation changes"):
        read_clip(path, NATIVE)
    assert read_clip(path, SPEC).num_frames == 12


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("max_bytes", 3000, "max_bytes=3000"),
        ("max_frames", 11, "more than 11 frames"),
        ("max_pixels", 3071, "64x48 has more than max_pixels=3071"),
        ("max_seconds", 5.0, "longer than max_seconds=5"),
    ],
)
def test_limits_are_named(tmp_path, monkeypatch, limit, value, reason):
    path = write_video(tmp_path / "a.avi", drifting_frames(12))
    # A second goes by between any two looks at the clock.
    clock = itertools.count()
    monkeypatch.setattr(limits.time, "monotonic", lambda: float(next(clock)))
    for spec in (SPEC, NATIVE):
        with pytest.raises(VideoError, match=reason) as error:
            read_clip(path, dataclasses.replace(spec, **{limit: value}))
        assert str(path) in str(error.value)


def test_an_unknown_source_is_rejected():
    with pytest.raises(ValueError, match=r"VideoSpec.source is 'codec', must be one of"):
        VideoSpec(source="codec")
