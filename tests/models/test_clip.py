"""CLIPs of every kind agree with transformers and open_clip layer by layer.

The golden file was made by tests/golden/make_clip.py (torch, transformers; versions inside).
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.clip import CLIP, CLIPConfig, normalize_images
from moclip_jax.models.clip_config import CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.image_preprocessing import CLIP_MEAN, CLIP_STD
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf
from moclip_jax.pretrained.open_clip import clip_from_open_clip, open_clip_config
from tests.golden.clip_recipe import CONFIGS, make_images, make_tokens, make_weight
from tests.hidden_states import hidden_states

GOLDEN = Path(__file__).parents[1] / "golden" / "clip.npz"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TINY = CLIPConfig(
    CLIPVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, num_layers=2, num_heads=2, mlp_size=32
    ),
    CLIPTextConfig(
        vocab_size=20,
        max_length=8,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        mlp_size=32,
        eos_token_id=19,
    ),
    projection_dim=12,
)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    # Jitted, and made once: drawing the parameters takes seconds.
    return nnx.jit(lambda: CLIP(TINY, rngs=nnx.Rngs(0)))()


@dataclasses.dataclass
class Case:
    golden: dict
    clip: CLIP
    images: jax.Array  # [N, H, W, 3]
    tokens: jax.Array


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request) -> Case:
    name, config = request.param, CONFIGS[request.param]
    with np.load(GOLDEN) as file:
        golden = {key.split("/")[1]: file[key] for key in file if key.startswith(name + "/")}
    shapes = json.loads(str(golden["shapes"]))
    weights = {key: make_weight(name, key, tuple(shape)) for key, shape in shapes.items()}
    images, tokens = make_images(config), make_tokens(config)
    checksum = sum(value.sum(dtype=np.float64) for value in weights.values())
    checksum += images.sum(dtype=np.float64) + tokens.sum()
    assert checksum == pytest.approx(golden["checksum"], abs=1e-6), "the recipe has changed"
    if "model_cfg" in config:
        clip = clip_from_open_clip(open_clip_config(config), weights)
    else:
        clip = clip_from_hf(CLIPConfig.from_hf(config), weights)
    return Case(golden, clip, jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.asarray(tokens))


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_hidden_states_agree_with_torch_layer_by_layer(case, tower):
    inputs = case.images if tower == "vision" else case.tokens
    expected = case.golden[f"{tower}_states"]
    states = hidden_states(getattr(case.clip, tower), inputs)
    assert len(states) == len(expected)
    for state, golden in zip(states, expected, strict=True):
        np.testing.assert_allclose(state, golden, **CLOSE)
    # The scan is the same chain of blocks.
    scanned = jax.jit(getattr(case.clip, tower).encoder)(states[0])
    np.testing.assert_allclose(scanned, expected[-1], **CLOSE)


def test_embeddings_and_logits_agree_with_torch(case):
    @jax.jit
    def run(images, tokens):
        clip = case.clip
        return clip.encode_image(images), clip.encode_text(tokens), clip(images, tokens)

    image_embeds, text_embeds, logits = run(case.images, case.tokens)
    np.testing.assert_allclose(image_embeds, case.golden["image_embeds"], **CLOSE)
    np.testing.assert_allclose(text_embeds, case.golden["text_embeds"], **CLOSE)
    np.testing.assert_allclose(logits, case.golden["logits_per_image"], **CLOSE)


def test_pooled_features_are_torchs_class_token_after_the_last_norm(case):
    config = case.clip.config
    if config.is_siglip:
        with pytest.raises(ValueError, match="a SigLIP has no projection; choose 'projected'"):
            dataclasses.replace(config, features="pooled")
        return
    pooled = nnx.merge(*nnx.split(case.clip))
    pooled.config = dataclasses.replace(config, features="pooled")
    token = case.golden["vision_states"][-1][:, 0].astype(np.float64)
    norm = case.clip.vision.post_norm
    token -= token.mean(axis=-1, keepdims=True)
    token /= np.sqrt((token**2).mean(axis=-1, keepdims=True) + config.layer_norm_eps)
    features = jax.jit(pooled.image_features)(case.images)
    assert features.shape[-1] == pooled.config.num_features == config.vision.hidden_size
    np.testing.assert_allclose(
        features, token * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...]), **CLOSE
    )
    np.testing.assert_allclose(pooled.embeddings(features), case.golden["image_embeds"], **CLOSE)


def test_padding_and_text_after_the_end_do_not_matter(case):
    """The embedding is that of the tokens up to the first end."""
    text = jax.jit(case.clip.text)
    pooling = case.clip.text.config.pooling
    if pooling == "last_token":  # SigLIP sees the padding, and was trained so.
        differ = text(jnp.array([[62, 5, 7, 40]])) - text(jnp.array([[62, 5, 7, 40, 1]]))
        assert jnp.abs(differ).max() > 1e-2
        return
    end = 63 if pooling == "highest_id" else case.clip.text.config.eos_token_id
    alone = text(jnp.array([[62, 5, 7, end]]))
    padded = text(jnp.array([[62, 5, 7, end, end, 4, 9, end]]))
    np.testing.assert_allclose(alone, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "vision", "text"),
    [
        ("vit_b32", 151_277_313, 87_849_216, 63_428_096),
        ("vit_b16", 149_620_737, 86_192_640, 63_428_096),
        ("vit_l14", 427_616_513, 303_966_208, 123_650_304),
    ],
)
def test_parameters_and_shapes_of_the_full_sizes(name, parameters, vision, text):
    """Counts are those of OpenAI's models: towers with their projections, and the logit scale."""
    config = CLIPConfig.named(name)
    clip = nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0)))

    def count(module):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module)))

    assert (count(clip), count(clip.vision), count(clip.text)) == (parameters, vision, text)
    assert parameters == vision + text + 1
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((3, 77), jnp.int32)
    graph, state = nnx.split(clip)
    run = {
        "image": lambda state: nnx.merge(graph, state).encode_image(jnp.zeros(images.shape)),
        "text": lambda state: nnx.merge(graph, state).encode_text(jnp.zeros(tokens.shape, int)),
    }
    assert jax.eval_shape(run["image"], state).shape == (2, config.projection_dim)
    assert jax.eval_shape(run["text"], state).shape == (3, config.projection_dim)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(clip):
    half_config = dataclasses.replace(TINY, dtype=jnp.bfloat16)
    abstract = nnx.eval_shape(lambda: CLIP(half_config, rngs=nnx.Rngs(0)))
    half = nnx.merge(nnx.graphdef(abstract), nnx.state(clip))
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    tokens = jnp.array([[1, 2, 3, 19], [1, 4, 19, 19]])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(abstract)))
    embedded = (
        jax.eval_shape(embed, inputs)
        for embed, inputs in ((half.vision.embed, images), (half.text.embed, tokens))
    )
    assert {states.dtype for states in embedded} == {jnp.dtype("bfloat16")}
    for method, inputs in (("encode_image", images), ("encode_text", tokens)):
        exact = jax.jit(getattr(clip, method))(inputs)
        rounded = jax.jit(getattr(half, method))(inputs)
        assert rounded.dtype == jnp.float32
        error = jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact)
        assert 0 < error < 0.03  # bfloat16 has 8 bits


def test_layers_and_towers_start_from_different_numbers(clip):
    vision, text = clip.vision.encoder.layers, clip.text.encoder.layers
    assert jnp.any(vision.qkv.kernel[0] != vision.qkv.kernel[1])
    assert jnp.any(vision.qkv.kernel[...] != text.qkv.kernel[...])


def test_a_tower_can_be_dropped(clip):
    images = jnp.ones((1, 16, 16, 3))
    before = jax.jit(clip.encode_image)(images)
    alone = nnx.clone(clip)
    del alone.text
    assert not any("text" in path for path, _ in nnx.to_flat_state(nnx.state(alone)))
    np.testing.assert_array_equal(jax.jit(alone.encode_image)(images), before)


def test_normalize_images():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3) * 10
    expected = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    result = normalize_images(images)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        normalize_images(images / 255)


def test_wrong_inputs_are_named(clip):
    with pytest.raises(ValueError, match=r"\(1, 32, 32, 3\).*16, 16"):
        clip.encode_image(jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"9 tokens.*at most 8"):
        clip.encode_text(jnp.zeros((1, 9), int))
    with pytest.raises(ValueError, match="relu"):
        dataclasses.replace(TINY, activation="relu")
    with pytest.raises(ValueError, match="num_heads 3"):
        dataclasses.replace(TINY.vision, num_heads=3)
    with pytest.raises(ValueError, match=r"vit_b99.*vit_b32"):
        CLIPConfig.named("vit_b99")


def test_config_goes_to_hugging_face_and_back():
    for config in (TINY, *map(CLIPConfig.named, ("vit_b32", "vit_b16", "vit_l14"))):
        assert CLIPConfig.from_hf(config.to_hf()) == config


def test_config_fields_that_are_left_out_have_the_defaults_of_transformers():
    assert CLIPConfig.from_hf({"model_type": "clip"}) == CLIPConfig.named("vit_b32")
    # As OpenAI's files are: the older key rules where both are there, None says nothing.
    older = {
        "model_type": "clip",
        "vision_config": {"patch_size": 8},
        "vision_config_dict": {"patch_size": 16},
        "text_config_dict": None,
    }
    assert CLIPConfig.from_hf(older) == CLIPConfig.named("vit_b16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "blip"}, "blip"),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act.*differs"),
        ({"vision_config": {"num_channels": 4}}, "num_channels is 4"),
        ({"vision_config": {"image_size": [224, 200]}}, "image_size"),
    ],
)
def test_configs_of_other_models_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        CLIPConfig.from_hf({"model_type": "clip"} | change)
