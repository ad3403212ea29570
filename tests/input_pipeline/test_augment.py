"""What the networks see, against NumPy, Pillow and the plain-Python definitions."""

import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
from moclip_jax.input_pipeline import augment
from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from PIL import Image

from tests.input_pipeline import real_clips


def random_motion(
    seed: int, num_frames: int, height: int, width: int, reach: int = 30, still: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = (num_frames, -(-height // 8), -(-width // 8))
    displacements = rng.integers(-reach, reach + 1, (*grid, 2)).astype(np.int16)
    displacements[rng.random(grid) < still] = 0
    is_intra = np.arange(num_frames) % 12 == 0
    displacements[is_intra] = 0
    return displacements, is_intra


def resize_by_definition(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, no antialias: output centre (i + .5) * n / side - .5, clamped to the picture."""

    def taps(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(side) + 0.5) * n / side - 0.5
        low = np.floor(at)
        return (
            np.clip(low, 0, n - 1).astype(int),
            np.clip(low + 1, 0, n - 1).astype(int),
            at - low,
        )

    top, bottom, wy = taps(image.shape[0])
    left, right, wx = taps(image.shape[1])
    image = image.astype(np.float64)
    rows = image[top] * (1 - wy)[:, None, None] + image[bottom] * wy[:, None, None]
    return rows[:, left] * (1 - wx)[:, None] + rows[:, right] * wx[:, None]


def flip_by_definition(fields: np.ndarray) -> np.ndarray:
    flipped = fields[..., ::-1, :].copy()
    flipped[..., 0] = 255 - flipped[..., 0]
    return flipped


@pytest.mark.parametrize(
    ("height", "width", "reach", "still"),
    [(64, 96, 30, 0.6), (37, 51, 30, 0.6), (40, 340, 8, 0.0), (16, 16, 200, 0.3), (24, 24, 0, 1.0)],
)
def test_following_blocks_from_frame_to_frame_equals_the_numpy_accumulation(
    height, width, reach, still
):
    displacements, is_intra = random_motion(height, 30, height, width, reach, still)
    expected = accumulate(displacements, is_intra, height, width)
    function = tf.function(augment.follow_blocks, autograph=False)
    for follow_blocks in (augment.follow_blocks, function):
        at_rest = augment.origins_at_rest(height, width)
        origins = [at_rest]
        for frame in range(1, 30):
            step = tf.constant(displacements[frame : frame + 1])
            moved = at_rest if is_intra[frame] else follow_blocks(origins[-1], step, height, width)
            origins.append(moved)
        for frame, begin in ((11, 1), (23, 13), (29, 26), (20, 21)):  # The last makes no step.
            steps = tf.constant(displacements[begin : frame + 1])
            at_once = follow_blocks(origins[begin - 1], steps, height, width)
            np.testing.assert_array_equal(at_once, origins[frame])
        for frame in range(30):
            field = augment.motion_of_origins(origins[frame], height, width)
            assert field.dtype == tf.int32
            np.testing.assert_array_equal(field, expected[frame])


@pytest.mark.parametrize("bound", [20.0, 8.0, 33.0])
def test_scaling_equals_python_at_every_value(bound):
    values = np.arange(-2000, 2001, dtype=np.int32)
    expected = [min(max(int(v * 127.5 / bound) + 128, 0), 255) for v in values.tolist()]
    function = tf.function(lambda v: augment.scale_to_uint8(v, bound), autograph=False)
    for scale in (lambda v: augment.scale_to_uint8(v, bound), function):
        scaled = scale(tf.constant(values))
        assert scaled.dtype == tf.uint8
        assert scaled.numpy().tolist() == expected


def test_no_motion_is_128():
    assert augment.scale_to_uint8(tf.zeros([3], tf.int32)).numpy().tolist() == [128] * 3


def test_centre_crop_of_the_resized_square():
    fields = np.random.default_rng(0).integers(0, 256, (2, 40, 53, 2)).astype(np.uint8)
    crops = augment.center_crop(tf.constant(fields), 32, 28)
    assert crops.dtype == tf.uint8
    for crop, field in zip(crops.numpy(), fields, strict=True):
        expected = resize_by_definition(field, 32)[2:30, 2:30]
        assert np.abs(crop - expected).max() <= 0.5 + 1e-3


def test_ten_crops_are_corners_and_centre_and_their_mirror_images():
    fields = np.random.default_rng(1).integers(0, 256, (2, 40, 53, 2)).astype(np.uint8)
    crops = augment.ten_crops(tf.constant(fields), 32, 28).numpy()
    assert crops.shape == (10, 2, 28, 28, 2)
    resized = np.stack([resize_by_definition(field, 32) for field in fields])
    for crop, (top, left) in zip(crops, [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)], strict=False):
        expected = resized[:, top : top + 28, left : left + 28]
        assert np.abs(crop - expected).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(crops[5:], flip_by_definition(crops[:5]))
    np.testing.assert_array_equal(crops[4], augment.center_crop(tf.constant(fields), 32, 28))


def test_flip_turns_the_sign_of_sideways_motion():
    motion = np.zeros((1, 8, 8, 2), np.int32)
    motion[..., 0], motion[..., 1] = 5, -7
    fields = augment.scale_to_uint8(tf.constant(motion))
    flipped = augment.random_crop_flip(fields, 8, (1.0,), 1.0, tf.constant([0, 0])).numpy()
    x, y = int(flipped[0, 0, 0, 0]), int(flipped[0, 0, 0, 1])
    assert abs((x - 127.5) * 20 / 127.5 + 5) < 0.2
    assert abs((y - 127.5) * 20 / 127.5 - -7) < 0.2


def test_random_views_are_all_the_crops_and_nothing_else():
    fields = np.random.default_rng(2).integers(0, 256, (3, 20, 26, 2)).astype(np.uint8)
    scales = (1.0, 0.875, 0.75)
    candidates = {}
    for scale in scales:
        side = round(8 / scale)
        resized = np.stack([resize_by_definition(field, side) for field in fields])
        for top in range(side - 8 + 1):
            for left in range(side - 8 + 1):
                crop = resized[:, top : top + 8, left : left + 8]
                candidates[side, top, left, False] = crop
                candidates[side, top, left, True] = flip_by_definition(crop)
    assert len(candidates) == 2 * (1 + 4 + 16)
    names = list(candidates)
    stacked = np.stack([candidates[name] for name in names])
    function = tf.function(
        lambda seed: augment.random_crop_flip(tf.constant(fields), 8, scales, 0.5, seed)
    )
    counts = dict.fromkeys(names, 0)
    draws = 600
    for seed in range(draws):
        view = function(tf.constant([seed, 0])).numpy()
        # All segments together match one candidate, so they share scale, place and flip.
        errors = np.abs(view - stacked).max(axis=(1, 2, 3, 4))
        assert errors.min() <= 0.5 + 1e-3
        counts[names[int(np.argmin(errors))]] += 1
    assert all(counts.values())
    for side in (8, 9, 11):
        share = sum(c for name, c in counts.items() if name[0] == side) / draws
        assert abs(share - 1 / 3) < 0.08
    assert abs(sum(c for name, c in counts.items() if name[3]) / draws - 0.5) < 0.08


def test_random_views_are_a_function_of_the_seed():
    fields = tf.constant(np.random.default_rng(3).integers(0, 256, (3, 20, 26, 2)).astype(np.uint8))
    one = augment.random_crop_flip(fields, 8, (1.0, 0.75), 0.5, tf.constant([4, 7]))
    two = augment.random_crop_flip(fields, 8, (1.0, 0.75), 0.5, tf.constant([4, 7]))
    np.testing.assert_array_equal(one, two)


def pillow_clip_image(jpeg: bytes, size: int) -> np.ndarray:
    """Resize and centre crop as CLIP's preprocessing does them, by Pillow."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    shorter, longer = min(image.size), max(image.size)
    other = int(size * longer / shorter)
    target = (size, other) if image.width <= image.height else (other, size)
    resized = image.resize(target, Image.Resampling.BILINEAR)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def check_clip_image(jpeg: bytes, size: int) -> None:
    result = augment.clip_image(tf.constant(jpeg), size)
    assert result.dtype == tf.uint8
    assert result.shape == (size, size, 3)
    difference = np.abs(result.numpy().astype(int) - pillow_clip_image(jpeg, size))
    assert difference.max() <= 1
    assert difference.mean() < 0.05


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (64, 64), (101, 57), (40, 30)])
def test_clip_image_equals_pillow(size):
    rng = np.random.default_rng(size[0])
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    check_clip_image(buffer.getvalue(), 32)


@pytest.mark.parametrize("name", real_clips.NAMES)
def test_clip_image_of_real_frames_equals_pillow(name):
    """Frames as the pipeline stores them, at CLIP's own size."""
    spec = VideoSpec(width=64, height=48, clip_frames=3, frame_size=256)
    for jpeg in read_clip(real_clips.path(name), spec).frames:
        check_clip_image(jpeg, 224)


@pytest.mark.parametrize("name", real_clips.NAMES)
@pytest.mark.parametrize("side", [224, 256, 299])
def test_resize_of_real_fields_equals_opencv(name, side):
    """At the sides of the recipe: 224 and 299 in training, 256 in testing."""
    spec = VideoSpec(max_frames=1000)
    prepared = read_clip(real_clips.path(name), spec)
    motion = accumulate(prepared.displacements, prepared.is_intra, spec.height, spec.width, [11])
    field = augment.scale_to_uint8(tf.constant(motion))
    assert np.ptp(field) > 20
    ours = augment.center_crop(field, side, side)[0].numpy().astype(int)
    theirs = cv2.resize(field[0].numpy(), (side, side), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours - theirs).max() <= 1
