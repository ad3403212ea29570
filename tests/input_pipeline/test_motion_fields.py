"""Fields and frames as the networks see them, against TensorFlow, OpenCV, Pillow and Python."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.input_pipeline.motion_fields import (
    Crop,
    CropResizer,
    flip_sign,
    scale_to_uint8,
    ten_crops,
)
from moclip_jax.input_pipeline.sampling import Draws
from moclip_jax.input_pipeline.video.accumulate import accumulate
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.views import MotionViews, training_crop
from tests.input_pipeline import real_clips

SIZE = 64, 96
SPEC = VideoSpec(height=64, width=96)


def resize_by_definition(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, no antialias: output centre (i + .5) * n / side - .5, clamped to the frame."""

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


def resize(field: np.ndarray, crop: Crop) -> np.ndarray:
    crops = CropResizer(*field.shape[:2], crop)(field)
    assert crops.dtype == np.uint8
    return crops


@pytest.mark.parametrize("bound", [20.0, 8.0, 33.0])
def test_scaling_equals_python_at_every_value(bound):
    values = np.arange(-2000, 2001, dtype=np.int32)
    expected = [min(max(int(v * 127.5 / bound) + 128, 0), 255) for v in values.tolist()]
    scaled = scale_to_uint8(np.stack([values, values[::-1]], 1), SIZE, SPEC, bound)
    assert scaled.dtype == np.uint8
    assert scaled[:, 0].tolist() == expected
    assert scaled[:, 1].tolist() == expected[::-1]


def test_no_motion_is_128():
    assert scale_to_uint8(np.zeros([3, 2], np.int32), SIZE, SPEC, 20.0).tolist() == [[128] * 2] * 3


def test_centre_crop_of_the_resized_square():
    fields = np.random.default_rng(0).integers(0, 256, (2, 40, 53, 2)).astype(np.uint8)
    for field in fields:
        expected = resize_by_definition(field, 32)[2:30, 2:30]
        assert np.abs(resize(field, Crop(32, 2, 2, 28)) - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("height", "width"), [(256, 340), (240, 320), (1080, 1920), (100, 77)])
@pytest.mark.parametrize("side", [224, 256, 299])
def test_random_bytes_of_real_sizes_are_resized_as_tensorflow_does(height, width, side):
    """Bit for bit."""
    field = np.random.default_rng(0).integers(0, 256, (height, width, 2), np.uint8)
    expected = tf.image.resize(field, [side, side], "bilinear", antialias=False)
    expected = tf.saturate_cast(tf.round(expected), tf.uint8).numpy()
    np.testing.assert_array_equal(resize(field, Crop(side, 0, 0, side)), expected)
    cut = expected[side - 224 :, (side - 224) // 2 :][:, :224]
    crop = Crop(side, side - 224, (side - 224) // 2, 224)
    np.testing.assert_array_equal(resize(field, crop), cut)
    flipped = CropResizer(height, width, dataclasses.replace(crop, flip=True))(field)
    np.testing.assert_array_equal(flipped, flip_by_definition(cut))


def test_ten_crops_are_corners_and_centre_and_their_mirror_images():
    fields = np.random.default_rng(1).integers(0, 256, (2, 40, 53, 2)).astype(np.uint8)
    whole = np.stack([resize(field, Crop(32, 0, 0, 32)) for field in fields])
    crops = ten_crops(whole, 28)
    assert crops.shape == (10, 2, 28, 28, 2)
    resized = np.stack([resize_by_definition(field, 32) for field in fields])
    for crop, (top, left) in zip(crops, [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)], strict=False):
        expected = resized[:, top : top + 28, left : left + 28]
        assert np.abs(crop - expected).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(crops[5:], flip_by_definition(crops[:5]))
    np.testing.assert_array_equal(
        crops[4], np.stack([resize(field, Crop(32, 2, 2, 28)) for field in fields])
    )


def test_flip_turns_the_sign_of_sideways_motion():
    motion = np.zeros((8, 8, 2), np.int32)
    motion[..., 0], motion[..., 1] = 5, -7
    fields = scale_to_uint8(motion, SIZE, SPEC, 20.0)
    for flipped in (flip_sign(fields), CropResizer(8, 8, Crop(8, 0, 0, 8, flip=True))(fields)):
        x, y = int(flipped[0, 0, 0]), int(flipped[0, 0, 1])
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
    views = MotionViews(image_size=8, resize_size=8, scales=scales)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(names, 0)
    draws = 600
    for flip in rng.random(draws, np.float32):
        numbers = Draws(rng.random(3), rng.integers(0, 2**32, 3, np.uint32), flip)
        resizer = CropResizer(20, 26, training_crop(numbers, views))
        view = np.stack([resizer(field) for field in fields])
        # All segments together match one candidate, so they share scale, place and flip.
        errors = np.abs(view - stacked).max(axis=(1, 2, 3, 4))
        assert errors.min() <= 0.5 + 1e-3
        counts[names[int(np.argmin(errors))]] += 1
    assert all(counts.values())
    for side in (8, 9, 11):
        share = sum(c for name, c in counts.items() if name[0] == side) / draws
        assert abs(share - 1 / 3) < 0.08
    assert abs(sum(c for name, c in counts.items() if name[3]) / draws - 0.5) < 0.08


def pillow_clip_image(jpeg: bytes, size: int) -> np.ndarray:
    """Resize and centre crop as CLIP's preprocessing does them, by Pillow."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    shorter, longer = min(image.size), max(image.size)
    other = int(size * longer / shorter)
    target = (size, other) if image.width <= image.height else (other, size)
    resized = image.resize(target, Image.Resampling.BILINEAR)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def tensorflow_clip_image(jpeg: bytes, size: int) -> np.ndarray:
    """The same by TensorFlow: columns first, then rows, each rounded to bytes, as Pillow does."""
    image = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    height, width = (size * side // min(image.shape[:2]) for side in image.shape[:2])
    for sides in ([image.shape[0], width], [height, width]):
        resized = tf.image.resize(image, sides, "bilinear", antialias=True)
        image = tf.cast(tf.floor(resized + 0.5), tf.uint8)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size].numpy()


def check_clip_image(jpeg: bytes, size: int) -> None:
    result = clip_image(jpeg, size)
    assert result.dtype == np.uint8
    assert result.shape == (size, size, 3)
    np.testing.assert_array_equal(result, pillow_clip_image(jpeg, size))
    difference = np.abs(result.astype(int) - tensorflow_clip_image(jpeg, size))
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
    field = scale_to_uint8(motion[0], (spec.height, spec.width), spec, 20.0)
    assert np.ptp(field) > 20
    ours = resize(field, Crop(side, 0, 0, side)).astype(int)
    theirs = cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours - theirs).max() <= 1
