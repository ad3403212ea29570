"""Compiled accumulation and storage of canonical motion, against NumPy's and TensorFlow's ways."""

import numpy as np
import pytest
import tensorflow as tf
from moclip_jax.input_pipeline import accumulation, augment
from moclip_jax.input_pipeline.datasets.records import pack_displacements, unpack_displacements
from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.clip import VideoSpec

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


def both_forms(displacements, is_intra):
    """As a video gives it, and as a record does."""
    plain = {"displacements": tf.constant(displacements), "is_intra": tf.constant(is_intra)}
    return plain, plain | {
        "displacements": tf.constant(pack_displacements(displacements, is_intra))
    }


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("reach", [6, 400])
def test_fields_equal_numpys_accumulation_scaled(height, width, reach):
    spec = VideoSpec(height=height, width=width, gop_size=8)
    displacements, is_intra = random_motion(height, height, width, reach)
    indices = np.array([0, 4, 5, 12, 7, 15, 4], np.int32)
    expected = augment.scale_to_uint8(accumulate(displacements, is_intra, height, width, indices))
    for example in both_forms(displacements, is_intra):
        motion = accumulation.motion_to_frames(example, tf.constant(indices), spec, True)
        np.testing.assert_array_equal(accumulation.fields(*motion, spec, 20.0), expected)


@pytest.mark.parametrize("bound", [20.0, 7.0, 33.3])
def test_bytes_equal_the_scaling_of_every_motion(bound):
    # A block for each motion that fits into the picture: x and y, to both sides.
    spec = VideoSpec(height=32, width=3200, gop_size=2)
    displacements = np.zeros((2, 4, 400, 2), np.int16)
    displacements[1, :, :, 0] = np.arange(-200, 200)
    displacements[1, :, :, 1] = np.arange(400) % 17 - 8
    is_intra = np.array([True, False])
    expected = augment.scale_to_uint8(accumulate(displacements, is_intra, 32, 3200, [1]), bound)
    assert len(np.unique(expected)) > 2 * bound  # every whole pixel up to the bound
    for example in both_forms(displacements, is_intra):
        motion = accumulation.motion_to_frames(example, tf.constant([1]), spec, True)
        np.testing.assert_array_equal(accumulation.fields(*motion, spec, bound), expected)


def test_motion_of_a_frame_alone():
    spec = VideoSpec(height=48, width=64, gop_size=8)
    displacements, is_intra = random_motion(3, 48, 64, 20)
    indices = [1, 4, 0, 9]
    alone = [accumulate(displacements[i : i + 1], np.array([False]), 48, 64)[0] for i in indices]
    for example in both_forms(displacements, is_intra):
        motion = accumulation.motion_to_frames(example, tf.constant(indices), spec, False)
        expected = augment.scale_to_uint8(np.stack(alone))
        np.testing.assert_array_equal(accumulation.fields(*motion, spec, 20.0), expected)


def test_a_stream_taken_up_between_two_i_frames_begins_at_its_first_frame():
    spec = VideoSpec(height=48, width=64, gop_size=8)
    displacements, is_intra = (part[2:] for part in random_motion(4, 48, 64, 20))
    indices = tf.constant([0, 2, 5])
    expected = augment.scale_to_uint8(accumulate(displacements, is_intra, 48, 64, indices.numpy()))
    example, _ = both_forms(displacements, is_intra)
    motion = accumulation.motion_to_frames(example, indices, spec, True)
    np.testing.assert_array_equal(accumulation.fields(*motion, spec, 20.0), expected)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (48, 66), (256, 340)])
def test_crops_equal_those_of_the_whole_field_resized_by_tensorflow(height, width):
    """Bit for bit: every side, places, flips, for which both sides' kernels must round alike."""
    spec = VideoSpec(height=height, width=width, gop_size=8)
    displacements, is_intra = random_motion(5, height, width, 30)
    size, scales = 56, (1.0, 0.875, 0.75, 0.6)
    sides = augment.crop_sides(size, scales)
    indices = tf.constant([3, 12, 15])
    plain, packed = both_forms(displacements, is_intra)
    fields = accumulation.fields(
        *accumulation.motion_to_frames(plain, indices, spec, True), spec, 20.0
    )
    drawn = set()
    for number in range(24):
        crop = augment.random_crop(size, scales, 0.5, tf.constant([7, number]))
        drawn.add((int(crop.choice), bool(crop.flip)))
        motion = accumulation.motion_to_frames(packed, indices, spec, True)
        ours = accumulation.cropped_fields(*motion, spec, 20.0, size=size, sides=sides, crop=crop)
        np.testing.assert_array_equal(ours, augment.crop_flip(fields, size, sides, crop))
    assert len(drawn) == 2 * len(scales)


def test_only_groups_that_are_needed_are_unpacked():
    spec = VideoSpec(height=48, width=64, gop_size=8)
    displacements, is_intra = random_motion(6, 48, 64, 20)
    whole = pack_displacements(displacements, is_intra)
    example = {"is_intra": tf.constant(is_intra)}
    fields = []
    for packed in (whole, [b"", whole[1], whole[2], b"no zlib"]):
        example["displacements"] = tf.constant(packed)
        motion = accumulation.motion_to_frames(example, tf.constant([5, 8, 12]), spec, True)
        fields.append(accumulation.fields(*motion, spec, 20.0).numpy())
    np.testing.assert_array_equal(*fields)


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
    example, _ = both_forms(*random_motion(7, 48, 64, 20))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"longer than VideoSpec\.gop_size"):
        accumulation.motion_to_frames(example, tf.constant([12]), spec, True)
