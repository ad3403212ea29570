"""The compiled training views of canonical motion, bit for bit those of NumPy and TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from moclip_jax.input_pipeline.datasets.records import (
    clip_from_record,
    pack_displacements,
    unpack_displacements,
)
from moclip_jax.input_pipeline.sampling import Draws
from moclip_jax.input_pipeline.training_kernel import training_view
from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.input_pipeline.views import MotionViews
from moclip_jax.input_pipeline.views import training_view as numpy_view

SIZES = [(16, 16), (64, 96), (48, 66), (30, 340), (256, 340), (72, 520)]


def random_motion(seed, height, width, reach, lengths=(5, 1, 7, 3)):
    """Displacements of groups of these lengths; half of the blocks stand still."""
    rng = np.random.default_rng(seed)
    grid = (sum(lengths), -(-height // 8), -(-width // 8), 2)
    displacements = rng.integers(-reach, reach + 1, grid).astype(np.int16)
    displacements[rng.random(grid[:3]) < 0.5] = 0
    is_intra = np.zeros(grid[0], bool)
    is_intra[np.cumsum((0, *lengths[:-1]))] = True
    displacements[is_intra] = 0
    return displacements, is_intra


def stored(displacements, is_intra):
    """A record's features of motion."""
    return {
        "num_frames": tf.constant(len(is_intra), tf.int64),
        "is_intra": tf.constant(is_intra),
        "displacements": tf.constant(pack_displacements(displacements, is_intra)),
    }


def random_draws(seed, num_segments=3):
    rng = np.random.default_rng(seed)
    return Draws(rng.random(num_segments), rng.integers(0, 2**32, 3, np.uint32), rng.random())


def fixed_draws(place, num_frames):
    """Draw the frames in one part of the video, and the whole field without a flip."""
    segments = (np.array(place) - 0.5) / (num_frames - 2)
    return Draws(segments, np.zeros(3, np.uint32), 0.9)


def as_tensors(draws):
    dtypes = tf.float64, tf.uint32, tf.float32
    return Draws(*(tf.constant(part, dtype) for part, dtype in zip(draws, dtypes, strict=True)))


def by_kernel(example, draws, views, spec):
    view = training_view(example, as_tensors(draws), views, spec)
    assert view.dtype == tf.uint8
    return view.numpy()


def by_numpy(example, draws, views, spec):
    arrays = {name: value.numpy() for name, value in example.items()}
    return numpy_view(
        clip_from_record(arrays, spec, range(len(arrays["is_intra"]))), draws, views, spec
    )


def to_bytes(motion, bound):
    """Scale value by value, by Python's `int`."""
    of = {v: min(max(int(v * 127.5 / bound) + 128, 0), 255) for v in np.unique(motion).tolist()}
    return np.vectorize(of.get)(motion).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("reach", [6, 400])
def test_views_equal_those_of_numpy(height, width, reach):
    """Every scale, any place and both flips; random frames, I-frames and the last among them."""
    spec = VideoSpec(height=height, width=width, gop_size=8)
    views = MotionViews(image_size=16, resize_size=256, scales=(1.0, 0.875, 0.75, 0.3))
    example = stored(*random_motion(height, height, width, reach))
    moves = []
    for seed in range(12):
        draws = random_draws(seed)
        ours = by_kernel(example, draws, views, spec)
        moves.append((ours[..., 1] != 128).any())
        np.testing.assert_array_equal(ours, by_numpy(example, draws, views, spec))
    assert any(moves) or reach > max(height, width)  # Nothing moves where all steps lead outside.


@pytest.mark.parametrize("bound", [20.0, 7.0, 33.3])
def test_bytes_equal_the_scaling_of_every_motion(bound):
    """At the size of the field itself, where nothing is resized."""
    spec = VideoSpec(height=256, width=256, gop_size=2)
    views = MotionViews(num_segments=1, image_size=256, scales=(1.0,), bound=bound)
    displacements = np.zeros((2, 32, 32, 2), np.int16)
    displacements[1, ..., 0].flat = np.arange(1024) * 5 % 161 - 80
    displacements[1, ..., 1].flat = np.arange(1024) % 17 - 8
    is_intra = np.array([True, False])
    expected = to_bytes(accumulate(displacements, is_intra, 256, 256, [1]), bound)
    assert len(np.unique(expected)) > 2 * bound  # every whole pixel up to the bound
    draws = Draws(np.array([0.5]), np.zeros(3, np.uint32), 0.9)
    ours = by_kernel(stored(displacements, is_intra), draws, views, spec)
    np.testing.assert_array_equal(ours, expected)


def test_motion_of_a_frame_alone():
    spec = VideoSpec(height=64, width=64, gop_size=8)
    displacements, is_intra = random_motion(3, 64, 64, 20)
    views = MotionViews(num_segments=1, image_size=64, scales=(1.0,), accumulated=False)
    example = stored(displacements, is_intra)
    for frame in (1, 2, 4, 9, 10):
        alone = accumulate(displacements[frame : frame + 1], np.array([False]), 64, 64)
        draws = fixed_draws([frame], len(is_intra))
        ours = by_kernel(example, draws, views, spec)
        np.testing.assert_array_equal(ours, to_bytes(alone, 20.0))
        np.testing.assert_array_equal(ours, by_numpy(example, draws, views, spec))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (48, 66), (256, 340)])
def test_crops_equal_those_of_the_whole_field_resized_by_tensorflow(height, width):
    """Bit for bit: every side, places, flips, for which both sides' kernels must round alike."""
    spec = VideoSpec(height=height, width=width, gop_size=8)
    displacements, is_intra = random_motion(5, height, width, 30)
    size, scales = 56, (1.0, 0.875, 0.75, 0.6)
    views = MotionViews(num_segments=1, image_size=size, resize_size=256, scales=scales)
    example = stored(displacements, is_intra)
    drawn = set()
    for number in range(48):
        _, crop, flip = random_draws(number)
        frame = (3, 12, 14)[number % 3]
        draws = fixed_draws([frame], len(is_intra))._replace(crop=crop, flip=flip)
        field = to_bytes(accumulate(displacements, is_intra, height, width, [frame]), 20.0)
        side = round(size / scales[crop[0] % 4])
        top, left = (crop[1:] % (side - size + 1)).tolist()
        resized = tf.image.resize(field, [side, side], "bilinear", antialias=False)
        expected = tf.saturate_cast(tf.round(resized), tf.uint8).numpy()
        expected = expected[:, top : top + size, left : left + size]
        if flip < 0.5:
            expected = expected[:, :, ::-1].copy()
            expected[..., 0] = 255 - expected[..., 0]
        drawn.add((side, flip < 0.5))
        np.testing.assert_array_equal(by_kernel(example, draws, views, spec), expected)
        np.testing.assert_array_equal(by_numpy(example, draws, views, spec), expected)
    assert len(drawn) == 2 * len(scales)


def test_only_groups_that_are_needed_are_unpacked():
    spec = VideoSpec(height=48, width=64, gop_size=8)
    displacements, is_intra = random_motion(6, 48, 64, 20)
    views = MotionViews(num_segments=1, image_size=32)
    whole, draws = stored(displacements, is_intra), fixed_draws([8], len(is_intra))
    packed = whole["displacements"].numpy().tolist()
    part = whole | {"displacements": tf.constant([b"", b"no zlib", packed[2], b""])}
    expected = by_kernel(whole, draws, views, spec)
    np.testing.assert_array_equal(by_kernel(part, draws, views, spec), expected)
    arrays = {name: value.numpy() for name, value in part.items()}
    view = numpy_view(clip_from_record(arrays, spec, [8]), draws, views, spec)
    np.testing.assert_array_equal(view, expected)


def test_packed_motion_comes_back_whatever_its_size():
    displacements = np.zeros((4, 3, 5, 2), np.int16)
    displacements[1].flat = np.linspace(-32768, 32767, 30)
    displacements[3].flat = np.arange(-15, 15) * 9
    for starts in ([0], [0, 1], [0, 2, 3], []):
        is_intra = np.isin(np.arange(4), starts)
        packed = pack_displacements(displacements, is_intra)
        assert len(packed) == max(len(starts), 1)
        unpacked = unpack_displacements(packed, (3, 5))
        np.testing.assert_array_equal(unpacked, displacements)
        assert unpacked.dtype == tf.int16


def test_a_group_longer_than_the_canonical_form_allows_is_an_error():
    spec = VideoSpec(height=48, width=64, gop_size=4)
    displacements, is_intra = random_motion(7, 48, 64, 20)
    views, draws = MotionViews(num_segments=1, image_size=32), fixed_draws([12], len(is_intra))
    example = stored(displacements, is_intra)
    make = tf.function(lambda: training_view(example, as_tensors(draws), views, spec))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"longer than VideoSpec\.gop_size"):
        make()
