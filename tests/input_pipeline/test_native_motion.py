"""A stream's own motion as bytes and on disk, against plain Python."""

import dataclasses
import pathlib

import numpy as np
import pytest

from moclip_jax.input_pipeline.batches import (
    MotionViews,
    prepare_dataset,
    train_batches,
    view_batches,
)
from moclip_jax.input_pipeline.motion_fields import byte_fields
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.video.coded_frames import coded_frames
from moclip_jax.input_pipeline.video.motion_vectors import BlockMotion
from moclip_jax.input_pipeline.views import test_view
from moclip_jax.reporting.motion_figures import motion_fields
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(source="native", width=96, height=64, clip_frames=2)
VIEWS = MotionViews(num_segments=3, image_size=24, resize_size=32)


def random_motion(
    kinds: str, height: int, width: int, orientation: int = 0, reach: int = 20
) -> BlockMotion:
    rng = np.random.default_rng(len(kinds) + height)
    grid = (len(kinds), -(-height // 8), -(-width // 8))
    is_intra, is_b = (np.array([kind == letter for kind in kinds]) for letter in "IB")
    displacements = rng.integers(-reach, reach + 1, (*grid, 2)).astype(np.int16)
    displacements[rng.random(grid) < 0.4] = 0
    displacements[is_intra] = 0
    return BlockMotion(
        displacements=displacements,
        is_intra=is_intra,
        is_bidirectional=is_b,
        future=(rng.random(grid) < 0.4) & is_b[:, None, None],
        height=height,
        width=width,
        orientation=orientation,
    )


def all_fields(motion: BlockMotion, indices: np.ndarray, *arguments, **options) -> np.ndarray:
    """All fields at once; each is copied, as the next takes its place."""
    fields = {
        row: field.copy()
        for rows, field in byte_fields(motion, indices, *arguments, **options)
        for row in rows
    }
    return np.stack([fields[row] for row in range(len(indices))])


def to_bytes(fields: np.ndarray, spec: VideoSpec, bound: float) -> np.ndarray:
    """Scale by the written definition, value by value, with Python's exact integers."""
    from fractions import Fraction

    height, width = fields.shape[-3:-1]
    result = np.empty(fields.shape, np.uint8)
    for axis, (size, canonical) in enumerate(((width, spec.width), (height, spec.height))):
        for value in np.unique(fields[..., axis]).tolist():
            exact = Fraction(value * canonical, size) * Fraction(255, 2) / Fraction(bound)
            byte = min(max(int(exact) + 128, 0), 255)
            result[..., axis][fields[..., axis] == value] = byte
    return result


@pytest.mark.parametrize(
    "kinds", ["IPPPIPP", "IBBPBIBBPB", "BBPBIPB", "IBBB", "BB", "I", "PPB", "PPPPP"]
)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 51)])
def test_fields_equal_the_numpy_ones(kinds, height, width):
    motion = random_motion(kinds, height, width)
    expected = to_bytes(motion.accumulate(), SPEC, 20.0)
    fields = all_fields(motion, np.arange(len(kinds)), SPEC, 20.0)
    assert fields.dtype == np.uint8
    np.testing.assert_array_equal(fields, expected)


@pytest.mark.parametrize("kinds", ["IPPPIPPP", "IBBPBIBB", "BBPPPIPB", "PPPPPPPP"])
@pytest.mark.parametrize("accumulated", [True, False])
def test_frames_are_wanted_in_any_order_and_some_twice(kinds, accumulated):
    motion = random_motion(kinds, 37, 51, reach=60)
    indices = np.array([7, 1, 4, 1, 6, 5, 2, 2], np.int32)
    of = motion.accumulate if accumulated else motion.each_alone
    expected = to_bytes(of(indices), SPEC, 70.0)
    fields = all_fields(motion, indices, SPEC, 70.0, accumulated)
    np.testing.assert_array_equal(fields, expected)


@pytest.mark.parametrize("orientation", range(8))
def test_turned_fields_equal_the_numpy_ones(orientation):
    motion = random_motion("IPBP", 37, 51, orientation)
    expected = to_bytes(motion.accumulate(), SPEC, 20.0)
    np.testing.assert_array_equal(all_fields(motion, np.arange(4), SPEC, 20.0), expected)


def test_canonical_pixels_are_the_unit():
    # A frame of twice the canonical size that moves by 12 x 10 moves by 6 x 5 there.
    motion = random_motion("IP", 128, 192)
    motion.displacements[1] = -12, -10
    middle = all_fields(motion, np.array([1]), SPEC, 20.0)[0, 64, 96].tolist()
    assert middle == [int(6 * 127.5 / 20) + 128, int(5 * 127.5 / 20) + 128]


def test_at_the_canonical_size_bytes_are_those_of_the_canonical_form():
    motion = random_motion("IPPPPPP", 64, 96)
    for bound in (20.0, 8.0, 33.0):
        fields = all_fields(motion, np.arange(7), SPEC, bound)
        values = motion.accumulate()
        expected = [min(max(int(v * 127.5 / bound) + 128, 0), 255) for v in values.flat]
        expected = np.reshape(expected, values.shape)
        np.testing.assert_array_equal(fields, expected)


def test_motion_of_a_frame_alone_points_forward_in_time():
    kinds = "IPBPBB"
    height, width = 37, 51
    motion = random_motion(kinds, height, width)
    indices = np.arange(6, dtype=np.int32)
    expected = np.zeros((6, height, width, 2), np.int32)
    for index, y, x in np.ndindex(6, height, width):
        dx, dy = motion.displacements[index, y // 8, x // 8].tolist()
        ahead = motion.future[index, y // 8, x // 8]
        if ahead and "P" not in kinds[index:] and "I" not in kinds[index:]:
            continue
        if 0 <= x + dx < width and 0 <= y + dy < height:
            expected[index, y, x] = (dx, dy) if ahead else (-dx, -dy)
    fields = all_fields(motion, indices, SPEC, 20.0, accumulated=False)
    np.testing.assert_array_equal(fields, to_bytes(expected, SPEC, 20.0))
    np.testing.assert_array_equal(motion.each_alone(indices), expected)
    for outside in (-1, len(motion.is_intra)):
        with pytest.raises(IndexError, match=f"frame {outside} is outside a video"):
            motion.each_alone([outside])


def test_a_real_video_with_b_frames_equals_the_numpy_fields():
    prepared = read_clip(real_clips.path("bikes"), SPEC)
    assert prepared.is_bidirectional.sum() > 100
    assert prepared.future.sum() > 1000
    indices = np.array([249, 3, 100, 4, 31, 0], np.int32)
    expected = to_bytes(prepared.motion.accumulate(indices), SPEC, 20.0)
    fields = all_fields(prepared.motion, indices, SPEC, 20.0)
    np.testing.assert_array_equal(fields, expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Videos of three sizes, four codecs and two orientations in two classes."""
    folder = tmp_path_factory.mktemp("videos")
    for name, size, step, codec, options in (
        ("Left/a.mp4", (48, 64), (-3, 0), "libx264", {"bf": "2", "g": "9"}),
        ("Left/b.avi", (64, 80), (-2, 0), "mpeg4", {"bf": "2"}),
        ("Left/c.webm", (48, 64), (-3, 0), "libvpx-vp9", {}),
        ("Down/a.mp4", (48, 64), (0, 3), "libx264", {"bf": "2", "g": "9"}),
        ("Down/b.avi", (72, 56), (0, 2), "mpeg4", {}),
        ("Down/c.mov", (48, 64), (3, 0), "mpeg4", {}),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        write_video(
            folder / name,
            drifting_frames(20, *size, step=step),
            codec=codec,
            options=options,
            rotation=-90 if name.endswith("mov") else 0,
        )
    return folder


def prepared_dataset(folder, data_dir, source):
    spec = VideoSpec(source=source, width=96, height=64, clip_frames=2)
    return prepare_dataset(
        "video_folder", data_dir=data_dir, spec=spec, videos=str(folder), num_workers=1
    )


def test_stored_videos_give_what_the_files_give(folder, tmp_path):
    dataset = prepared_dataset(folder, tmp_path, "auto")
    names = [entry.name for entry in dataset.index if not entry.error]
    assert len(names) == 6
    (batch,) = view_batches(
        dataset, names, motion=VIEWS, frames="middle", image_size=32, batch_size=6
    ).as_numpy_iterator()
    for index, fields in zip(batch["index"], batch["motion"], strict=True):
        name = names[index]
        prepared = read_clip(folder / name, dataset.spec)
        assert prepared.source == ("reencode" if name.endswith("webm") else "native")
        np.testing.assert_array_equal(fields, test_view(prepared, VIEWS, dataset.spec))
        # All drift left or down, the turned one as well.
        x, y = (fields[0].astype(int) - 128).mean((0, 1, 2))
        along, across = (-x, y) if name.startswith("Left") else (y, x)
        assert along > 20 > 8 > abs(across)
    (batch,) = train_batches(
        dataset, names, VIEWS, batch_size=6, seed=0, epoch=0
    ).as_numpy_iterator()
    assert batch["motion"].shape == (6, 3, 24, 24, 2)


def test_native_rejects_what_has_no_vectors(folder, tmp_path):
    dataset = prepared_dataset(folder, tmp_path, "native")
    (rejected,) = [entry for entry in dataset.index if entry.error]
    assert rejected.name == "Left/c.webm"
    assert "no motion vectors" in rejected.error


@pytest.mark.parametrize("source", ["native", "reencode"])
def test_a_part_from_an_i_frame_on_moves_as_it_does_in_the_whole(source, tmp_path):
    """Also where it ends among B-frames, whose next reference lies behind it."""
    path = write_video(
        tmp_path / "a.mkv", drifting_frames(40), codec="mpeg4", options={"g": "12", "bf": "2"}
    )
    video = read_clip(path, dataclasses.replace(SPEC, source=source))
    starts = video.group_starts().tolist()
    assert starts[0] == 0 and len(starts) > 2
    ends = np.flatnonzero(video.is_bidirectional[starts[1] :]) + starts[1] + 1
    assert len(ends) > 5 if source == "native" else not len(ends)
    for begin, end in [(0, 5), (starts[1], starts[2]), *((starts[1], end) for end in ends)]:
        part = video.part(begin, int(end), np.array([True] * len(video.frames)))
        expected = video.motion.accumulate(range(begin, end))
        np.testing.assert_array_equal(part.motion.accumulate(range(end - begin)), expected)
        assert part.num_frames == end - begin
        assert 0 <= part.frame_indices.min() <= part.frame_indices.max() < part.num_frames
        if source == "native":
            views = MotionViews(num_segments=part.num_frames, image_size=24, resize_size=32)
            assert test_view(part, views, SPEC).shape == (1, part.num_frames, 24, 24, 2)


@pytest.mark.parametrize("raw", [False, True])
def test_figures_show_the_streams_own_motion(raw, tmp_path):
    path = write_video(
        tmp_path / "a.mkv", drifting_frames(30), codec="mpeg4", options={"g": "12", "bf": "2"}
    )
    video = read_clip(path, SPEC)
    frames = (coded.blocks for coded in coded_frames(path, SPEC, video.source))
    fields = np.stack(list(motion_fields(frames, raw=raw)))
    if raw:
        # The texture drifts to the right by two pixels a frame; B-frames look one or two ahead.
        inner = fields[video.is_bidirectional, 16:32, 16:48]
        assert (inner[..., 0] >= 0).mean() > 0.9 and inner[..., 0].max() <= 8
    else:
        np.testing.assert_array_equal(fields, video.motion.accumulate())
