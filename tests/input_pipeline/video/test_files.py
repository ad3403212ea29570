"""What counts as a video in a folder: the same for prediction and for training."""

import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from moclip_jax.input_pipeline.video.decode import VideoError, open_video
from moclip_jax.input_pipeline.video.files import describe_skipped, find_videos, videos_under
from tests.input_pipeline.video_fixtures import drifting_frames, write_sound, write_video

FRAMES = drifting_frames(6, 144, 176)


def write(path: pathlib.Path, codec: str, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(write_video(path, FRAMES, codec=codec, **options))


def images(number: int) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in FRAMES[:number]]


def test_files_of_every_container_that_ffmpeg_demuxes_are_found(tmp_path):
    """FFmpeg's muxers write what lies behind each suffix; none of them is in any list of ours."""
    found = [
        write(tmp_path / name, codec, container_format=form)
        for name, codec, form in (
            ("a.3g2", "mpeg4", "3g2"),
            ("a.265", "libx265", "hevc"),
            ("a.f4v", "libx264", "f4v"),
            ("a.gif.mp4", "mpeg4", "mp4"),
            ("a.h264", "libx264", "h264"),
            ("a.mxf", "mpeg2video", "mxf"),
            ("a.nut", "mpeg4", "nut"),
            ("a.rm", "rv10", "rm"),
            ("a.ts", "mpeg2video", "mpegts"),
            ("deeper/and/A.MKV", "mpeg4", "matroska"),
            ("without_suffix", "mpeg4", "mp4"),
        )
    ]
    images(1)[0].save(tmp_path / "z.gif", save_all=True, append_images=images(4)[1:])
    assert videos_under(tmp_path) == ([*sorted(found), str(tmp_path / "z.gif")], [])
    for path in found:
        with open_video(path) as (_, stream):
            assert stream.width == 176


def test_a_still_image_is_rejected_whatever_its_name(tmp_path):
    still = images(1)[0]
    for suffix in ("avif", "bmp", "gif", "ico", "jpg", "png", "ppm", "tiff", "webp"):
        path = tmp_path / f"a.{suffix}"
        still.save(path)
        reason = r"a still image, not a video|not a video file"
        with pytest.raises(VideoError, match=reason), open_video(path):
            pass
    # HEIC is AVIF's container with another codec and another brand.
    avif = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.heic").write_bytes(avif.replace(b"avif", b"heic").replace(b"mif1", b"heix"))
    (tmp_path / "renamed.dat").write_bytes(avif)
    videos, skipped = videos_under(tmp_path)
    assert videos == []
    assert [error.path for error in skipped] == sorted(map(str, tmp_path.iterdir()))
    assert {error.path: error.reason for error in skipped}[str(tmp_path / "a.heic")] == (
        "a still image, not a video"
    )
    with pytest.raises(VideoError, match="a still image"), open_video(tmp_path / "renamed.dat"):
        pass


def test_an_animated_image_is_a_video(tmp_path):
    still, *others = images(5)
    for suffix in ("avif", "gif"):
        path = tmp_path / f"a.{suffix}"
        still.save(path, save_all=True, append_images=others, duration=100)
        with open_video(path) as (container, stream):
            assert sum(1 for _ in container.decode(stream)) == 5


def test_what_is_left_out_of_a_folder_is_named_with_the_reason(tmp_path):
    video = write(tmp_path / "b" / "a.mp4", "mpeg4")
    hidden = [tmp_path / ".ipynb_checkpoints" / "a-checkpoint.mp4", tmp_path / "b" / ".a.mp4"]
    for path in hidden:
        write(path, "mpeg4")
    folder = tmp_path / "x.mp4"  # A folder, in spite of its name.
    inside = write(folder / "inside.avi", "mpeg4")
    (tmp_path / "notes.txt").write_text("no video\n" * 100)
    (tmp_path / "script.ts").write_text("export const x = 1;\n" * 100)
    (tmp_path / "empty.dat").touch()
    sound = write_sound(tmp_path / "sound.wav")
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    videos, skipped = videos_under(tmp_path)
    assert videos == [video, inside]
    reasons = {error.path: error.reason for error in skipped}
    assert reasons.pop(str(tmp_path / "script.ts")).startswith("not a video that FFmpeg can open")
    assert reasons == {
        str(hidden[0].parent): "hidden",
        str(hidden[1]): "hidden",
        str(tmp_path / "notes.txt"): "not a video file (FFmpeg reads it as 'tty')",
        str(tmp_path / "empty.dat"): "the file is empty",
        str(sound): "has no video stream",
        str(tmp_path / "lost.mp4"): "no such file",
        str(tmp_path / "b" / "up"): "a link to a folder that it lies in",
    }
    lines = describe_skipped(skipped)
    assert f"skipped 2 (hidden): {hidden[0].parent}, {hidden[1]}" in lines
    assert len(lines) == len(set(reasons.values())) + 1
    # Links to other folders are followed, and a hidden file that the user names is used.
    (tmp_path / "b" / "up").unlink()
    link = tmp_path / "b" / "link"
    link.symlink_to(folder)
    left_out: list[VideoError] = []
    assert list(find_videos([str(tmp_path / "b"), str(hidden[1])], left_out)) == [
        video, str(link / "inside.avi"), str(hidden[1])
    ]  # fmt: skip
    assert left_out and all(error.reason == "hidden" for error in left_out)


def test_a_damaged_file_with_a_videos_suffix_is_left_to_the_reader(tmp_path):
    """It is meant as a video, so reading it must name what is wrong."""
    (tmp_path / "text.mp4").write_text("no video")
    assert videos_under(tmp_path) == ([str(tmp_path / "text.mp4")], [])
    reason = "not a video that FFmpeg can open"
    with pytest.raises(VideoError, match=reason), open_video(tmp_path / "text.mp4"):
        pass


def test_a_pattern_that_matches_folders_only_is_an_error(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    (found,) = find_videos([f"{tmp_path}/*.mp4"])
    assert str(found) == f"{tmp_path}/*.mp4: no file matches this pattern"


def test_names_with_the_letters_of_patterns_are_names(tmp_path):
    path = write(tmp_path / "[a]*?.mp4", "mpeg4")
    assert list(find_videos([path])) == [path]
    assert list(find_videos([str(tmp_path)])) == [path]


def test_one_video_frame_in_a_container_for_videos_is_a_video(tmp_path):
    path = tmp_path / "one.bin"
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert videos_under(tmp_path) == ([str(path)], [])
