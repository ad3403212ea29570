"""Frames from their own groups of pictures alone equal those of decoding the whole file."""

import io
import itertools
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from moclip_jax.input_pipeline.video import seek
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.video.decode import Limits, VideoError, decode_frames, picture_type
from moclip_jax.input_pipeline.video.motion_vectors import (
    VECTORS_ONLY,
    BlockMotionReader,
    accumulate_motion,
    frame_vectors,
)
from moclip_jax.input_pipeline.video.seek import UncertainOrderError, decode_needed
from tests.input_pipeline.video_fixtures import drifting_frames, remux, write_video

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


def test_missing_frames_are_noticed(tmp_path):
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


# --- What the first packet, or another before the frame, says -----------------------------------


def x264_says(build: int):
    """Return an edit that changes the version that x264 wrote into the first packet."""

    def edit(index: int, packet: bytes) -> bytes:
        begin = packet.find(b"x264 - core ") + len(b"x264 - core ")
        if begin < len(b"x264 - core "):
            return packet
        end = packet.index(b" ", begin)
        return packet[:begin] + str(build).rjust(end - begin, "0").encode() + packet[end:]

    return edit


def test_a_stream_of_an_old_x264_is_read_as_in_the_whole_pass(tmp_path):
    """x264 before build 151 coded 4:4:4 wrongly, and decoders follow it if they know who coded."""
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 96, 128, 3), np.uint8)
    frames = frames // 4 + drifting_frames(FRAMES, 96, 128, step=(2, 1)) // 2
    options = CLOSED | {"bf": "0", "x264-params": "scenecut=0:8x8dct=1"}
    made = write_video(
        tmp_path / "a.mkv", frames, codec="libx264", pix_fmt="yuv444p", options=options
    )
    path = remux(made, tmp_path / "old.mkv", edit=x264_says(142))
    fields = whole(path)
    images = [frame.to_ndarray() for frame in decode_frames(path)]
    # The old way reads another stream, so that knowing it matters.
    assert any(
        (one != other.to_ndarray()).any()
        for one, other in zip(images, decode_frames(made), strict=True)
    )
    for index in (0, 13, 20, FRAMES - 1):
        np.testing.assert_array_equal(accumulate_motion(path, [index])[0], fields[index])


def xvid_says(index: int, packet: bytes) -> bytes:
    """Write XviD's name into the first packet; decoders then use its inverse transform."""
    return packet if index else b"\0\0\1\xb2XviD0001" + packet


def test_the_first_packet_is_decoded_before_any_other(tmp_path):
    options = {"g": "10", "qscale": "8", "bf": "0"}
    frames = drifting_frames(FRAMES, 96, 128, step=(2, 1))
    made = write_video(tmp_path / "a.mp4", frames, options=options)
    path = remux(made, tmp_path / "a.mkv", edit=xvid_says)
    images = [frame.to_ndarray() for frame in decode_frames(path)]
    plain = [frame.to_ndarray() for frame in decode_frames(made)]
    for index in (13, 25, FRAMES - 1):
        assert (images[index] != plain[index]).any()
        given = dict(decode_needed(path, [index]))
        assert len(given) <= 10
        np.testing.assert_array_equal(given[index].to_ndarray(), images[index])


def test_frames_that_are_corrupt_in_a_sparse_read_are_read_in_the_whole_pass(folder, monkeypatch):
    path = folder / "h264.mp4"
    expected = whole(path)[[20]]
    frames = seek.decode_packets

    def decode(*arguments):
        for frame in frames(*arguments):
            yield SimpleNamespace(pts=frame.pts, is_corrupt=True, pict_type=frame.pict_type)

    monkeypatch.setattr(seek, "decode_packets", decode)
    with pytest.raises(UncertainOrderError):
        list(decode_needed(path, [20], VECTORS_ONLY))
    np.testing.assert_array_equal(accumulate_motion(path, [20]), expected)


@pytest.mark.parametrize(
    ("name", "codec", "one", "other"),
    [
        # Parameter sets of the same number, with and without CABAC.
        ("a.ts", "libx264", {"coder": "ac"}, {"coder": "vlc"}),
        ("a.h264.ts", "libx264", {"refs": "1"}, {"refs": "4", "crf": "35"}),
        # Matrices of the second half are in its first sequence header.
        ("a.mpg", "mpeg2video", {}, {"intra_matrix": ",".join(["40"] * 64)}),
        # Quarter-pixel vectors are announced by the header of the layer.
        ("a.avi", "mpeg4", {}, {"flags": "+qpel"}),
    ],
)
def test_headers_that_change_on_the_way_are_those_of_the_whole_pass(
    tmp_path, name, codec, one, other
):
    """The second half begins with its own headers, which do not come again."""
    container = name.split(".")[-1]
    parts = []
    for number, options in enumerate((one, other)):
        frames = drifting_frames(30, 48, 64, step=(2, 1), seed=number)
        options = {"g": "6", "bf": "0", "x264-params": "scenecut=0"} | options
        if codec != "libx264":
            del options["x264-params"]
        part = tmp_path / f"{number}.{container}"
        parts.append(write_video(part, frames, codec=codec, options=options))
    # The writer of TS would put the first half's parameter sets before every key frame.
    path = tmp_path / ("joined.mkv" if container == "ts" else f"joined.{container}")
    with av.open(str(path), "w") as target:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                stream = stream or target.add_stream_from_template(video)
                packets = [packet for packet in source.demux(video) if packet.size]
                origin = packets[0].dts
                step = packets[1].dts - origin
                for index, packet in enumerate(packets):
                    content = bytes(packet)
                    if index and number:
                        content = without_headers(content, codec)
                    copy = av.Packet(content)
                    copy.pts = packet.pts - origin + number * 30 * step
                    copy.dts = packet.dts - origin + number * 30 * step
                    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
                    copy.stream = stream
                    target.mux(copy)
    fields = whole(path)
    images = [frame.to_ndarray() for frame in decode_frames(path)]
    assert len(fields) == 60
    with pytest.raises(UncertainOrderError):
        list(decode_needed(path, [50], VECTORS_ONLY))
    for index in (20, 31, 50, 59):
        np.testing.assert_array_equal(accumulate_motion(path, [index])[0], fields[index])
    spec = VideoSpec(source="native", clip_frames=1)
    assert Image.open(io.BytesIO(read_clip(path, spec).frames[0])).size == (64, 48)
    assert len(images) == 60


def without_headers(packet: bytes, codec: str) -> bytes:
    """Take the parameter sets or sequence headers out of a packet."""
    left_out = {"libx264": (7, 8), "mpeg2video": (0xB3,), "mpeg4": (0xB0, 0xB5, *range(48))}[codec]
    mask = 31 if codec == "libx264" else 255
    begin, *units = packet.split(b"\0\0\1")
    kept = [unit for unit in units if not (unit and unit[0] & mask in left_out)]
    return begin + b"".join(b"\0\0\1" + unit for unit in kept)


def test_extradata_that_a_packet_brings_is_noticed():
    packet = av.Packet(b"\0\0\1\x65frame")
    context = av.CodecContext.create("h264", "r")
    assert not seek._Headers(context).change(packet)
    side = packet.get_sidedata("new_extradata")
    packet.set_sidedata(av.packet.PacketSideData.from_packet(packet, "new_extradata") or side)
    assert packet.has_sidedata("new_extradata") == seek._Headers(context).change(packet)
