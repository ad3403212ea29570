"""A whole run with the head that starts from the words, and labels that it was not trained on."""

import numpy as np
import pytest

import moclip_jax
from moclip_jax.configs import testing
from moclip_jax.inference.zero_shot import zero_shot_logits
from moclip_jax.models.text_head import ClassText, TextHead
from moclip_jax.training import pipeline
from moclip_jax.training.evaluate import fused_logits
from moclip_jax.training.features import load_features
from moclip_jax.training.heads import load_head


@pytest.fixture(scope="module")
def text_run(finished_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("text_run")
    config = testing.get_config()
    config.fusion.head, config.fusion.alpha = "text", "0.5"
    # So that something is learned in two epochs.
    config.fusion.learning_rate = 0.03
    for stage in ("prepare", "motion", "features", "data"):
        (workdir / stage).symlink_to(finished_run / stage)
    results = pipeline.run(config, workdir)
    assert results is not None
    return workdir, config, results["rows"]


def test_the_run_begins_at_its_zero_shot_row_bit_for_bit(text_run):
    workdir, config, rows = text_run
    assert rows["fusion"]["protocol"].endswith("text head, alpha 0.5")
    scores = np.load(workdir / "evaluate" / "scores.npz")
    features = load_features(workdir / "features", "test", 36, each_view=False)
    run = pipeline.Pipeline(config, workdir)
    head = load_head(run.head_configs["fusion"], workdir / "fusion" / "fusion")
    assert isinstance(head, TextHead) and head.alpha[...] == 0.5
    text = ClassText.of_clip(run.clip_and_tokenizer[0], run.text)
    untrained = TextHead(head.config, rngs=None)  # type: ignore[arg-type]
    untrained.start_from(text)
    np.testing.assert_array_equal(fused_logits(untrained, features), scores["zero_shot"])
    by_numpy = zero_shot_logits(features.appearance.mean(axis=1), text.embeddings, text.scale)
    np.testing.assert_allclose(scores["zero_shot"], by_numpy, atol=1e-4)
    # What is exported is the trained head, with its alpha.
    exported = moclip_jax.load(workdir).model.head
    np.testing.assert_array_equal(fused_logits(exported, features), scores["fusion"])
    assert not np.array_equal(scores["fusion"], scores["zero_shot"])


def test_labels_that_were_not_trained_are_compared_with_the_frame_and_its_motion(text_run):
    recognizer = moclip_jax.load(text_run[0])
    labels = ("a red ball", "a green box", "a blue kite")
    rng = np.random.default_rng(0)
    shapes = recognizer.input_shapes
    view = {name: rng.integers(0, 256, (1, *shapes[name]), np.uint8) for name in shapes}
    model = recognizer.model
    motion = np.asarray(model.motion_features(view["motion"])).mean(axis=(1, 2))
    frame = np.asarray(model.appearance_features(view["images"])[0]).mean(axis=1)
    moved = 0.5 * motion @ np.asarray(model.head.motion[...])
    assert np.linalg.norm(moved) > 0.1
    expected = frame[0] / np.linalg.norm(frame[0]) + moved[0]
    np.testing.assert_allclose(recognizer.outputs(view)[1], expected, atol=1e-3)
    label_set = recognizer.label_set(labels)
    assert label_set.trained_as == ("", "", "")
    np.testing.assert_allclose(
        recognizer.probabilities(view, labels),
        label_set.probabilities(np.zeros(36), expected, use_head=False),
        atol=1e-3,
    )
