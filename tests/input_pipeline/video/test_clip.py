"""Any video becomes canonical motion and RGB frames, and a bad file an error that says why."""

import dataclasses
import io
import pickle

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from moclip_jax.input_pipeline.video import clip
from moclip_jax.input_pipeline.video.clip import (
    VideoError,
    VideoSpec,
    clip_from_frames,
    read_clip,
)
from moclip_jax.input_pipeline.video.decode import CheckedVideo, decode_frames
from moclip_jax.input_pipeline.video.motion_vectors import rasterize_vectors
from moclip_jax.input_pipeline.video.reencode import CanonicalEncoder
from tests.input_pipeline.video_fixtures import cut, drifting_frames, write_sound, write_video

SPEC = VideoSpec(width=96, height=64, clip_frames=4)


def canonical_frames(path) -> list[av.VideoFrame]:
    """Re-encode a file, and read that as a file with no options but the export of vectors."""
    encoder = CanonicalEncoder(SPEC)
    packets = [packet for frame in decode_frames(path) for packet in encoder.encode(frame)]
    stream = b"".join(map(bytes, [*packets, *encoder.end()]))
    with av.open(io.BytesIO(stream), format="m4v") as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        context.options = {"flags2": "+export_mvs"}
        return list(container.decode(video=0))


def test_canonical_stream_is_mpeg4_with_the_specified_size_and_gop(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(30), codec="libx264")
    frames = canonical_frames(path)
    assert len(frames) == 30
    assert {(f.width, f.height, f.format.name) for f in frames} == {(96, 64, "yuv420p")}
    types = [PictureType(f.pict_type).name for f in frames]
    assert types == (["I"] + ["P"] * 11) * 2 + ["I"] + ["P"] * 5


def test_displacements_are_the_vectors_of_the_canonical_stream(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(30))
    prepared = read_clip(path, SPEC)
    expected = []
    for frame in canonical_frames(path):
        data = frame.side_data.get("MOTION_VECTORS")
        grid = np.zeros((8, 12, 2), np.int16)
        if data is not None:
            grid = rasterize_vectors([data.to_ndarray().tobytes()], [False], 64, 96)[0][0]
        expected.append(grid)
    np.testing.assert_array_equal(prepared.displacements, expected)
    assert np.abs(prepared.displacements).max() > 0


def test_prepared_video_has_the_documented_shapes(tmp_path):
    path = write_video(tmp_path / "a.mkv", drifting_frames(19), codec="libx264", rate=30)
    prepared = read_clip(path, VideoSpec(width=340, height=256, clip_frames=8))
    assert prepared.displacements.shape == (19, 32, 43, 2)
    assert prepared.displacements.dtype == np.int16
    assert prepared.is_intra.dtype == bool
    assert np.flatnonzero(prepared.is_intra).tolist() == [0, 12]
    assert prepared.num_frames == 19
    assert prepared.fps == pytest.approx(30)
    assert prepared.frame_indices.dtype == np.int32
    assert len(prepared.frames) == len(prepared.frame_indices)


@pytest.mark.parametrize("step", [(4, 0), (-4, 0), (0, 4), (0, -4)])
def test_displacement_points_to_where_the_content_came_from(step):
    frames = drifting_frames(6, 64, 96, step=step)
    displacements = clip_from_frames(frames, SPEC, 25.0).displacements
    # Away from the edges; what moved by `step` came from `-step`.
    inner = displacements[1:, 2:-2, 2:-2].reshape(-1, 2)
    np.testing.assert_array_equal(np.median(inner, axis=0), [-step[0], -step[1]])


def test_file_and_frames_take_the_same_path(tmp_path):
    frames = drifting_frames(16, 64, 96)
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")  # lossless
    from_file, from_memory = read_clip(path, SPEC), clip_from_frames(frames, SPEC, 25.0)
    np.testing.assert_array_equal(from_file.displacements, from_memory.displacements)
    np.testing.assert_array_equal(from_file.is_intra, from_memory.is_intra)
    assert from_file.frames == from_memory.frames


def test_preparing_twice_gives_the_same(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(15))
    one, two = (dataclasses.asdict(read_clip(path, SPEC)) for _ in range(2))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])


@pytest.mark.parametrize(
    ("num_frames", "clip_frames", "expected"),
    [
        (1, 8, [0]),
        (4, 8, [0, 1, 2, 3]),
        (16, 4, [2, 6, 8, 10, 14]),
        (100, 1, [50]),
        (101, 2, [25, 50, 75]),
    ],
)
def test_frame_positions(num_frames, clip_frames, expected):
    assert clip.frame_positions(num_frames, clip_frames).tolist() == expected


def test_stored_frames_are_those_of_the_source(tmp_path):
    frames = drifting_frames(20, 48, 80, step=(3, 1))
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    prepared = read_clip(path, dataclasses.replace(SPEC, jpeg_quality=95))
    assert prepared.frame_indices.tolist() == [2, 7, 10, 12, 17]
    for index, jpeg in zip(prepared.frame_indices, prepared.frames, strict=True):
        image = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert image.shape == (48, 80, 3)  # its own aspect ratio, and not enlarged
        error = np.abs(image.astype(int) - frames[index]).mean()
        others = [np.abs(image.astype(int) - f).mean() for f in frames]
        assert error < 5
        assert np.argmin(others) == index


def test_large_frames_are_stored_with_the_shorter_side_reduced(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(3, 96, 160))
    prepared = read_clip(path, dataclasses.replace(SPEC, frame_size=48))
    assert Image.open(io.BytesIO(prepared.frames[0])).size == (80, 48)


@pytest.mark.parametrize("source", ["native", "reencode"])
def test_frames_are_chosen_by_the_number_that_was_decoded(source, tmp_path, monkeypatch):
    # Streams with a packet for each field, say, have more packets than frames.
    path = write_video(tmp_path / "a.avi", drifting_frames(20))
    spec = dataclasses.replace(SPEC, source=source)
    expected = read_clip(path, spec)
    monkeypatch.setattr(clip, "check_video", lambda path, limit: CheckedVideo(40, 25.0))
    prepared = read_clip(path, spec)
    assert prepared.num_frames == 20
    assert prepared.frame_indices.tolist() == expected.frame_indices.tolist()
    assert prepared.frames == expected.frames


def test_a_file_is_reencoded_when_a_codec_with_vectors_turns_out_to_have_none(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(20), options={"g": "1"})
    assert read_clip(path, dataclasses.replace(SPEC, source="auto")).source == "reencode"


# Frame 60, the RGB frame, is no I-frame: those are whole even where only vectors are decoded.
@pytest.mark.parametrize("options", [{"g": "7"}, {"g": "7", "bf": "2"}, {"g": "250"}])
@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mp4", "libx264")])
def test_frames_decoded_separately_equal_those_of_a_full_decode(
    name, codec, options, tmp_path, monkeypatch
):
    path = write_video(tmp_path / name, drifting_frames(120), codec=codec, options=options)
    spec = dataclasses.replace(SPEC, source="native", clip_frames=1)
    keep, went_apart = clip._seek_rgb_frames, []

    def spy(*arguments):
        went_apart.append(keep(*arguments))
        return went_apart[-1]

    monkeypatch.setattr(clip, "_seek_rgb_frames", spy)
    apart = read_clip(path, spec)
    assert went_apart == [options["g"] == "7"]
    monkeypatch.setattr(clip, "_FEW_FRAMES", 0.0)
    together = read_clip(path, spec)
    assert not went_apart[-1]
    assert apart.frames == together.frames
    assert apart.frame_indices.tolist() == together.frame_indices.tolist() == [60]
    np.testing.assert_array_equal(apart.displacements, together.displacements)
    np.testing.assert_array_equal(apart.future, together.future)


def test_damage_is_found_when_frames_are_decoded_separately_too(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(120), options={"g": "6"})
    content = bytearray(path.read_bytes())
    # Far from the middle frame: the header of the second packet.
    second = content.index(b"00dc", content.index(b"00dc", content.index(b"movi")) + 4) + 8
    content[second : second + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.avi: damaged at packet 2 "):
        read_clip(path, dataclasses.replace(SPEC, source="native", clip_frames=1))


@pytest.mark.parametrize(
    ("name", "codec", "options", "container_options"),
    [
        ("a.avi", "mpeg4", {}, {}),
        ("b.avi", "mpeg4", {"bf": "2"}, {}),
        ("ms.avi", "msmpeg4", {}, {}),
        ("end.mp4", "libx264", {}, {}),
        ("front.mp4", "libx264", {}, {"movflags": "faststart"}),
        ("fragments.mp4", "libx264", {}, {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}, {}),
        ("a.webm", "libvpx", {}, {}),
        ("a.flv", "flv", {}, {}),
        ("a.ts", "libx264", {}, {}),
        ("a.mpg", "mpeg1video", {}, {}),
        ("a.mov", "mjpeg", {}, {}),
        ("a.h264", "libx264", {}, {}),
        ("50%d: a.avi", "mpeg4", {}, {}),
    ],
)
def test_whole_files_are_read_to_the_last_frame(tmp_path, name, codec, options, container_options):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(
        tmp_path / name,
        drifting_frames(26),
        codec=codec,
        pix_fmt=pix_fmt,
        options=options,
        container_options=container_options,
    )
    assert read_clip(path, SPEC).num_frames == 26


@pytest.mark.parametrize("name", ["long_sound.mkv", "long_sound.mov", "long_sound.avi"])
def test_longer_sound_does_not_make_a_video_cut(tmp_path, name):
    path = write_video(tmp_path / name, drifting_frames(10), audio_seconds=3)
    assert read_clip(path, SPEC).num_frames == 10


def test_avi_without_its_index_is_whole(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(20))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"idx1")])
    assert read_clip(path, SPEC).num_frames == 20


def test_avi_with_dropped_frames_is_whole(tmp_path):
    # An empty packet stands for a repeated frame; the header's count includes it.
    path = write_video(tmp_path / "a.avi", drifting_frames(20))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.avi"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.dts % 5 != 3:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(tmp_path / "b.avi")) as container:
        assert container.streams.video[0].frames == 20
    assert read_clip(tmp_path / "b.avi", SPEC).num_frames == 16


@pytest.mark.parametrize(
    ("name", "codec", "container_options", "share"),
    [
        ("a.avi", "mpeg4", {}, 0.3),
        ("a.avi", "mpeg4", {}, 0.7),
        ("a.avi", "mpeg4", {}, 0.9),
        ("end.mp4", "libx264", {}, 0.5),
        ("end.mp4", "libx264", {}, 0.95),
        ("front.mp4", "libx264", {"movflags": "faststart"}, 0.3),
        ("front.mp4", "libx264", {"movflags": "faststart"}, 0.95),
        ("fragments.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}, 0.6),
        ("a.mkv", "libx264", {}, 0.6),
        ("a.webm", "libvpx", {}, 0.8),
        ("a.flv", "flv", {}, 0.6),
        ("a.mpg", "mpeg1video", {}, 0.6),
    ],
)
def test_cut_files_are_rejected(tmp_path, capfd, name, codec, container_options, share):
    frames = drifting_frames(80, 96, 128, step=(1, 1))
    path = write_video(tmp_path / name, frames, codec=codec, container_options=container_options)
    target = cut(path, share)
    reasons = (
        "cut before its header|cut: it holds .* its header declares|cut or damaged at packet"
        "|damaged at packet"
    )
    with pytest.raises(VideoError, match=reasons) as error:
        read_clip(target, SPEC)
    assert str(target) in str(error.value)
    assert capfd.readouterr().err == ""  # FFmpeg says nothing of its own


@pytest.mark.parametrize(
    ("name", "container_options"),
    [("a.avi", {}), ("a.mp4", {"movflags": "faststart"})],
)
def test_a_file_cut_between_two_packets_is_rejected(tmp_path, name, container_options):
    frames = drifting_frames(30)
    path = write_video(tmp_path / name, frames, container_options=container_options)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    path.write_bytes(path.read_bytes()[: packets[20].pos])
    with pytest.raises(VideoError, match="cut"):
        read_clip(path, SPEC)


def test_files_that_are_no_video_are_rejected_with_the_reason(tmp_path):
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "text.avi").write_text("This is not a clip.\n" * 50)
    (tmp_path / "text.txt").write_text("FFmpeg would draw this as a terminal would.\n" * 50)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile 'other.avi'\n")
    (tmp_path / "bytes.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    Image.fromarray(drifting_frames(1)[0]).save(tmp_path / "image.png")
    Image.fromarray(drifting_frames(1)[0]).save(tmp_path / "image.mp4", "JPEG")
    write_sound(tmp_path / "sound.wav")
    for name, reason in {
        "absent.avi": "no such file",
        ".": "not a file",
        "empty.avi": "empty",
        "text.avi": "not a video",
        "text.txt": "not a video file .FFmpeg reads it as",
        "list.ffconcat": "not a video",
        "bytes.mp4": "not a video",
        "image.png": "not a video",
        "image.mp4": "not a video",
        "sound.wav": "no video stream",
    }.items():
        with pytest.raises(VideoError, match=reason) as error:
            read_clip(tmp_path / name, SPEC)
        assert str(tmp_path / name) in str(error.value), name


def test_too_long_a_video_is_rejected(tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(12))
    assert read_clip(path, dataclasses.replace(SPEC, max_frames=12)).num_frames == 12
    with pytest.raises(VideoError, match="more than 11 frames"):
        read_clip(path, dataclasses.replace(SPEC, max_frames=11))


def test_error_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(VideoError("/a/b.avi", "the file is empty")))
    assert (error.path, error.reason) == ("/a/b.avi", "the file is empty")
    assert str(error) == "/a/b.avi: the file is empty"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("width", 341, "VideoSpec.width and height are 341x256, must be even"),
        ("height", 8, r"VideoSpec.height is 8, must be from \d+ to \d+"),
        ("qscale", 0, "VideoSpec.qscale is 0, must be from 1 to 31"),
        ("clip_frames", 0, "VideoSpec.clip_frames is 0, must be from 1 to"),
    ],
)
def test_spec_names_the_wrong_field(field, value, reason):
    with pytest.raises(ValueError, match=reason):
        VideoSpec(**{field: value})


def test_images_of_a_wrong_kind_are_rejected():
    with pytest.raises(ValueError, match="uint8"):
        clip_from_frames(np.zeros((4, 64, 96, 3), np.float32), SPEC, 25.0)
    with pytest.raises(ValueError, match="n > 0"):
        clip_from_frames(np.zeros((0, 64, 96, 3), np.uint8), SPEC, 25.0)
