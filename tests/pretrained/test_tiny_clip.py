"""The embedded tiny CLIP does what its card says, and is trained by code that is right."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, SHAPES, Appearance
from moclip_jax.pretrained import TINY_CLIP, load_tower, tokenize
from moclip_jax.pretrained.clip_vocabulary import learn_tokenizer
from moclip_jax.pretrained.tiny_clip_data import (
    IMAGE_SIZE,
    Caption,
    corpus,
    matches,
    random_caption,
    training_images,
)
from moclip_jax.pretrained.tiny_clip_evaluation import evaluate, model_card
from moclip_jax.pretrained.train_tiny_clip import (
    contrastive_loss,
    lengthen,
    planar_positions,
    siglip_loss,
    tiny_config,
)


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in TINY_CLIP.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert sum(files.values()) < 5_000_000


def test_zero_shot_finds_the_shape_and_only_luck_finds_the_motion():
    """On 72 held-out stills and 36 held-out clips that went through the real encoder."""
    accuracies = evaluate(*load_tower("tiny"), num_stills=72, num_clips=36)
    assert accuracies["shape, stills"] >= 0.9
    assert accuracies["shape, middle frames of prepared clips"] >= 0.9
    assert accuracies["shape, other frames of prepared clips"] >= 0.9
    assert accuracies["shape, middle frames of MPEG-4 files"] >= 0.9
    assert accuracies["shape, from the class names"] >= 0.9
    # One frame for each of 36 classes; 1/6 is 6 of them.
    assert accuracies["shape and motion, from the class names"] <= 0.45


def test_the_card_is_the_one_that_training_writes_with_the_accuracies_it_states():
    card = (TINY_CLIP / "README.md").read_text()
    stated = dict(re.findall(r"^\| (shape.*) \| ([\d.]+) \|$", card, flags=re.MULTILINE))
    assert len(stated) == 6
    clip, _ = load_tower(TINY_CLIP)
    assert card == model_card(clip, {name: float(value) for name, value in stated.items()})


@pytest.mark.slow
def test_card_states_the_accuracies_that_are_measured():
    card = (TINY_CLIP / "README.md").read_text()
    for name, accuracy in evaluate(*load_tower("tiny")).items():
        stated = re.search(rf"\| {re.escape(name)} \| ([\d.]+) \|", card)
        assert stated, name
        assert float(stated[1]) == pytest.approx(accuracy, abs=0.005)


def test_contrastive_loss_is_cross_entropy_with_shared_targets():
    logits = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    match = np.eye(4, dtype=bool)
    match[0, 2] = match[3, 0] = True

    def one_way(logits, match):
        total = 0.0
        for row, true in zip(logits, match, strict=True):
            log_probabilities = row - np.log(np.exp(row).sum())
            total -= log_probabilities[true].mean()
        return total / len(logits)

    expected = (one_way(logits, match) + one_way(logits.T, match.T)) / 2
    loss = contrastive_loss(jnp.asarray(logits), jnp.asarray(match))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert jax.grad(lambda x: contrastive_loss(x, jnp.asarray(match)))(logits).shape == (4, 4)


def test_siglip_loss_adds_the_mean_cross_entropy_of_single_pairs():
    logits = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    match = np.eye(4, dtype=bool)
    match[0, 2] = match[3, 0] = True
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(match, probability, 1 - probability)).mean()
    loss = siglip_loss(logits, match) - contrastive_loss(logits, match)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_captions_are_true_of_their_own_image_and_say_what_they_claim():
    rng = np.random.default_rng(1)
    shapes = rng.integers(len(SHAPES), size=200)
    looks = [
        Appearance(str(rng.choice(["red", "blue"])), str(rng.choice(["small", "large"])))
        for _ in shapes
    ]
    captions = [random_caption(rng, SHAPES[s], look) for s, look in zip(shapes, looks, strict=True)]
    true = matches(captions, shapes, looks)
    assert true.diagonal().all()
    for i, (shape, look) in enumerate(zip(shapes, looks, strict=True)):
        for j, caption in enumerate(captions):
            claims = [caption.shape == SHAPES[shape]]
            claims += [caption.color == look.color] if caption.color else []
            claims += [caption.size == look.size] if caption.size else []
            assert true[i, j] == all(claims)
    for caption in captions:
        words = re.findall(r"[a-z]+", caption.text)
        assert caption.shape in words
        assert (caption.color is None) == (not {"red", "blue"} & set(words))
        assert (caption.size is None) == (not {"small", "large"} & set(words))
    # Motion words come with every shape, without a look at the image.
    named = [sum(motion in caption.text for motion in MOTIONS) for caption in captions]
    assert 0.35 < np.mean(named) < 0.65
    assert isinstance(captions[0], Caption)


def test_training_images_are_reproducible_and_labelled():
    first, again = training_images(12), training_images(12)
    assert first.images.shape == (12, IMAGE_SIZE, IMAGE_SIZE, 3) and first.images.dtype == np.uint8
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.shapes, np.tile(np.arange(6), 2))
    assert len(first.looks) == 12
    # Away from the middle, where a shape may have grown, no size is known.
    assert {look.size is None for look in first.looks} == {True, False}


@pytest.mark.parametrize("siglip", [False, True])
def test_training_starts_from_positions_that_rise_and_fall_with_the_patchs_place(siglip):
    config = tiny_config(100, 1, siglip=siglip).vision
    positions = np.asarray(planar_positions(config))
    patches = positions[not siglip :].reshape(6, 6, config.hidden_size)
    assert siglip or not positions[0].any()
    # Half of the channels tell the row alone, the others the column.
    half = config.hidden_size // 2
    np.testing.assert_array_equal(patches[:, :1, :half], patches[:, 5:, :half])
    np.testing.assert_array_equal(patches[:1, :, half:], patches[5:, :, half:])
    assert len(np.unique(patches.reshape(36, -1), axis=0)) == 36


def test_a_lengthened_clip_gives_short_texts_the_same_features_and_reads_long_ones():
    clip, tokenizer = load_tower("tiny")
    encode = nnx.jit(lambda clip, tokens: clip.encode_text(tokens))
    before = np.asarray(encode(clip, tokenize(tokenizer, ["a star"], 77)))
    longer, tokenizer = lengthen(clip, tokenizer, 90)
    tokens = tokenize(tokenizer, ["a star", "w" * 85], 90)
    after = np.asarray(encode(longer, tokens))
    np.testing.assert_allclose(after[:1], before, atol=1e-6)
    assert np.isfinite(after).all()


def test_vocabulary_learns_the_most_frequent_pairs():
    """By hand: "aab" x 3 and "ab": a b</w> occurs 4 times, then a ab</w> 3 times."""
    tokenizer = learn_tokenizer(["aab aab", "aab ab"], num_merges=10, max_length=8)
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 2 * 256 + 2 + 2
    assert vocabulary["ab</w>"] == 512 and vocabulary["aab</w>"] == 513
    assert vocabulary["<|startoftext|>"] == 514 and vocabulary["<|endoftext|>"] == 515
    assert tokenizer("AAB b")["input_ids"] == [514, 513, vocabulary["b</w>"], 515]


def test_every_word_of_the_captions_is_one_token():
    _, tokenizer = load_tower("tiny")
    for text in corpus()[::101]:
        words = re.findall(r"[a-z]+|[^a-z\s]+", text)
        assert len(tokenizer(text)["input_ids"]) == len(words) + 2
