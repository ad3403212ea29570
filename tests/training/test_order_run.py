"""Whole runs with heads that see the order, from training to what is exported."""

import json

import numpy as np
import pytest
from flax import nnx

import moclip_jax
from moclip_jax.configs import demo_order, testing
from moclip_jax.input_pipeline.datasets.shapes import render_clip
from moclip_jax.input_pipeline.video.clip import clip_from_frames
from moclip_jax.models.evl import EVLHead
from moclip_jax.models.temporal import AttentionHead
from moclip_jax.training import pipeline
from moclip_jax.training.evaluate import fused_logits, motion_logits
from moclip_jax.training.features import load_features


def check_predict(recognizer):
    """Predictions are those of the model's parts; returns the view of a clip."""
    frames = render_clip(
        "star", "rising", group_seed=1, clip_seed=1, num_frames=8, height=128, width=128
    )
    clip = clip_from_frames(frames, recognizer.video, 25.0)
    view = recognizer.view(clip)
    # One program, where every operation by itself would be another.
    model = nnx.jit(lambda model, motion, images: model(motion, images))
    logits = np.asarray(model(recognizer.model, view["motion"], view["images"])[0])
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    np.testing.assert_allclose(recognizer.probabilities(view), expected, atol=1e-5)
    return view


@pytest.mark.usefixtures("without_report")
def test_heads_that_see_the_order_predict_as_they_were_evaluated(tmp_path):
    config = testing.get_config()
    config.motion.head, config.fusion.head = "temporal", "attention"
    config.fusion.hidden = 32
    config.video.clip_frames, config.clip.frame = 2, "uniform_2"
    # As many segments as neither training nor evaluation has.
    config.predict.num_segments = 5
    results = pipeline.run(config, tmp_path)
    assert results is not None
    rows = results["rows"]
    assert rows["motion"]["protocol"] == "3 segments x 1 crops, temporal head"
    assert rows["fusion"]["protocol"] == "3 segments x 1 crops + uniform_2, attention head"
    backbone = rows["motion"]["gflops_per_view"]["motion"] * 3
    assert backbone < rows["motion"]["gflops"] < 1.1 * backbone

    recognizer = moclip_jax.load(tmp_path)
    model = recognizer.model
    assert isinstance(model.head, AttentionHead) and model.motion.temporal is not None
    scores = np.load(tmp_path / "evaluate" / "scores.npz")
    features = load_features(tmp_path / "features", "test", 36, each_view=False)
    assert features.motion.shape[1:3] == (1, 3) and features.appearance.shape[1] == 2
    np.testing.assert_allclose(fused_logits(model.head, features), scores["fusion"], atol=1e-5)
    np.testing.assert_allclose(
        motion_logits(model.motion, features.motion), scores["motion"], atol=1e-5
    )

    view = check_predict(recognizer)
    assert view["motion"].shape[2] == 5 and view["images"].shape[1] == 2


@pytest.mark.usefixtures("without_report")
def test_evl_reads_stored_tokens_as_predict_computes_them(finished_run, tmp_path):
    config = testing.get_config()
    config.fusion.head, config.fusion.hidden, config.fusion.token_layers = "evl", 32, 2
    for stage in ("prepare", "motion", "data"):
        (tmp_path / stage).symlink_to(finished_run / stage)
    results = pipeline.run(config, tmp_path)
    assert results is not None
    rows = results["rows"]
    assert rows["fusion"]["protocol"].endswith("evl head")
    assert rows["fusion"]["gflops"] > rows["motion"]["gflops"] + rows["clip_head"]["gflops"]
    recognizer = moclip_jax.load(tmp_path)
    model = recognizer.model
    assert isinstance(model.head, EVLHead)
    features = load_features(tmp_path / "features", "test", 36, each_view=False)
    assert features.tokens is not None and features.tokens.dtype == np.float16
    vision = model.clip.config.vision
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    assert features.tokens.shape == (36, 1, 2, 3, tokens, vision.hidden_size)
    scores = np.load(tmp_path / "evaluate" / "scores.npz")
    np.testing.assert_allclose(fused_logits(model.head, features), scores["fusion"], atol=1e-5)
    check_predict(recognizer)


@pytest.mark.slow
def test_the_mean_guesses_the_order_and_the_temporal_heads_see_it(tmp_path):
    """Chance within a pair is 50 %; the pairs themselves are easy for both."""
    top1 = {}
    for head in ("mean", "temporal"):
        config = demo_order.get_config()
        config.dataset.data_dir = str(tmp_path / "data")
        config.motion.head = config.fusion.head = head
        config.stages = "prepare,motion,features,fusion,evaluate"
        results = pipeline.run(config, tmp_path / head)
        assert results is not None
        top1[head] = {row: results["rows"][row]["top1"] for row in ("motion", "fusion")}
    print(json.dumps(top1))
    for row in ("motion", "fusion"):
        assert top1["mean"][row] <= 0.6
        assert top1["temporal"][row] >= 0.95
