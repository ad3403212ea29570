"""Class names as words, and prompt ensembling against its definition."""

import numpy as np
import pytest

from moclip_jax.inference.class_phrases import HMDB51, UCF101
from moclip_jax.inference.zero_shot import (
    class_embeddings,
    class_phrase,
    class_phrases,
    zero_shot_logits,
)
from moclip_jax.pretrained import TINY_CLIP, load_tower, tokenize


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("b_slice", "b slice"),
        ("star spinning", "star spinning"),
        ("TaiChi", "tai chi"),
    ],
)
def test_a_class_name_becomes_words(name, phrase):
    assert class_phrase(name) == phrase


def test_every_class_of_the_published_sets_has_phrases_of_its_own():
    assert (len(UCF101), len(HMDB51)) == (101, 51)
    for known in (UCF101, HMDB51):
        phrases = [phrase for names in known.values() for phrase in names]
        assert len(phrases) == len(set(phrases))
    assert class_phrases(["YoYo", "Unheard"], "ucf101") == [UCF101["YoYo"], ("unheard",)]
    assert class_phrases(["YoYo"]) == [("yo yo",)]


def test_embeddings_are_the_normalised_mean_over_templates_and_phrases():
    clip, tokenizer = load_tower(TINY_CLIP)
    templates = ("a photo of a {}.", "a {}")
    phrases = [["star", "a star spinning"], ["ring"]]
    got = class_embeddings(clip, tokenizer, phrases, templates)
    for row, names in zip(got, phrases, strict=True):
        prompts = [template.format(name) for name in names for template in templates]
        tokens = tokenize(tokenizer, prompts, clip.config.text.max_length)
        mean = np.asarray(clip.encode_text(tokens)).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_logits_are_cosines():
    rng = np.random.default_rng(0)
    images, text = rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    got = zero_shot_logits(images, text)
    for i in range(3):
        for j in range(2):
            expected = images[i] @ text[j] / np.linalg.norm(images[i])
            assert got[i, j] == pytest.approx(expected)
