"""Frames as the codec describes them equal what each vector says, one at a time."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.codec import painted
from moclip_jax import codec
from moclip_jax.codec.frame import aligned_empty
from moclip_jax.input_pipeline.video.decode import VideoError, decode_frames
from moclip_jax.input_pipeline.video.motion_vectors import accumulate_motion, read_motion_vectors
from moclip_jax.input_pipeline.video.orientation import frame_orientation, orient_field
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

FORMS = {
    "mpeg4.avi": ("mpeg4", {}, 0),
    "b_frames.mp4": ("libx264", {"bf": "3", "g": "9", "x264-params": "scenecut=0"}, 0),
    "turned.mp4": ("libx264", {"bf": "2", "g": "9"}, 90),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}, 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    frames = drifting_frames(24, 44, 72, step=(2, 1))
    frames[:, 8:36, 20:52] = drifting_frames(24, 28, 32, step=(-3, 1), seed=1)
    for name, (encoder, options, rotation) in FORMS.items():
        write_video(folder / name, frames, codec=encoder, options=options, rotation=rotation)
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_maps_are_what_each_vector_paints(folder, name):
    path = folder / name
    described = list(codec.frames(path))
    orientation = frame_orientation(next(decode_frames(path)))
    assert bool(orientation) == (FORMS[name][2] != 0)
    motions = list(read_motion_vectors(path))
    fields = accumulate_motion(path)
    assert len(described) == len(motions) == 24
    moving = 0
    for frame, motion, field in zip(described, motions, fields, strict=True):
        assert (frame.index, frame.picture_type) == (motion.index, motion.picture_type)
        np.testing.assert_array_equal(frame.vectors, motion.vectors)
        coded, known = painted(frame.vectors, frame.picture_type, motion.height, motion.width)
        upright = orient_field(coded, orientation)
        shape = (2, frame.height, frame.width)
        assert frame.raw.shape == frame.accumulated.shape == frame.object_motion.shape == shape
        np.testing.assert_array_equal(frame.raw, upright.transpose(2, 0, 1))
        np.testing.assert_array_equal(frame.accumulated, field.transpose(2, 0, 1))
        both = orient_field(np.stack([~known, ~known], -1).astype(int), orientation)
        np.testing.assert_array_equal(frame.intra, both[..., 0] != 0)
        cells = known[::8, ::8]
        assert frame.intra_share == pytest.approx(1 - cells.mean())
        moving += np.abs(frame.raw).sum()
        # Between blocks the motion without the camera's is the map's own, at the cells' middle.
        rest = frame.raw - camera_map(frame.camera, frame.height, frame.width)
        np.testing.assert_allclose(frame.object_motion, np.where(frame.intra, 0, rest), atol=1e-4)
        speed = np.hypot(*frame.object_motion)
        assert frame.energy == pytest.approx(speed[~frame.intra].sum() / speed.size, abs=0.3)
    assert moving


def camera_map(camera: np.ndarray, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.einsum("ij,jhw->ihw", camera, np.stack([x, y, np.ones_like(x)]))


@pytest.mark.parametrize("name", FORMS)
def test_chosen_frames_are_those_of_the_whole_file(folder, name):
    whole = list(codec.frames(folder / name))
    wanted = [17, 3, 0, 17, 23]
    for some in (
        list(codec.frames(folder / name, wanted)),
        list(codec.frames(folder / name, np.array(wanted))),
        list(codec.frames(folder / name, times=[whole[i].time_s + 0.01 for i in wanted])),
    ):
        assert [frame.index for frame in some] == wanted
        for frame in some:
            expected = whole[frame.index]
            assert frame.time_s == pytest.approx(expected.time_s)
            np.testing.assert_array_equal(frame.vectors, expected.vectors)
            np.testing.assert_array_equal(frame.accumulated, expected.accumulated)
    (frame,) = codec.frames(folder / name, [5], accumulated=False)
    assert frame.accumulated is None
    np.testing.assert_array_equal(frame.raw, whole[5].raw)
    assert list(codec.frames(folder / name, [])) == []


def test_a_codec_without_vectors_is_encoded_again_in_its_own_size(tmp_path):
    frames = drifting_frames(26, 50, 72, step=(3, 0))
    path = write_video(tmp_path / "a.webm", frames, codec="libvpx-vp9", rate=10)
    whole = list(codec.frames(path))
    assert [frame.picture_type for frame in whole] == list("I" + "P" * 11) * 2 + ["I", "P"]
    assert [frame.time_s for frame in whole] == pytest.approx(np.arange(26) / 10, abs=2e-3)
    assert whole[0].raw.shape == (2, 50, 72)
    # The picture drifts by (3, 0) a frame.
    assert np.median(whole[11].accumulated[0]) == pytest.approx(33, abs=2)
    (some,) = codec.frames(path, times=[1.15])
    assert some.index == 11
    np.testing.assert_array_equal(some.accumulated, whole[11].accumulated)
    assert {f.picture_type for f in codec.frames(path, source="native")} <= {"I", "P", "?"}


def test_what_cannot_be_is_named(folder, tmp_path):
    path = folder / "mpeg4.avi"
    with pytest.raises(IndexError, match="frame 24 is outside a video of 24 frames"):
        list(codec.frames(path, [24]))
    with pytest.raises(ValueError, match=r"time 1 s is outside a video of 0.96 s"):
        list(codec.frames(path, times=[1.0]))
    with pytest.raises(ValueError, match="takes indices or times, not both"):
        codec.frames(path, [0], times=[0.0])
    with pytest.raises(ValueError, match="source is 'raw', must be one of"):
        codec.frames(path, source="raw")
    with pytest.raises(VideoError, match=r"absent.mp4: no such file"):
        list(codec.frames(tmp_path / "absent.mp4"))


def test_a_frame_outside_a_file_that_is_read_whole_is_named(tmp_path):
    path = write_video(tmp_path / "a.webm", drifting_frames(4), codec="libvpx-vp9")
    with pytest.raises(IndexError, match="frame 9 is outside the video"):
        list(codec.frames(path, [9]))


def test_arrays_are_shared_without_a_copy(folder):
    *_, frame = codec.frames(folder / "b_frames.mp4")
    mask = codec.patch_mask(folder / "b_frames.mp4", patch=8)
    for array in (frame.raw, frame.accumulated, frame.object_motion, frame.intra, mask):
        assert array.flags.c_contiguous and array.flags.writeable
        shared = np.from_dlpack(array)
        assert np.shares_memory(shared, array)
        on_cpu = jnp.from_dlpack(array, device=jax.devices("cpu")[0])
        assert on_cpu.unsafe_buffer_pointer() == array.ctypes.data
        np.testing.assert_array_equal(np.asarray(on_cpu), array)
    for size in range(1, 200):
        assert aligned_empty((size, 3), np.int16).ctypes.data % 64 == 0


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Frames that are not held are freed: 300 maps of one file would take 300 times one."""
    import tracemalloc

    frames = drifting_frames(300, 64, 96, step=(1, 0))
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", options={"g": "250"})
    tracemalloc.start()
    peaks = []
    for frame in codec.frames(path):
        assert frame.raw.shape == (2, 64, 96)
        if frame.index in (60, 299):
            peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_the_examples_of_the_package_and_its_page_run(tmp_path):
    import doctest
    import pathlib

    target = tmp_path / "clip.mp4"
    target.write_bytes(real_clips.path("bikes").read_bytes())
    page = pathlib.Path(__file__).parents[2] / "docs" / "codec.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert doctest.testmod(codec)[0] == 0
        assert doctest.testfile(str(page), module_relative=False)[0] == 0


def test_the_package_imports_neither_jax_nor_tensorflow(folder):
    code = (
        "import sys\nfrom moclip_jax import codec\n"
        "assert not {'av', 'numpy'} & set(sys.modules)\n"
        f"codec.keyframes({str(folder / 'mpeg4.avi')!r}, 3)\n"
        f"codec.patch_mask({str(folder / 'mpeg4.avi')!r})\n"
        f"[frame.object_motion for frame in codec.frames({str(folder / 'mpeg4.avi')!r})]\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'transformers', 'absl', 'ml_collections'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert 'keyframes' in dir(codec)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        codec.absent  # noqa: B018
