"""Towers of every kind: what a folder holds decides; strict, saved in one form, told by name."""

import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.flops import multiply_adds
from moclip_jax.models.image_preprocessing import CLIP_MEAN, CLIP_STD, ImagePreprocessing
from moclip_jax.models.inference import clip_for_inference
from moclip_jax.pretrained import TINY_CLIP, load_tokenizer, load_tower, save_tower, tokenize
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf
from moclip_jax.pretrained.open_clip import clip_to_open_clip, open_clip_config
from tests.golden.clip_recipe import CONFIGS, make_weight

GOLDEN = Path(__file__).parents[1] / "golden" / "clip.npz"
OPEN_CLIP = CONFIGS["open_clip"]


@pytest.fixture(scope="module")
def tiny():
    return load_tower("tiny")


@pytest.fixture(scope="module")
def siglip(tiny) -> CLIP:
    """A SigLIP that reads the tiny CLIP's tokens."""
    config = CLIPConfig(
        CLIPVisionConfig(50, 8, 32, 2, 2, 64, "attention"),
        CLIPTextConfig(len(tiny[1]), 16, 24, 2, 2, 48, 0, "last_token"),
        projection_dim=32,
        activation="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        preprocessing=ImagePreprocessing.from_hf(None, 50, siglip=True),
    )
    return nnx.jit(lambda: CLIP(config, rngs=nnx.Rngs(0)))()


def golden_weights(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden[f"{name}/shapes"]))
    return {key: make_weight(name, key, tuple(shape)) for key, shape in shapes.items()}


def write_open_clip(folder: Path, clip: CLIP, preprocess_cfg: dict) -> Path:
    """The tiny CLIP as open_clip and timm publish theirs, beside timm's own config.json."""
    folder.mkdir()
    vision, text = clip.config.vision, clip.config.text
    model_cfg = {
        "embed_dim": clip.config.projection_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": vision.image_size, "patch_size": vision.patch_size,
            "width": vision.hidden_size, "layers": vision.num_layers,
            "head_width": vision.hidden_size // vision.num_heads,
        },
        "text_cfg": {
            "context_length": text.max_length, "vocab_size": text.vocab_size,
            "width": text.hidden_size, "heads": text.num_heads, "layers": text.num_layers,
        },
    }  # fmt: skip
    content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_clip"}))
    weights = {name: np.array(v, order="C") for name, v in clip_to_open_clip(clip).items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_CLIP / name, folder)
    return folder


def assert_same(a: CLIP, b: CLIP) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))


@pytest.mark.parametrize("name", ["clip", "metaclip_2", "siglip"])
def test_the_config_goes_to_hugging_face_and_back(name):
    config = CLIPConfig.from_hf(CONFIGS["quick_gelu" if name == "clip" else name])
    assert config.to_hf()["model_type"] == name
    assert CLIPConfig.from_hf(config.to_hf()) == config


def test_every_mismatch_of_a_siglip_is_named_at_once():
    weights = golden_weights("siglip")
    del weights["vision_model.head.attention.in_proj_bias"]
    weights["vision_model.head.probe"] = weights["vision_model.head.probe"][0]
    weights["visual_projection.weight"] = np.zeros((48, 48), np.float32)
    with pytest.raises(ValueError, match="do not match") as caught:
        clip_from_hf(CLIPConfig.from_hf(CONFIGS["siglip"]), weights)
    message = str(caught.value)
    assert "vision_model.head.attention.in_proj_bias[query] (48,) is missing" in message
    assert "vision_model.head.probe is (1, 48), needed is (1, 1, 48)" in message
    assert "visual_projection.weight (48, 48) is unknown" in message


def test_a_siglip_is_saved_and_loaded_with_its_preprocessing(siglip, tiny, tmp_path):
    save_tower(siglip, tiny[1], tmp_path)
    again, tokenizer = load_tower(tmp_path)
    assert again.config == siglip.config
    assert again.config.preprocessing.square and again.config.preprocessing.mean == (0.5,) * 3
    assert_same(again, siglip)
    # Texts are padded to the length that it was trained on, whatever theirs.
    assert tokenize(tokenizer, ["a star"], again.config.text.max_length).shape == (1, 16)
    # The same without the file: transformers' own defaults for a SigLIP.
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_tower(tmp_path)[0].config == siglip.config


def test_a_siglip_in_the_form_for_inference_computes_the_same(siglip):
    images = np.random.default_rng(0).standard_normal((3, 50, 50, 3), np.float32)
    frozen = clip_for_inference(siglip, jnp.float32)
    ours = jax.jit(siglip.encode_image)(images)
    np.testing.assert_allclose(jax.jit(frozen.encode_image)(images), ours, rtol=1e-5, atol=1e-5)
    embeds, tokens = jax.jit(siglip.image_features_with_tokens, static_argnums=1)(images, 1)
    np.testing.assert_allclose(embeds, ours, rtol=1e-5, atol=1e-5)
    assert tokens.shape == (3, 1, 3, 36, 32)
    # What is left over beside the last patches is not looked at.
    images[:, 48:] = images[:, :, 48:] = 9
    np.testing.assert_array_equal(jax.jit(siglip.encode_image)(images), ours)


def test_multiply_adds_of_a_siglip_are_those_of_its_products(siglip):
    image = jax.ShapeDtypeStruct((1, 50, 50, 3), jnp.float32)
    graph, state = nnx.split(siglip)
    count = multiply_adds(lambda s, x: nnx.merge(graph, s).encode_image(x), state, image)
    patches, width, mlp = 36, 32, 64
    layer = patches * (4 * width**2 + 2 * width * mlp) + 2 * patches**2 * width
    pooling = width**2 + 2 * patches * width**2 + 2 * patches * width + width**2 + 2 * width * mlp
    assert count == patches * 192 * width + 2 * layer + pooling


def test_logits_of_a_siglip_have_its_bias(siglip):
    images = np.random.default_rng(0).standard_normal((2, 50, 50, 3), np.float32)
    tokens = np.random.default_rng(1).integers(0, 600, (3, 16)).astype(np.int32)
    logits = np.asarray(jax.jit(siglip)(images, tokens))
    image, text = jax.jit(siglip.encode_image)(images), jax.jit(siglip.encode_text)(tokens)
    image, text = (np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(logits, 10 * image @ text.T - 10, rtol=1e-4)


@pytest.mark.parametrize(
    ("preprocess_cfg", "expected"),
    [
        ({}, {"resample": "bicubic", "mean": CLIP_MEAN, "std": CLIP_STD}),
        (
            {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "mode": "RGB",
             "resize_mode": "squash", "size": 224},
            {"resample": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3, "square": True},
        ),
    ],
)  # fmt: skip
def test_open_clips_layout_is_the_same_clip(tiny, tmp_path, preprocess_cfg, expected):
    clip, tokenizer = tiny
    folder = write_open_clip(tmp_path / "clip", clip, preprocess_cfg)
    loaded, tokens = load_tower(folder)
    assert_same(loaded, clip)
    assert loaded.config.preprocessing == ImagePreprocessing(**expected)
    assert loaded.config.vision == clip.config.vision
    assert loaded.config.text.pooling == "highest_id"
    text = ["a photo of a star spinning."]
    np.testing.assert_array_equal(tokenize(tokens, text, 32), tokenize(tokenizer, text, 32))
    # It is saved, and exported, in Hugging Face's layout.
    save_tower(loaded, tokens, tmp_path / "saved")
    assert load_tower(tmp_path / "saved")[0].config == loaded.config


def test_open_clips_pickles_are_rejected(tiny, tmp_path):
    folder = write_open_clip(tmp_path / "clip", tiny[0], {})
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only open_clip_model\.safetensors is supported"):
        load_tower(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "vit_b"}, "vision_cfg.timm_model_name is 'vit_b'"),
        ("vision_cfg", {"no_ln_pre": True}, "vision_cfg.no_ln_pre is True; needed is a plain ViT"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type is 'avg'; needed is tok"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, r"vision_cfg.layers is \[3, 4, 6, 3\]"),
        ("text_cfg", {"hf_model_name": "roberta"}, "text_cfg.hf_model_name is 'roberta'"),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type is 'last'; needed is argmax or"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask is True"),
        ("model_cfg", {"multimodal_cfg": {"a": 1}}, "model_cfg.multimodal_cfg is"),
        ("preprocess_cfg", {"resize_mode": "longest"}, "needed is shortest or squash"),
        ("preprocess_cfg", {"interpolation": "random"}, "needed is bicubic or bilinear"),
    ],
)
def test_what_is_not_a_plain_vit_is_named(part, change, message):
    content = json.loads(json.dumps(OPEN_CLIP))
    place = content if part in content else content["model_cfg"]
    place[part] |= change
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: .*{message}"):
        open_clip_config(content)
    # Fields of training, and fields that say nothing, may be there.
    OPEN_CLIP["model_cfg"]["vision_cfg"] | {"patch_dropout": 0.5, "timm_model_name": None}
    open_clip_config(OPEN_CLIP)


def test_open_clips_end_token_is_pooled_where_the_file_says_so():
    content = json.loads(json.dumps(OPEN_CLIP))
    content["model_cfg"]["text_cfg"] |= {"pool_type": "eos", "eos_id": 2}
    config = open_clip_config(content)
    assert (config.text.pooling, config.text.eos_token_id) == ("end_token", 2)
    assert config.to_hf()["model_type"] == "metaclip_2"


def test_weights_in_bfloat16_are_held_as_float32(tmp_path):
    folder = shutil.copytree(TINY_CLIP, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    half = {key: value.astype(ml_dtypes.bfloat16) for key, value in weights.items()}
    save_file(half, folder / "model.safetensors")
    for key, value in clip_to_hf(load_tower(folder)[0]).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, half[key].astype(np.float32))


def test_a_siglip_without_its_pooling_head_is_rejected():
    config = CONFIGS["siglip"] | {"vision_config": {"vision_use_head": False}}
    config["text_config"] = {}
    with pytest.raises(ValueError, match="vision_use_head is false; needed is true"):
        CLIPConfig.from_hf(config)


def test_parts_that_do_not_go_together_are_rejected(siglip, tiny):
    with pytest.raises(ValueError, match="'attention' goes with 'last_token'"):
        CLIPConfig(siglip.config.vision, tiny[0].config.text, 32)
    with pytest.raises(ValueError, match="hidden_size 32 is not its text's projection_size 40"):
        CLIPConfig(siglip.config.vision, siglip.config.text, 40)
    with pytest.raises(ValueError, match=r"vision pooling is 'max'; known are: class_token, att"):
        CLIPVisionConfig(50, 8, 32, 2, 2, 64, "max")


def test_siglips_tokenizer_is_a_sentencepiece_model(tmp_path):
    """As the files of google/siglip-base-patch16-224: lower case, no punctuation, padded."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="as requirements-dev.txt has it")
    model = io.BytesIO()
    texts = [f"a photo of a {noun}" for noun in ("red circle", "blue star", "green square")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=30, minloglevel=2,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64,
        "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
        "model_input_names": ["input_ids"],
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    tokens = tokenize(tokenizer, ["a red star", "A red, STAR!"], 64)
    np.testing.assert_array_equal(tokens[0], tokens[1])
    words = list(tokens[0]).index(1)
    assert (tokens[0, words:] == 1).all() and words < 20
    tokenizer.save_pretrained(tmp_path / "saved")
    again = tokenize(load_tokenizer(tmp_path / "saved"), ["a red star"], 64)
    np.testing.assert_array_equal(again, tokens[:1])


def test_a_tokenizer_that_cannot_be_loaded_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"no model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.raises(ValueError, match="the tokenizer cannot be loaded: Couldn"):
        load_tokenizer(tmp_path)

    def missing(*_, **__):
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", missing)
    with pytest.raises(ValueError, match="which needs: pip install sentencepiece"):
        load_tokenizer(tmp_path)
