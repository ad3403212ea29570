"""What containers say wrongly or not at all: times, rates, lengths, encryption, side data."""

import dataclasses
import functools
import io
import itertools
import pickle
import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.input_pipeline.datasets.preparation_log import PreparationLog
from moclip_jax.input_pipeline.datasets.worker import Source, make_record
from moclip_jax.input_pipeline.video.clip import (
    VideoError,
    VideoSpec,
    read_clip,
)
from moclip_jax.input_pipeline.video.decode import frame_side_data
from moclip_jax.input_pipeline.video.motion_vectors import accumulate_motion, read_motion_vectors
from moclip_jax.input_pipeline.video.stream import read_stream
from tests.input_pipeline.video_fixtures import (
    damage_packets,
    drifting_frames,
    remux,
    write_noisy_video,
    write_video,
)

SPEC = VideoSpec(width=96, height=64, clip_frames=3)
NATIVE = dataclasses.replace(SPEC, source="native")
SIZE = (48, 64)
UNEVEN = np.cumsum([0, 33, 33, 34, 33, 400, 33, 33, 1200, 40, 40, 2500, 33, 33, 900])


def seconds(path) -> list[float]:
    return [frame.time_s for frame in read_motion_vectors(path)]


def assert_same_video(one, other) -> None:
    """Motion, frames and types are equal; of the times only that they are as many."""
    np.testing.assert_array_equal(one.motion.accumulate(), other.motion.accumulate())
    assert one.frames == other.frames
    assert one.frame_indices.tolist() == other.frame_indices.tolist()


# --- H.264 copied into AVI --------------------------------------------------------------------


@pytest.fixture
def copied_into_avi(tmp_path):
    """The MP4, and its packets in an AVI that declares 600 frames a second and so 1200 frames."""
    frames = drifting_frames(50, *SIZE, step=(2, 1))
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", options={"bf": "2", "g": "12"})
    copied = remux(path, tmp_path / "a.avi", time_base=Fraction(1, 600))
    with av.open(str(copied)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (1200, 600)
    return path, copied


@pytest.mark.parametrize("spec", [SPEC, NATIVE])
def test_h264_copied_into_avi_is_read_like_the_mp4(copied_into_avi, spec):
    original, copied = (read_clip(path, spec) for path in copied_into_avi)
    assert_same_video(original, copied)
    assert original.fps == copied.fps == 25
    np.testing.assert_allclose(copied.times, np.arange(50) / 25)
    np.testing.assert_allclose(seconds(copied_into_avi[1]), np.arange(50) / 25)


def test_h264_copied_into_avi_and_cut_is_rejected(copied_into_avi):
    path = copied_into_avi[1]
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: packets[40].pos])
    with pytest.raises(VideoError, match=r"cut: it holds 1\.\d+ s \(40 frames\) of the 2\.00 s"):
        read_clip(path, SPEC)


def test_a_last_frame_that_is_shown_long_does_not_make_a_video_cut(tmp_path):
    """Matroska declares the end of the last frame, but its packet does not say how long it is."""
    frames = drifting_frames(len(UNEVEN), *SIZE)
    source = write_video(tmp_path / "a.mp4", frames, times_ms=UNEVEN)
    path = tmp_path / "a.mkv"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        packets = [packet for packet in reading.demux(video=0) if packet.size]
        packets[-1].duration = int(2 / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            writing.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["DURATION"].startswith("00:00:07")
    assert read_clip(path, SPEC).num_frames == len(UNEVEN)


# --- Encrypted and damaged frames --------------------------------------------------------------


def encrypted(path, codec="libx264"):
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "00112233445566778899aabbccddeeff",
        "encryption_kid": "ffeeddccbbaa99887766554433221100",
    }
    return write_video(path, drifting_frames(20, *SIZE), codec=codec, container_options=options)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_encrypted_video_is_rejected_with_the_reason(tmp_path, codec):
    path = encrypted(tmp_path / "a.mp4", codec)
    for spec in (SPEC, dataclasses.replace(SPEC, source="auto")):
        with pytest.raises(VideoError, match=r"a\.mp4: encrypted from packet 1 ") as error:
            read_clip(path, spec)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.fixture
def noisy(tmp_path):
    return write_noisy_video(tmp_path / "whole.mkv")


@pytest.mark.parametrize("spec", [SPEC, NATIVE])
def test_a_few_damaged_frames_are_counted(tmp_path, noisy, spec):
    assert (read_clip(noisy, spec).num_corrupt, read_clip(noisy, spec).warning) == (0, "")
    clip = read_clip(damage_packets(noisy, tmp_path / "damaged.mkv", (3, 11)), spec)
    assert clip.num_corrupt == 2
    assert clip.warning == "2 of its 24 frames are damaged"


def test_damaged_frames_are_reported_in_the_manifest_and_the_log_of_a_preparation(
    tmp_path, noisy, capsys
):
    """The manifest has a line of each `Outcome`."""
    damaged = damage_packets(noisy, tmp_path / "damaged.mkv", (3, 11))
    outcomes = []
    for path in (noisy, damaged):
        entry = VideoEntry(path.name, 0, "g", ("train",))
        source = Source(entry, functools.partial(read_clip, path, SPEC))
        outcomes.append(make_record(source, SPEC)[1])
    assert [outcome.kept for outcome in outcomes] == ["reencoded", "reencoded"]
    warnings = ["", "damaged.mkv: 2 of its 24 frames are damaged"]
    assert [outcome.warning for outcome in outcomes] == warnings
    folder = SimpleNamespace(outcomes=lambda index: None, path=tmp_path)
    log = PreparationLog("prepare", folder, [[None] * 2])
    for outcome in outcomes:
        log.add(outcome, num_workers=1)
    assert capsys.readouterr().out.splitlines() == [f"warning: {warnings[1]}"]


def test_where_most_frames_are_damaged_the_video_is_rejected(tmp_path, noisy):
    path = damage_packets(noisy, tmp_path / "damaged.mkv", range(24))
    reason = r"damaged\.mkv: damaged or encrypted: \d+ of 24 frames are corrupt"
    for read in (lambda: read_clip(path, SPEC), lambda: read_clip(path, NATIVE)):
        with pytest.raises(VideoError, match=reason):
            read()
    with pytest.raises(VideoError, match=reason):
        accumulate_motion(path, [20])
    with pytest.raises(VideoError, match=reason):
        list(read_motion_vectors(path))


def windows_of(path, spec=SPEC):
    return list(read_stream(str(path), spec, length_s=0.4, hop_s=0.4, timeout_s=0.3))


@pytest.mark.parametrize("spec", [SPEC, NATIVE])
def test_a_stream_rejects_what_would_be_rejected_as_a_file(tmp_path, noisy, spec):
    with pytest.raises(VideoError, match=r"a\.mp4: encrypted from packet 1 "):
        windows_of(encrypted(tmp_path / "a.mp4"), spec)
    damaged = damage_packets(noisy, tmp_path / "damaged.mkv", range(24))
    with pytest.raises(VideoError, match=r"damaged\.mkv: damaged or encrypted: \d+ of \d+ frames"):
        windows_of(damaged, spec)


@pytest.mark.parametrize("spec", [SPEC, NATIVE])
def test_the_windows_of_a_stream_count_their_damaged_frames(tmp_path, noisy, spec):
    damaged = damage_packets(noisy, tmp_path / "damaged.mkv", (3, 11))
    counts = [window.video.num_corrupt for window in windows_of(damaged, spec)]
    assert counts == [1, 1, 0]
    assert windows_of(damaged, spec)[0].video.warning == "1 of its 10 frames are damaged"


# --- Side data ---------------------------------------------------------------------------------


def exif_segment(index: int, jpeg: bytes) -> bytes:
    """Put an EXIF segment (one tag: orientation 1) behind the beginning of a JPEG."""
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 1, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def test_side_data_that_pyav_cannot_name_is_skipped(tmp_path):
    frames = drifting_frames(12, *SIZE)
    plain = write_video(tmp_path / "plain.avi", frames, codec="mjpeg", pix_fmt="yuvj420p")
    path = remux(plain, tmp_path / "exif.avi", edit=exif_segment, time_base=Fraction(1, 25))
    assert_same_video(read_clip(plain, SPEC), read_clip(path, SPEC))
    assert len(list(read_motion_vectors(path))) == 12
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame_side_data(frame, "MOTION_VECTORS") is None
        types = [data.type.name for data in frame.side_data]
    # PyAV may learn the name.
    assert types in (["DISPLAYMATRIX", "UNNAMED_31"], ["DISPLAYMATRIX", "EXIF"])


def lcevc_sei(index: int, packet: bytes) -> bytes:
    """Put an enhancement layer (LCEVC, ITU-T T.35) before an H.264 frame, as some cameras do."""
    payload = bytes([0xB4, 0x00, 0x50, 0x00]) + bytes(range(1, 13))
    unit = bytes([6, 4, len(payload)]) + payload + b"\x80"
    return len(unit).to_bytes(4, "big") + unit + packet


def test_vectors_beside_side_data_that_pyav_cannot_name_are_read(tmp_path):
    frames = drifting_frames(12, *SIZE)
    plain = write_video(tmp_path / "plain.mkv", frames, codec="libx264", options={"bf": "0"})
    path = remux(plain, tmp_path / "lcevc.mkv", edit=lcevc_sei)
    with av.open(str(path)) as container:
        data = next(container.decode(video=0))
        assert frame_side_data(data, "DISPLAYMATRIX") is None
        assert 28 in [one.type.value for one in data.side_data]
    assert_same_video(read_clip(plain, NATIVE), read_clip(path, NATIVE))


# --- Anamorphic pixels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "aspect", "size"),
    [
        ("a.mp4", "libx264", Fraction(64, 45), (91, 48)),
        ("a.mkv", "libx264", Fraction(2, 1), (128, 48)),
        ("a.avi", "mpeg4", Fraction(1, 2), (32, 48)),
        ("a.mpg", "mpeg2video", Fraction(16, 9), (85, 48)),  # a display of 16:9 over 64x48: 4:3
    ],
)
def test_rgb_frames_have_square_pixels_and_motion_does_not_change(
    tmp_path, name, codec, aspect, size
):
    frames = drifting_frames(10, *SIZE)
    square = write_video(tmp_path / f"square_{name}", frames, codec=codec)
    if codec == "mpeg2video":
        aspect = Fraction(4, 3)  # MPEG-2 stores the shape of the whole frame.
    path = write_video(tmp_path / name, frames, codec=codec, pixel_aspect=aspect)
    for spec in (SPEC, NATIVE):
        spec = dataclasses.replace(spec, jpeg_quality=95)
        plain, clip = read_clip(square, spec), read_clip(path, spec)
        np.testing.assert_array_equal(plain.motion.accumulate(), clip.motion.accumulate())
        images = [Image.open(io.BytesIO(jpeg)) for jpeg in clip.frames]
        assert {image.size for image in images} == {size}
        for image, jpeg in zip(images, plain.frames, strict=True):
            expected = Image.open(io.BytesIO(jpeg)).resize(size, Image.Resampling.BILINEAR)
            # Of brightness: JPEG halves the size of colours, here of another image.
            one, other = (np.asarray(x.convert("L")).astype(int) for x in (image, expected))
            error = np.abs(one - other).mean()
            assert error < 3  # JPEG, once more


def test_a_turned_frame_is_stretched_along_its_own_width(tmp_path):
    frames = drifting_frames(4, *SIZE)
    path = write_video(tmp_path / "a.mp4", frames, rotation=90, pixel_aspect=Fraction(2))
    clip = read_clip(path, SPEC)
    # 128x48 lying on its side, at half the height that it might have.
    assert Image.open(io.BytesIO(clip.frames[0])).size == (24, 64)


def test_pixels_that_no_format_has_are_rejected(tmp_path):
    path = write_video(
        tmp_path / "a.mkv", drifting_frames(4, *SIZE), codec="mpeg4", pixel_aspect=Fraction(20)
    )
    with pytest.raises(VideoError, match=r"a\.mkv: its pixels are 20:1; at most 16:1 is read"):
        read_clip(path, SPEC)


# --- Length ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {"g": "6"}),
        ("mpeg4", {"g": "6", "bf": "2"}),
        ("libx264", {"g": "9", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("libx264", {"g": "250", "bf": "2"}),
    ],
)
@pytest.mark.parametrize("source", ["native", "reencode"])
def test_the_motion_of_wanted_frames_alone_is_that_of_the_whole(tmp_path, codec, options, source):
    frames = drifting_frames(60, *SIZE, step=(1, 1))
    path = write_video(tmp_path / "a.mkv", frames, codec=codec, options=options)
    spec = dataclasses.replace(SPEC, source=source)
    whole = read_clip(path, spec)
    fields = whole.motion.accumulate()
    alone = whole.motion.each_alone(np.arange(60))
    for wanted in ([0], [59], [8, 9, 31], [17, 18, 19], *([index] for index in range(12, 30))):
        clip = read_clip(path, spec, lambda num_frames, wanted=wanted: wanted)
        np.testing.assert_array_equal(clip.motion.accumulate(wanted), fields[wanted])
        np.testing.assert_array_equal(clip.motion.each_alone(wanted), alone[wanted])
        before = np.maximum(np.array(wanted) - 1, 0)
        np.testing.assert_array_equal(clip.motion.accumulate(before), fields[before])
        assert clip.frames == whole.frames
        np.testing.assert_array_equal(clip.is_intra, whole.is_intra)
        if options["g"] != "250":
            assert len(clip.displacements) <= 4 * 12


def test_motion_that_was_not_kept_is_an_error_and_not_a_field_of_zeros(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(60, *SIZE), options={"g": "6"})
    clip = read_clip(path, NATIVE, lambda num_frames: [num_frames // 2])
    with pytest.raises(IndexError, match="the motion of frame 3 was not kept"):
        clip.motion.accumulate([30, 3])
    part = clip.part(24, 36, np.ones(len(clip.frames), bool))
    whole = read_clip(path, NATIVE).motion.accumulate([30])
    np.testing.assert_array_equal(part.motion.accumulate([6]), whole)


@pytest.mark.parametrize("source", ["native", "reencode"])
def test_wanted_frames_of_a_long_video_need_no_more_memory_than_of_a_short_one(tmp_path, source):
    """The bytes of the motion that is held, at its most; no limit on the number of frames."""
    from moclip_jax.input_pipeline.video.motion_vectors import BlockMotionReader

    spec = dataclasses.replace(SPEC, source=source, max_frames=None)
    most = {}
    for num_frames in (600, 12_000):
        frames = drifting_frames(40, 16, 32, step=(1, 0))
        turns = itertools.islice(itertools.cycle(range(40)), num_frames)
        path = write_video(tmp_path / f"{num_frames}.avi", frames[list(turns)])
        held = []

        class Watched(BlockMotionReader):
            def add(self, frame, wanted=True):
                super().add(frame, wanted)
                held.append(self.num_bytes)  # noqa: B023

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moclip_jax.input_pipeline.video.clip.BlockMotionReader", Watched)
            clip = read_clip(path, spec, lambda n: [n // 6, n // 2, 5 * n // 6])
        assert clip.num_frames == num_frames
        most[num_frames] = max(held)
    assert most[12_000] <= most[600] * 1.5
    with pytest.raises(VideoError, match="more than 10000 frames"):
        read_clip(path, SPEC)
