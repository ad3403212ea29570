"""The head that starts from the words: its ends, its gradients, and new classes."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from moclip_jax.config import default_config, fusion_config
from moclip_jax.inference.zero_shot import zero_shot_logits
from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.heads import apply_head, build_head
from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING
from moclip_jax.models.imagenet_tower import ImageNetConfig
from moclip_jax.models.text_head import ClassText, TextHead
from moclip_jax.training.features import Features
from moclip_jax.training.heads import _alpha

CLASSES, MOTION, WIDTH, VIDEOS = 5, 7, 6, 9
CONFIG = FusionConfig(MOTION, WIDTH, num_classes=CLASSES, head="text", num_segments=3)
logits_of = nnx.jit(apply_head)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def text_head(rng: np.random.Generator, *, trained: bool = True, **changes) -> TextHead:
    head = build_head(FusionConfig(**{**vars(CONFIG), **changes}), rngs=nnx.Rngs(0))
    assert isinstance(head, TextHead)
    words = unit(rng.standard_normal((CLASSES, WIDTH), np.float32))
    head.start_from(ClassText(words, 21.5, -3.25))
    if trained:
        head.delta[...] = rng.standard_normal(head.delta.shape, np.float32)
        head.motion[...] = rng.standard_normal(head.motion.shape, np.float32)
    return head


def features(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Motion of three segments and appearance of two frames."""
    shapes = (VIDEOS, 3, MOTION), (VIDEOS, 2, WIDTH)
    motion, appearance = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return motion, 10 * appearance


def test_before_training_it_is_zero_shot_clip(rng):
    head = text_head(rng, trained=False)
    motion, appearance = features(rng)
    got = np.asarray(logits_of(head, motion, appearance))
    text = np.asarray(head.text[...])
    expected = zero_shot_logits(appearance.mean(axis=1), text, 21.5) - 3.25
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # Motion cannot matter yet, in any bit.
    np.testing.assert_array_equal(got, np.asarray(logits_of(head, -motion, appearance)))


def test_the_ends_of_the_interpolation_are_the_start_and_the_trained_head_bit_for_bit(rng):
    head, inputs = text_head(rng), features(rng)
    start = text_head(np.random.default_rng(0), trained=False)
    np.testing.assert_array_equal(
        np.asarray(logits_of(head.interpolated(0.0), *inputs)),
        np.asarray(logits_of(start, *inputs)),
    )
    trained = np.asarray(logits_of(head, *inputs))
    np.testing.assert_array_equal(np.asarray(logits_of(head.interpolated(1.0), *inputs)), trained)
    # The same with the trained weights themselves in place of start and difference.
    whole = nnx.clone(head)
    whole.text[...], whole.delta[...] = head.text[...] + head.delta[...], 0 * head.delta[...]
    np.testing.assert_array_equal(np.asarray(logits_of(whole, *inputs)), trained)
    assert head.alpha[...] == 1  # copies were changed


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_and_gradients_are_those_of_a_transcription_to_numpy(rng, normalize):
    head = text_head(rng, normalize=normalize)
    motion, appearance = features(rng)
    labels = rng.integers(0, CLASSES, VIDEOS)
    graph, params, rest = nnx.split(head, nnx.Param, ...)

    def loss_fn(params):
        logits = nnx.merge(graph, params, rest)(motion, appearance)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)

    words, delta, matrix = (np.float64(x[...]) for x in (head.text, head.delta, head.motion))
    x = np.float64(motion).mean(axis=1)
    x = unit(x) if normalize else x
    embedding = unit(np.float64(appearance).mean(axis=1)) + x @ matrix
    logits = 21.5 * embedding @ (words + delta).T - 3.25
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    rows = np.arange(VIDEOS)
    assert loss == pytest.approx(-np.log(probabilities[rows, labels]).mean(), rel=1e-5)
    error = probabilities.copy()
    error[rows, labels] -= 1
    error *= 21.5 / VIDEOS
    np.testing.assert_allclose(grads["delta"][...], error.T @ embedding, rtol=1e-4, atol=1e-4)
    of_motion = x.T @ (error @ (words + delta))
    np.testing.assert_allclose(grads["motion"][...], of_motion, rtol=1e-4, atol=1e-4)
    assert set(grads) == {"delta", "motion"}  # words, scale, bias and alpha are not trained


def test_new_classes_are_known_by_their_words_and_old_ones_keep_what_was_trained(rng):
    head, inputs = text_head(rng).interpolated(0.6), features(rng)
    new = unit(rng.standard_normal((2, WIDTH), np.float32))
    words = np.stack([np.asarray(head.text[3]), new[0], np.asarray(head.text[1]), new[1]])
    got = np.asarray(logits_of(head.for_classes(words, [3, -1, 1, -1]), *inputs))
    old = np.asarray(logits_of(head, *inputs))
    np.testing.assert_allclose(got[:, [0, 2]], old[:, [3, 1]], rtol=1e-5, atol=1e-4)
    embedding = np.asarray(head.embed(*inputs))
    np.testing.assert_allclose(got[:, [1, 3]], 21.5 * embedding @ new.T - 3.25, atol=1e-3)


def test_alpha_is_a_number_or_the_one_of_the_grid_with_the_least_loss_on_held_out_videos(rng):
    head = text_head(rng)
    motion, appearance = features(rng)
    right = np.asarray(logits_of(head.interpolated(0.3), motion, appearance)).argmax(axis=1)
    heldout = Features(motion[:, None], appearance, right.astype(np.int32))
    alphas = np.linspace(0, 1, 11)
    losses = []
    for alpha in alphas:
        logits = np.float64(logits_of(head.interpolated(alpha), motion, appearance))
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        picked = odds[np.arange(VIDEOS), right] / odds.sum(axis=1)
        losses.append(-np.log(np.maximum(picked, 1e-300)).mean())
    chosen = _alpha("auto", head, heldout)
    assert chosen == alphas[np.argmin(losses)] and 0 < chosen < 1
    assert _alpha("0.35", head, heldout) == 0.35


def test_scale_and_bias_are_those_of_the_clip():
    words = np.eye(2, 8, dtype=np.float32)
    for name, bias in (("vit_b32", 0.0), ("siglip_b16", -10.0)):
        clip = nnx.eval_shape(lambda n=name: CLIP(CLIPConfig.named(n), rngs=nnx.Rngs(0)))
        clip.logit_scale = nnx.Param(np.log(np.float32(20.0)))
        if bias:
            clip.logit_bias = nnx.Param(np.float32(bias))
        assert ClassText.of_clip(clip, words)[1:] == (pytest.approx(20.0), bias)


def test_an_image_network_without_texts_is_refused():
    config = default_config()
    config.fusion.head = "text"
    clip = ImageNetConfig("b0", 224, DEFAULT_PREPROCESSING)
    with pytest.raises(ValueError, match=r"config.fusion.head='text' starts from texts, which"):
        fusion_config(config, motion_features=8, clip=clip, num_classes=3)
    assert fusion_config(config, motion_features=0, clip=clip, num_classes=3).head == "mean"
