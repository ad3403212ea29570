"""The threshold below which a video is none of the classes keeps the share of videos it says."""

import json

import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.training.features import Features
from moclip_jax.training.rejection import (
    KEPT,
    read_rejection,
    rejection_threshold,
    write_rejection,
)
from moclip_jax.training.ridge import fit_ridge_head


@pytest.mark.parametrize("videos", [1, 7, 19, 20, 100, 1000])
def test_the_share_of_held_out_videos_is_kept_and_the_threshold_is_the_highest_such(videos):
    logits = 3 * np.random.default_rng(videos).standard_normal((videos, 5))
    odds = np.exp(logits)
    confidence = (odds / odds.sum(1, keepdims=True)).max(1)
    threshold = rejection_threshold(logits)
    assert (confidence >= threshold - 1e-12).mean() >= KEPT
    above = confidence[confidence > threshold + 1e-12]
    # Any higher one that a video has would keep fewer.
    assert not len(above) or (confidence >= above.min()).mean() < KEPT + 1 / videos


def test_without_held_out_videos_there_is_no_threshold(tmp_path):
    write_rejection(tmp_path, np.zeros((0, 5)))
    assert read_rejection(tmp_path) == 0.0 and not list(tmp_path.iterdir())
    write_rejection(tmp_path, np.zeros((3, 5)))
    assert read_rejection(tmp_path) == pytest.approx(0.2)
    assert json.loads((tmp_path / "rejection.json").read_text())["videos"] == 3


def test_held_out_logits_of_the_ridge_head_are_of_heads_that_never_saw_the_group():
    """A group of labels drawn at random is not fitted, however often the other groups are."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    groups = [f"g{number % 5}" for number in range(300)]
    # A mark of the video itself, by which a head that had seen it would know its label.
    own = np.eye(300)[np.arange(300)].astype(np.float32)
    train = Features(own[:, None], own, labels.astype(np.int32))
    config = FusionConfig(motion_features=300, appearance_features=300, hidden=0, num_classes=3)
    head = FusionHead(config, rngs=nnx.Rngs(0))
    _, heldout = fit_ridge_head(head, train, groups)
    assert heldout.shape == (300, 3)
    assert (heldout.argmax(1) == labels).mean() < 0.5
    fitted = np.asarray(head(own, own))
    assert (fitted.argmax(1) == labels).mean() > 0.95
