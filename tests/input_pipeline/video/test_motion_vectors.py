"""Reading and accumulating motion vectors, against their per-pixel definition."""

import gc
import itertools
import pathlib

import av
import numpy as np
import pytest

from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.clip import VideoError
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.motion_vectors import (
    EXPORT_VECTORS,
    VECTOR_DTYPE,
    BlockMotionReader,
    accumulate_motion,
    frame_vectors,
    rasterize_vectors,
    read_motion_vectors,
)
from moclip_jax.input_pipeline.video.orientation import frame_orientation
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import cut, drifting_frames, write_video


def plain_decode(path) -> list[tuple[str, np.ndarray]]:
    """Return each frame's type and vectors, decoded with no option but their export."""
    frames = []
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(video=0):
            data = frame.side_data.get("MOTION_VECTORS")
            vectors = np.empty(0, VECTOR_DTYPE) if data is None else data.to_ndarray()
            frames.append(("?IPB"[frame.pict_type], vectors))
    return frames


def accumulate_by_definition(
    frames: list[tuple[str, np.ndarray]], height: int, width: int
) -> np.ndarray:
    """Follow the definition block by block, without any grid.

    I- and P-frames refer to the I- or P-frame before them. A pixel at `dst + o` takes the origin
    that `src + o` had there if both lie inside the frame; a block with dst == src, and a pixel
    under no block, keep the old value of their own place. A B-frame does the same, and where only
    vectors from the future cover a pixel, it takes the origin from the next I- or P-frame.
    """
    ys, xs = np.mgrid[:height, :width]
    identity = np.stack([xs, ys], axis=-1)

    def blocks(vectors, source):
        for vector in vectors:
            if vector["source"] != source:
                continue
            w, h = int(vector["w"]), int(vector["h"])
            oy, ox = np.mgrid[-(h // 2) : h - h // 2, -(w // 2) : w - w // 2]
            x, y = int(vector["dst_x"]) + ox, int(vector["dst_y"]) + oy
            from_x, from_y = int(vector["src_x"]) + ox, int(vector["src_y"]) + oy
            shown = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            known = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
            moves = (vector["dst_x"], vector["dst_y"]) != (vector["src_x"], vector["src_y"])
            yield (y, x), (from_y, from_x), shown, known, moves

    def follow(vectors, past, coming):
        origin = past.copy()
        covered = np.zeros((height, width), bool)
        for to, source, shown, known, moves in blocks(vectors, -1):
            covered[to[0][shown], to[1][shown]] = True
            if moves:
                both = shown & known
                origin[to[0][both], to[1][both]] = past[source[0][both], source[1][both]]
        if coming is not None:
            for to, source, shown, known, _ in blocks(vectors, 1):
                both = shown & known
                both[both] = ~covered[to[0][both], to[1][both]]
                origin[to[0][both], to[1][both]] = coming[source[0][both], source[1][both]]
        return origin

    references = {-1: identity}
    for index, (kind, vectors) in enumerate(frames):
        if kind == "I":
            references[index] = identity
        elif kind != "B":
            references[index] = follow(vectors, references[max(references)], None)
    fields = []
    for index, (kind, vectors) in enumerate(frames):
        if kind == "B":
            past = max(number for number in references if number < index)
            coming = min((number for number in references if number > index), default=None)
            origin = follow(vectors, references[past], references.get(coming))
        else:
            origin = references[index]
        fields.append(identity - origin)
    return np.array(fields, np.int32)


def random_vectors(
    rng: np.random.Generator, height: int, width: int, sides: tuple[int, ...] = (8, 16)
) -> np.ndarray:
    """Draw vectors of 16x16, 16x8, 8x16 and 8x8 blocks that leave some of the frame free."""
    vectors = []
    for top, left in itertools.product(range(0, height, 16), range(0, width, 16)):
        w, h = rng.choice(sides, 2)
        for j, i in itertools.product(range(0, 16, h), range(0, 16, w)):
            if rng.random() < 0.25:
                continue
            vector = np.zeros((), VECTOR_DTYPE)
            vector["w"], vector["h"] = w, h
            vector["source"] = rng.choice([-1, -1, -1, 1])
            vector["dst_x"], vector["dst_y"] = left + i + w // 2, top + j + h // 2
            shift = rng.integers(-20, 21, 2) * (rng.random() < 0.8)
            vector["src_x"], vector["src_y"] = (
                vector["dst_x"] + shift[0],
                vector["dst_y"] + shift[1],
            )
            vectors.append(vector)
    return np.array(vectors, VECTOR_DTYPE)


def rasterize(vectors, height, width, both_ways=False):
    """Rasterize one frame."""
    grids = rasterize_vectors([vectors.tobytes()], [both_ways], height, width)
    return grids[0][0], grids[1][0]


@pytest.mark.parametrize("sides", [(8, 16), (16,)])  # (16,): cells move in twos
@pytest.mark.parametrize(
    ("height", "width"), [(48, 64), (40, 56), (37, 51), (16, 16), (33, 49), (9, 9), (5, 7)]
)
def test_accumulation_follows_the_definition(height, width, sides):
    rng = np.random.default_rng(height)
    none = np.empty(0, VECTOR_DTYPE)
    frames = [
        (kind, random_vectors(rng, height, width, sides) if kind == "P" else none)
        for kind in "IPPPPIPPPIIP"
    ]
    displacements = np.stack([rasterize(v, height, width)[0] for _, v in frames])
    is_intra = np.array([kind == "I" for kind, _ in frames])
    fields = accumulate(displacements, is_intra, height, width)
    assert fields.dtype == np.int32
    np.testing.assert_array_equal(fields, accumulate_by_definition(frames, height, width))


@pytest.mark.parametrize("sides", [(8, 16), (16,)])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 51)])
@pytest.mark.parametrize("kinds", ["IPBBPBIBBPB", "BBPBIPB", "IBBB", "BBB", "B", "IIBP"])
def test_accumulation_of_b_frames_follows_the_definition(height, width, kinds, sides):
    rng = np.random.default_rng(len(kinds))
    frames = []
    for kind in kinds:
        vectors = random_vectors(rng, height, width, sides)
        if kind == "B":  # Some blocks have vectors of both kinds, some of one.
            also = random_vectors(rng, height, width, sides)
            vectors["source"], also["source"] = -1, 1
            vectors = np.concatenate([vectors, also])
        frames.append((kind, vectors if kind != "I" else np.empty(0, VECTOR_DTYPE)))
    grids = [rasterize(v, height, width, both_ways=kind == "B") for kind, v in frames]
    arguments = {
        "displacements": np.stack([displacements for displacements, _ in grids]),
        "is_intra": np.array([kind == "I" for kind in kinds]),
        "is_bidirectional": np.array([kind == "B" for kind in kinds]),
        "future": np.stack([future for _, future in grids]),
        "height": height,
        "width": width,
    }
    expected = accumulate_by_definition(frames, height, width)
    np.testing.assert_array_equal(accumulate(**arguments), expected)
    for index in range(len(kinds)):  # Each alone needs no other to be requested.
        alone = accumulate(**arguments, frame_indices=[index])
        np.testing.assert_array_equal(alone[0], expected[index])


def test_a_block_with_both_kinds_of_vectors_takes_the_past_even_if_that_stands_still():
    vectors = np.zeros(4, VECTOR_DTYPE)
    vectors["source"] = [-1, 1, 1, 1]
    vectors["w"] = vectors["h"] = 16
    vectors["dst_x"], vectors["dst_y"] = [8, 8, 24, 40], 8
    vectors["src_x"], vectors["src_y"] = [8, 13, 27, 40], 8
    displacements, future = rasterize(vectors, 16, 48, both_ways=True)
    assert displacements[0, :, 0].tolist() == [0, 0, 3, 3, 0, 0]
    assert future[1].tolist() == [False, False, True, True, True, True]


def test_rasterizing_covers_each_block_and_leaves_the_future_out():
    vectors = np.zeros(4, VECTOR_DTYPE)
    vectors["source"] = [-1, -1, 1, -1]
    vectors["w"], vectors["h"] = [16, 8, 16, 16], [8, 16, 16, 16]
    vectors["dst_x"], vectors["dst_y"] = [8, 4, 24, 40], [4, 16, 8, 8]
    vectors["src_x"], vectors["src_y"] = [11, 4, 30, 40], [2, 15, 8, 3]
    grid = rasterize(vectors, 24, 44)[0]
    assert grid.dtype == np.int16
    assert grid.shape == (3, 6, 2)
    expected = np.zeros((3, 6, 2), np.int16)
    expected[0, :2] = 3, -2  # 16 wide, 8 high
    expected[1:, 0] = 0, -1  # 8 wide, 16 high
    expected[:2, 4:] = 0, -5  # reaches over the right edge
    np.testing.assert_array_equal(grid, expected)


def test_a_block_off_the_grid_is_rejected():
    vectors = np.zeros(1, VECTOR_DTYPE)
    vectors["source"], vectors["w"], vectors["h"] = -1, 16, 16
    vectors["dst_x"], vectors["dst_y"], vectors["src_x"] = 10, 8, 3
    with pytest.raises(ValueError, match="8-pixel grid"):
        rasterize(vectors, 32, 32)


STREAMS = {
    "mpeg4.avi": {"codec": "mpeg4"},
    "four_vectors_quarter_pixel.avi": {"codec": "mpeg4", "options": {"flags": "+mv4+qpel"}},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264.mp4": {"codec": "libx264", "options": {"bf": "3", "partitions": "all", "g": "9"}},
    "h264_interlaced.mkv": {"codec": "libx264", "options": {"x264-params": "interlaced=1"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "1"}},
    "mpeg2_interlaced.mpg": {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}},
    "mpeg1.mpg": {"codec": "mpeg1video"},
    "ms.avi": {"codec": "msmpeg4"},
    "sorenson.flv": {"codec": "flv"},
}


def _stream(tmp_path, name) -> pathlib.Path:
    moving = drifting_frames(11, 64, 96, step=(3, 1))
    still = drifting_frames(11, 64, 96, step=(0, 0), seed=1)
    frames = moving.copy()
    frames[:, 16:40, 20:50] = still[:, 16:40, 20:50]
    return write_video(tmp_path / name, frames, **STREAMS[name])


@pytest.mark.parametrize("name", STREAMS)
def test_vectors_are_those_of_a_plain_decode(tmp_path, name):
    # The decoder options that save time do not change them.
    path = _stream(tmp_path, name)
    frames = list(read_motion_vectors(path))
    expected = plain_decode(path)
    assert [f.index for f in frames] == list(range(len(expected)))
    assert [f.picture_type for f in frames] == [kind for kind, _ in expected]
    for frame, (_, vectors) in zip(frames, expected, strict=True):
        assert frame.vectors.dtype == VECTOR_DTYPE
        np.testing.assert_array_equal(frame.vectors, vectors)
    assert sum(len(f.vectors) for f in frames) > 0
    if "b_frames" in name or "h264.mp4" in name:
        assert any((f.vectors["source"] > 0).any() for f in frames)
        assert "B" in {f.picture_type for f in frames}


@pytest.mark.parametrize("name", STREAMS)
def test_accumulated_file_follows_the_definition(tmp_path, name):
    path = _stream(tmp_path, name)
    fields = accumulate_motion(path)
    assert fields.shape == (11, 64, 96, 2)
    np.testing.assert_array_equal(fields, accumulate_by_definition(plain_decode(path), 64, 96))
    assert np.abs(fields).max() > 0


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [("carphone_pristine", 30), ("bikes", 12), ("bigbuckbunny", 3)],
)
def test_accumulated_real_video_follows_the_definition(name, num_frames):
    path = real_clips.path(name)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        height, width = stream.height, stream.width
    fields = accumulate_motion(path, range(num_frames))
    # B-frames need the next reference too.
    expected = accumulate_by_definition(plain_decode(path)[: num_frames + 8], height, width)
    np.testing.assert_array_equal(fields, expected[:num_frames])
    assert np.abs(fields).max() > 0


def test_times_follow_the_frame_rate(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(5), rate=10)
    assert [f.time_s for f in read_motion_vectors(path)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_chosen_frames_come_in_the_requested_order(tmp_path):
    path = _stream(tmp_path, "mpeg4.avi")
    fields = accumulate_motion(path)
    chosen = [7, 0, 7, 3]
    np.testing.assert_array_equal(accumulate_motion(path, chosen), fields[chosen])
    assert accumulate_motion(path, []).shape == (0, 64, 96, 2)


@pytest.mark.parametrize("index", [-1, 11])
def test_a_frame_outside_the_video_is_an_error(tmp_path, index):
    with pytest.raises(IndexError, match=f"frame {index} is outside a video of 11 frames"):
        accumulate_motion(_stream(tmp_path, "mpeg4.avi"), [0, index])


def test_a_codec_without_vectors_is_an_error_and_not_a_field_of_zeros(tmp_path):
    path = write_video(tmp_path / "a.webm", drifting_frames(6), codec="libvpx-vp9")
    assert all(not len(frame.vectors) for frame in read_motion_vectors(path))
    with pytest.raises(VideoError, match="no motion vectors"):
        accumulate_motion(path)


def test_a_stream_of_i_frames_alone_has_no_motion(tmp_path):
    frames = drifting_frames(4)
    path = write_video(tmp_path / "a.avi", frames, codec="mjpeg", pix_fmt="yuvj420p")
    assert not accumulate_motion(path).any()


def test_bad_files_are_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(40), codec="libx264")
    for bad in (tmp_path / "absent.mp4", cut(path, 0.6)):
        with pytest.raises(VideoError, match=bad.name):
            accumulate_motion(bad)
        with pytest.raises(VideoError, match=bad.name):
            list(read_motion_vectors(bad))


def test_a_frame_is_freed_with_its_last_reference(tmp_path):
    """Not only when the garbage collector runs: until then each frame stays in memory."""
    path = write_video(tmp_path / "a.avi", drifting_frames(30))

    def frames_in_memory() -> int:
        return sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = frames_in_memory()
        kept = []
        for frame in decode_frames(path, EXPORT_VECTORS):
            assert frame_orientation(frame) == 0
            kept.append(frame_vectors(frame))
        del frame
        assert frames_in_memory() == before
        assert sum(map(len, kept)) > 100
        reader = BlockMotionReader(path)
        for frame in decode_frames(path, EXPORT_VECTORS):
            reader.add(frame)
        del frame
        assert frames_in_memory() == before
    finally:
        gc.enable()
