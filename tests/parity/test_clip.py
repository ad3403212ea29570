"""CLIP against transformers' torch CLIPModel, live, at the real sizes; and a real vocabulary."""

import gzip
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig as HFCLIPConfig
from transformers import CLIPModel, CLIPTokenizer

from moclip_jax.inference.class_phrases import PHRASES
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf
from tests.hidden_states import hidden_states
from tests.parity.noise import relative_error, report


@pytest.mark.parametrize("name", ["vit_b32", "vit_b16", "vit_l14"])
def test_full_size_clip_layer_by_layer(name):
    config = CLIPConfig.named(name)
    torch.manual_seed(0)
    theirs = CLIPModel(HFCLIPConfig(**config.to_hf())).eval()
    if name == "vit_b32":
        assert sum(p.numel() for p in theirs.parameters()) == 151_277_313
    ours = clip_from_hf(config, {k: v.numpy() for k, v in theirs.state_dict().items()})

    rng = np.random.default_rng(0)
    side = config.vision.image_size
    images = rng.standard_normal((2, 3, side, side)).astype(np.float32)
    tokens = rng.integers(1, 49000, (3, 77)).astype(np.int32)
    tokens[:, 0] = 49406
    for row, end in zip(tokens, (5, 20, 76), strict=True):
        row[end:] = 49407
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            pixel_values=torch.from_numpy(images),
            output_hidden_states=True,
        )
    pixels = images.transpose(0, 2, 3, 1)
    noise = {}
    for tower, inputs, output in (
        ("vision", pixels, expected.vision_model_output),
        ("text", tokens, expected.text_model_output),
    ):
        states = hidden_states(getattr(ours, tower), inputs)
        assert len(states) == len(output.hidden_states)
        errors = [
            relative_error(state, theirs)
            for state, theirs in zip(states, output.hidden_states, strict=True)
        ]
        noise[tower] = max(errors)
    image = np.asarray(jax.jit(ours.encode_image)(pixels))
    text = np.asarray(jax.jit(ours.encode_text)(tokens))
    noise["image_embeds"] = relative_error(
        image / np.linalg.norm(image, axis=-1, keepdims=True), expected.image_embeds
    )
    noise["text_embeds"] = relative_error(
        text / np.linalg.norm(text, axis=-1, keepdims=True), expected.text_embeds
    )
    logits = jax.jit(lambda model, x, t: model(x, t))(ours, pixels, tokens)
    noise["logits"] = relative_error(logits, expected.logits_per_image)
    report(f"{name}, worst layer", **noise)
    assert max(noise.values()) < 1e-4, noise
    for key, value in clip_to_hf(ours).items():
        assert np.array_equal(value, theirs.state_dict()[key].numpy()), key


def open_clip_file(name: str) -> Path:
    """A file of the open_clip_torch wheel, which cannot be imported where torchvision cannot."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations, "pip install open_clip_torch"
    return Path(spec.submodule_search_locations[0]) / name


@pytest.fixture(scope="module")
def real_tokenizer(tmp_path_factory) -> CLIPTokenizer:
    """transformers' tokenizer on OpenAI's vocabulary, as the files of a CLIP on the hub hold it."""
    lines = gzip.decompress(open_clip_file("bpe_simple_vocab_16e6.txt.gz").read_bytes())
    merges = lines.decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    # GPT-2's printable stand-ins for the 256 bytes, in the order CLIP numbers them.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == 49408
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def test_tokens_of_a_real_vocabulary_equal_openais_tokenizer(real_tokenizer):
    """Against the SimpleTokenizer in the same wheel, OpenAI's own code."""
    spec = importlib.util.spec_from_file_location("tokenizer", open_clip_file("tokenizer.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = module.SimpleTokenizer()
    texts = [
        f"a photo of a person {phrase}."
        for phrases in PHRASES.values()
        for options in phrases.values()
        for phrase in options
    ]
    texts += ["", "Tai Chi!", "  naïve   Façade ", "it's 3 o'clock, they're late", "日本語 видео"]
    texts += ["word " * 100]
    expected = reference(texts).numpy()
    ours = real_tokenizer(texts, padding="max_length", truncation=True, max_length=77)
    for text, tokens, theirs in zip(texts, ours["input_ids"], expected, strict=True):
        # OpenAI pads with zeros, transformers with the end token; CLIP reads up to the first end.
        end = tokens.index(49407) + 1
        assert tokens[:end] == theirs[:end].tolist(), text
        assert set(tokens[end:]) <= {49407}
        assert not theirs[end:].any()
