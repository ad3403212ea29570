"""CLIPs against transformers' and open_clip's, live, at the real sizes; and a real vocabulary."""

import gzip
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, CLIPTokenizer

from moclip_jax.inference.class_phrases import PHRASES
from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf
from moclip_jax.pretrained.open_clip import (
    clip_from_open_clip,
    clip_to_open_clip,
    open_clip_config,
)
from tests.golden.open_clip_model import open_clip_model
from tests.hidden_states import hidden_states
from tests.parity.noise import relative_error, report

# That of facebook/metaclip-2-mt5-worldwide-s16, MetaCLIP 2's smallest; its end token is not 2.
METACLIP_2 = CLIPConfig(
    CLIPVisionConfig(224, 16, 384, 12, 6, 1536),
    CLIPTextConfig(250_000, 77, 384, 12, 6, 1536, 1),
    projection_dim=384,
    activation="gelu",
)
FULL_SIZE = {name: CLIPConfig.named(name) for name in ("vit_b32", "vit_b16", "vit_l14")} | {
    "metaclip_2_s16": METACLIP_2,
    "siglip_b16": CLIPConfig.named("siglip_b16"),
}


def random_inputs(config: CLIPConfig) -> tuple[np.ndarray, np.ndarray]:
    """Images [2, 3, H, W] and texts [3, L], each with a start, an end and padding."""
    rng = np.random.default_rng(0)
    side, length = config.image_size, config.text.max_length
    images = rng.standard_normal((2, 3, side, side)).astype(np.float32)
    tokens = rng.integers(3, config.text.vocab_size - 400, (3, length)).astype(np.int32)
    end = 49407 if config.text.vocab_size == 49408 else config.text.eos_token_id
    if not config.is_siglip:
        for row, place in zip(tokens, (5, 20, length - 1), strict=True):
            row[place:] = end
    return images, tokens


def compare(ours: CLIP, images, tokens, states, embeds, logits) -> dict[str, float]:
    """Worst relative differences of the hidden states, by tower, of the embeddings and logits."""
    pixels = images.transpose(0, 2, 3, 1)
    noise = {}
    for tower, inputs, theirs in zip(("vision", "text"), (pixels, tokens), states, strict=True):
        layers = hidden_states(getattr(ours, tower), inputs)
        pairs = zip(layers, theirs, strict=True)
        noise[tower] = max(relative_error(layer, other) for layer, other in pairs)
    encoded = jax.jit(ours.encode_image)(pixels), jax.jit(ours.encode_text)(tokens)
    for name, embed, theirs in zip(("image", "text"), encoded, embeds, strict=True):
        unit = embed / np.linalg.norm(embed, axis=-1, keepdims=True)
        theirs = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)
        noise[f"{name}_embeds"] = relative_error(unit, theirs)
    scores = jax.jit(lambda model, x, t: model(x, t))(ours, pixels, tokens)
    return noise | {"logits": relative_error(scores, logits)}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_clip_layer_by_layer(name):
    config = FULL_SIZE[name]
    torch.manual_seed(0)
    content = config.to_hf()
    if config is METACLIP_2:
        content |= {"model_type": "metaclip_2"}
    theirs = AutoModel.from_config(AutoConfig.for_model(**content)).eval()
    if name == "vit_b32":
        assert sum(p.numel() for p in theirs.parameters()) == 151_277_313
    if name == "siglip_b16":  # Of google/siglip-base-patch16-224.
        assert sum(p.numel() for p in theirs.parameters()) == 203_155_970
    ours = clip_from_hf(config, {k: v.numpy() for k, v in theirs.state_dict().items()})
    images, tokens = random_inputs(config)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            pixel_values=torch.from_numpy(images),
            output_hidden_states=True,
        )
    outputs = expected.vision_model_output, expected.text_model_output
    noise = compare(
        ours,
        images,
        tokens,
        [output.hidden_states for output in outputs],
        [expected.image_embeds.numpy(), expected.text_embeds.numpy()],
        expected.logits_per_image,
    )
    report(f"{name}, worst layer", **noise)
    assert max(noise.values()) < 1e-5, noise
    for key, value in clip_to_hf(ours).items():
        assert np.array_equal(value, theirs.state_dict()[key].numpy()), key


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clips_vit_b32_layer_by_layer(quick_gelu):
    """MetaCLIP's and DFN's activation, and DataComp's."""
    model_cfg = {
        "embed_dim": 512,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12
        },
    }  # fmt: skip
    torch.manual_seed(0)
    theirs = open_clip_model(model_cfg)
    config = open_clip_config({"model_cfg": model_cfg})
    weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
    ours = clip_from_open_clip(config, weights)
    images, tokens = random_inputs(config)
    pixels, ids = torch.from_numpy(images), torch.from_numpy(tokens.astype(np.int64))
    states = []
    for blocks, encode, inputs in (
        (theirs.visual.transformer.resblocks, theirs.encode_image, pixels),
        (theirs.transformer.resblocks, theirs.encode_text, ids),
    ):
        seen: list[torch.Tensor] = []
        hooks = [
            blocks[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])),
            *(
                b.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
                for b in blocks
            ),
        ]
        with torch.no_grad():
            encode(inputs)
        for hook in hooks:
            hook.remove()
        states.append(seen)
    with torch.no_grad():
        embeds = [theirs.encode_image(pixels).numpy(), theirs.encode_text(ids).numpy()]
        logits = theirs.get_logits(pixels, ids)[0]
    noise = compare(ours, images, tokens, states, embeds, logits)
    report(f"open_clip ViT-B/32, quick_gelu={quick_gelu}, worst layer", **noise)
    assert max(noise.values()) < 1e-5, noise
    for key, value in clip_to_open_clip(ours).items():
        assert np.array_equal(value, weights[key]), key


def open_clip_file(name: str) -> Path:
    """A file of the open_clip_torch wheel, which cannot be imported where torchvision cannot."""
    path = importlib.metadata.distribution("open_clip_torch").locate_file(f"open_clip/{name}")
    return Path(str(path))


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
