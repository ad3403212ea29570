"""Frames from their own groups of pictures alone equal those of decoding the whole file."""

import itertools

import av
import numpy as np
import pytest
from moclip_jax.input_pipeline.video import seek
from moclip_jax.input_pipeline.video.decode import Limits, VideoError, decode_frames, picture_type
from moclip_jax.input_pipeline.video.motion_vectors import (
    VECTORS_ONLY,
    BlockMotionReader,
    accumulate_motion,
    frame_vectors,
)
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed

from tests.input_pipeline.video_fixtures import drifting_frames, write_video

FRAMES = 50
OPEN = {"bf": "3", "g": "9", "x264-params": "open-gop=1:scenecut=0"}
CLOSED = {"bf": "3", "g": "9", "x264-params": "scenecut=0"}
SEEKABLE = {
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4.mp4": ("mpeg4", {"g": "5"}),
    "b_frames.avi": ("mpeg4", {"bf": "2"}),  # open GOPs
    "b_frames.mkv": ("mpeg4", {"bf": "2"}),
    "closed_gop.mp4": ("mpeg4", {"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}),
    "h264.mp4": ("libx264", CLOSED),
    "open_gop.mp4": ("libx264", OPEN),
    "open_gop.mkv": ("libx264", OPEN),
    "open_gop.ts": ("libx264", OPEN),
    "h264.flv": ("libx264", CLOSED),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "1"}),
    "mpeg1.mpg": ("mpeg1video", {"bf": "1"}),
    "ms.avi": ("msmpeg4", {}),
    "windows.avi": ("wmv2", {}),
    "sorenson.flv": ("flv", {}),
}
ONE_GOP = {"one_gop.mp4": ("libx264", {"g": "250"})}
NOT_SEEKABLE = {
    "decoding_times.avi": ("libx264", CLOSED),  # AVI has no room for the order of showing
    "raw.h264": ("libx264", CLOSED),
    "raw.m4v": ("mpeg4", {}),
    "fields.mkv": ("libx264", CLOSED | {"x264-params": "interlaced=1"}),
    "refresh.mkv": ("libx264", {"g": "9", "x264-params": "intra-refresh=1"}),
    "vp9.webm": ("libvpx-vp9", {"g": "9"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeking")
    frames = drifting_frames(FRAMES, 48, 64, step=(2, 1))
    frames[:, 16:40, 20:50] = drifting_frames(FRAMES, 24, 30, step=(-1, 1), seed=1)
    for name, (codec, options) in (SEEKABLE | ONE_GOP | NOT_SEEKABLE).items():
        raw = "m4v" if name.endswith("m4v") else None
        write_video(folder / name, frames, codec=codec, options=options, container_format=raw)
    return folder


def whole(path):
    reader = BlockMotionReader(path)
    for frame in decode_frames(path, VECTORS_ONLY):
        reader.add(frame)
    return reader.result().accumulate()


@pytest.mark.parametrize("name", SEEKABLE | ONE_GOP)
def test_each_frame_alone_equals_the_whole_pass(folder, name):
    path = folder / name
    fields = whole(path)
    assert len(fields) == FRAMES
    for index in range(FRAMES):
        np.testing.assert_array_equal(accumulate_motion(path, [index])[0], fields[index])
    wanted = [40, 3, 3, 22]
    np.testing.assert_array_equal(accumulate_motion(path, wanted), fields[wanted])


@pytest.mark.parametrize("name", SEEKABLE)
def test_types_and_vectors_are_those_of_the_whole_pass_and_few_frames_are_decoded(folder, name):
    path = folder / name
    expected = [(picture_type(f), frame_vectors(f)) for f in decode_frames(path, VECTORS_ONLY)]
    for index in (0, 7, 25, FRAMES - 1):
        given = dict(decode_needed(path, [index], VECTORS_ONLY))
        assert index in given
        assert list(given) == sorted(given)
        assert len(given) <= 22
        for number, frame in given.items():
            assert picture_type(frame) == expected[number][0]
            np.testing.assert_array_equal(frame_vectors(frame), expected[number][1])


@pytest.mark.parametrize("name", NOT_SEEKABLE)
def test_what_cannot_be_certain_says_so(folder, name):
    with pytest.raises(UncertainOrderError):
        list(decode_needed(folder / name, [20, 21], VECTORS_ONLY))


@pytest.mark.parametrize("name", NOT_SEEKABLE)
def test_what_cannot_be_certain_is_decoded_whole(folder, name):
    if name == "vp9.webm":
        with pytest.raises(VideoError, match="no motion vectors"):
            accumulate_motion(folder / name, [20])
        return
    fields = whole(folder / name)
    for index in (0, 20, FRAMES - 1):
        np.testing.assert_array_equal(accumulate_motion(folder / name, [index])[0], fields[index])


def test_a_file_too_large_to_be_kept_is_read_twice(folder, monkeypatch):
    monkeypatch.setattr(seek, "_KEPT_BYTES", 2000)
    for name in ("b_frames.mkv", "open_gop.ts"):
        np.testing.assert_array_equal(
            accumulate_motion(folder / name, [31, 5]), whole(folder / name)[[31, 5]]
        )


def test_pictures_that_are_left_out_are_noticed(tmp_path):
    """MPEG-4 may hold a packet that says 'as before'; no frame comes of it."""
    frames = drifting_frames(30)
    path = write_video(tmp_path / "a.avi", frames)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                if packet.dts == 5:
                    # Start code, then bits: P-VOP 01, 0, 1, time 00101, 1, not coded 0, stuffing.
                    empty = av.Packet(bytes.fromhex("000001b6 52cf"))
                    empty.dts = empty.pts = packet.dts
                    empty.time_base = packet.time_base
                    packet = empty
                packet.stream = stream
                target.mux(packet)
    path = tmp_path / "b.mkv"
    with pytest.raises(UncertainOrderError):
        list(decode_needed(path, [20], VECTORS_ONLY))
    np.testing.assert_array_equal(accumulate_motion(path, [20])[0], whole(path)[20])


def test_frames_at_uneven_times_are_found(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(10, 200, 30))
    path = write_video(tmp_path / "a.mkv", drifting_frames(30), times_ms=times)
    fields = whole(path)
    assert len(fields) == 30
    for index in range(30):
        np.testing.assert_array_equal(accumulate_motion(path, [index])[0], fields[index])


def test_limits_hold(folder):
    with pytest.raises(VideoError, match="max_frames"):
        accumulate_motion(folder / "mpeg4.avi", [20], Limits(max_frames=FRAMES - 1))
    assert len(accumulate_motion(folder / "mpeg4.avi", [20], Limits(max_frames=FRAMES))) == 1


def test_without_b_frames_nothing_is_decoded_behind_the_last_frame_of_each_group(folder):
    path = folder / "mpeg4.avi"
    types = [picture_type(frame) for frame in decode_frames(path, VECTORS_ONLY)]
    starts = [index for index, kind in enumerate(types) if kind == "I"]
    assert starts[:3] == [0, 12, 24]
    wanted = [2, 13, 11, 12, 26]
    given = [index for index, _ in decode_needed(path, wanted, VECTORS_ONLY)]
    assert given == [*range(14), 24, 25, 26]
    np.testing.assert_array_equal(accumulate_motion(path, wanted), whole(path)[wanted])


def test_a_b_frame_where_none_was_declared_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(seek, "picture_type", lambda frame: picture_type(frame).replace("P", "B"))
    path = folder / "mpeg4.avi"
    with pytest.raises(UncertainOrderError):
        list(decode_needed(path, [20], VECTORS_ONLY))
    np.testing.assert_array_equal(accumulate_motion(path, [20])[0], whole(path)[20])


def test_runs_that_touch_are_decoded_once(folder):
    path = folder / "open_gop.mkv"
    for wanted in itertools.combinations((4, 8, 9, 10, 17, 30), 3):
        given = [index for index, _ in decode_needed(path, wanted, VECTORS_ONLY)]
        assert len(given) == len(set(given))
        assert set(wanted) <= set(given)
