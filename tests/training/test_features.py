"""Extraction holds a file's worth of features and a few batches, however many videos there are."""

import weakref

import numpy as np
import pytest

from moclip_jax.configs import testing
from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training import features, pipeline
from moclip_jax.training.stages import StageRecord

FEATURES = 4


class CountedArrays:
    """Makes arrays and knows how many bytes of them are alive."""

    def __init__(self):
        self.alive = self.most = 0

    def __call__(self, shape, dtype):
        array = np.zeros(shape, dtype)
        self.alive += array.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self._freed, array.nbytes)
        return array

    def _freed(self, size):
        self.alive -= size


def extract(monkeypatch, directory, num_videos, batch_size):
    """Runs the stage over batches that are made one at a time; returns the counter."""
    made = CountedArrays()

    class Batches:
        def __init__(self, first):
            self.first = first

        def as_numpy_iterator(self):
            for start in range(self.first * batch_size, num_videos, batch_size):
                index = np.arange(start, start + batch_size, dtype=np.int32)
                yield {
                    "motion": made((batch_size, 1, 3, 8, 8, 2), np.uint8),
                    "images": made((batch_size, 1, 8, 8, 3), np.uint8),
                    "label": index,
                    "index": index,
                    "mask": index < num_videos,
                }

    def make_step(*_):
        def step(batch):
            rows = len(batch["label"])
            local = {name: batch[name] for name in ("label", "index", "mask")}
            return local | {
                "motion": made((rows, 1, 3, FEATURES), np.float32),
                "appearance": made((rows, 1, FEATURES), np.float32),
            }

        return step

    class Clip:
        class config:
            image_size = 8
            preprocessing = DEFAULT_PREPROCESSING

    monkeypatch.setattr(features, "make_extract_step", make_step)
    monkeypatch.setattr(
        features, "view_batches", lambda *_, first_batch, **__: Batches(first_batch)
    )
    config = testing.get_config()
    config.features.batch_size = batch_size
    names = [f"video {number}" for number in range(num_videos)]
    splits = {"train": names, "validation": [], "test": []}
    features.extract_features(config, None, splits, None, Clip, make_mesh(), directory)
    return made


def test_memory_does_not_grow_with_the_data_set(monkeypatch, tmp_path):
    most = {}
    for num_videos in (512, 2048, 8192):
        made = extract(monkeypatch, tmp_path / str(num_videos), num_videos, 64)
        most[num_videos] = made.most
        assert made.alive == 0
    assert most[512] == most[2048] == most[8192]


def test_what_was_extracted_with_one_batch_size_is_gone_on_from_with_another(monkeypatch, tmp_path):
    extract(monkeypatch, tmp_path, 700, 64)
    (tmp_path / "train" / "000512.npz").unlink()
    extract(monkeypatch, tmp_path, 700, 16)
    loaded = features.load_features(tmp_path, "train", 700)
    np.testing.assert_array_equal(loaded.label, np.arange(700))


def test_features_of_missing_videos_are_an_error(monkeypatch, tmp_path):
    extract(monkeypatch, tmp_path, 700, 64)
    (tmp_path / "train" / "000256.npz").unlink()
    with pytest.raises(ValueError, match="444 of 700"):
        features.load_features(tmp_path, "train", 700)


def test_averages_are_those_of_the_stored_views_segments_and_frames(tmp_path):
    rng = np.random.default_rng(0)
    motion = rng.normal(size=(5, 3, 8, FEATURES)).astype(np.float32)
    appearance = rng.normal(size=(5, 2, FEATURES)).astype(np.float32)
    (tmp_path / "test").mkdir()
    for rows in (slice(0, 3), slice(3, 5)):
        np.savez(
            tmp_path / "test" / f"{rows.start:06d}.npz",
            motion=motion[rows],
            appearance=appearance[rows],
            label=np.arange(5)[rows],
            index=np.arange(5)[rows],
        )
    whole = features.load_features(tmp_path, "test", 5)
    np.testing.assert_array_equal(whole.motion, motion)
    np.testing.assert_array_equal(whole.appearance, appearance)
    averaged = features.load_features(tmp_path, "test", 5, each_view=False, each_segment=False)
    expected = motion.astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(averaged.motion[:, 0], expected, atol=1e-6)
    expected = appearance.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(averaged.appearance, expected, atol=1e-6)


def test_features_of_earlier_versions_which_were_averages_are_refused(tmp_path):
    settings = pipeline.stage_settings(testing.get_config())["features"]
    old = settings | {"features": {"train_views": 2, "motion_dtype": "float32"}}
    record = StageRecord(tmp_path, "features", old)
    record.begin()
    with pytest.raises(ValueError, match=r"features.stored: was '\(not set\)', is 'each segment"):
        StageRecord(tmp_path, "features", settings).is_done()
