"""`MoCLIP` is its three parts, one after the other, and has the published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.inference.program import BATCH, Programs, compile_program
from moclip_jax.models.clip import normalize_images
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.flops import count_parameters
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.inference import moclip_for_inference
from moclip_jax.models.moclip import MoCLIP, MoCLIPConfig, fused_logits
from moclip_jax.models.motion_network import MotionNetworkConfig

CLASSES = 7


def tiny_config() -> MoCLIPConfig:
    backbone = EfficientNetConfig.named("tiny", in_channels=2, num_classes=CLASSES)
    clip = CLIPConfig(
        CLIPVisionConfig(16, 8, 16, 2, 2, 32), CLIPTextConfig(20, 8, 16, 1, 2, 32, 19), 12
    )
    fusion = FusionConfig(backbone.num_features, 12, 24, CLASSES)
    return MoCLIPConfig(MotionNetworkConfig(backbone), clip, fusion)


@pytest.fixture(scope="module")
def model() -> MoCLIP:
    return nnx.jit(lambda: MoCLIP(tiny_config(), rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    motion = rng.integers(0, 256, (2, 3, 4, 32, 32, 2), np.uint8)
    images = rng.integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
    return jnp.asarray(motion), jnp.asarray(images)


@nnx.jit
def forward(model: MoCLIP, motion: jax.Array, images: jax.Array) -> jax.Array:
    return model(motion, images)


@pytest.fixture(scope="module")
def logits(model, inputs) -> jax.Array:
    return forward(model, *inputs)


def test_the_logits_are_those_of_the_parts_composed_by_hand_bit_for_bit(model, inputs, logits):
    @nnx.jit
    def by_hand(model, motion, images):
        def view(fields):
            return model.motion.features(fields)

        features = jax.lax.map(view, jnp.moveaxis(motion, 1, 0))
        embeds = model.clip.encode_image(normalize_images(images.reshape(-1, 16, 16, 3)))
        motion = jnp.moveaxis(features, 0, 1).mean(axis=1).mean(axis=1)
        return model.head(motion, embeds.reshape(2, 2, -1).mean(axis=1))

    assert logits.shape == (2, CLASSES) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, by_hand(model, *inputs))


def test_labels_are_compared_with_the_embedding_whatever_the_head_reads(model, inputs):
    clip = dataclasses.replace(model.config.clip, features="pooled")
    fusion = dataclasses.replace(model.config.fusion, appearance_features=16)
    config = dataclasses.replace(model.config, clip=clip, fusion=fusion)
    pooled = nnx.jit(lambda: MoCLIP(config, rngs=nnx.Rngs(1)))()
    nnx.update(pooled.clip, nnx.state(model.clip))
    shapes = {"motion": inputs[0].shape, "images": inputs[1].shape}
    outputs = [compile_program(m, shapes, None)(*inputs) for m in (model, pooled)]
    assert not np.allclose(outputs[0][0], outputs[1][0])
    np.testing.assert_allclose(outputs[0][1], outputs[1][1], rtol=1e-5, atol=1e-6)


def test_programs_share_the_arrays_and_are_opened_from_their_files(model, inputs, tmp_path):
    motion, images = inputs
    views = [{"motion": motion[n : n + 1], "images": images[n : n + 1]} for n in range(2)]
    shapes = {name: each.shape[1:] for name, each in views[0].items()}
    made = Programs(lambda: model, shapes, tmp_path / "program")
    expected = made.outputs(views[:1]) + made.outputs(views)
    assert made.get(BATCH).arrays is made.get(1).arrays

    def not_needed():
        raise AssertionError

    opened = Programs(not_needed, shapes, tmp_path / "program")
    got = opened.outputs(views[:1]) + opened.outputs(views)
    assert opened.get(BATCH).arrays is opened.get(1).arrays
    assert len(got) == 3
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    # The file of the batch does not repeat the arrays, so it is of no use without the other.
    with pytest.raises(AssertionError):
        Programs(not_needed, shapes, tmp_path / "program").get(BATCH)


def test_features_kept_on_disk_give_the_models_logits(model, inputs, logits):
    """As training keeps them: both networks in one program, the head in another."""

    @nnx.jit
    def features(model, motion, images):
        return model.motion_features(motion), model.appearance_features(images)[0]

    motion, appearance = map(np.asarray, features(model, *inputs))
    assert motion.shape == (2, 3, 4, model.config.motion.num_features)
    assert appearance.shape == (2, 2, 12)
    got = fused_logits(model.head, jnp.asarray(motion), jnp.asarray(appearance))
    np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-6)


def test_the_form_for_inference_gives_the_same_logits(model, inputs, logits):
    frozen = moclip_for_inference(model, jnp.float32)
    assert not hasattr(frozen.clip, "text") and hasattr(model.clip, "text")
    np.testing.assert_allclose(forward(frozen, *inputs), logits, rtol=1e-4, atol=1e-5)


def test_the_published_model_has_its_shapes_and_sizes():
    model = nnx.eval_shape(lambda: MoCLIP(MoCLIPConfig.published(), rngs=nnx.Rngs(0)))
    assert count_parameters(model.head) == 969_829
    assert count_parameters(model.clip) == 151_277_313  # OpenAI's ViT-B/32.
    graph, state = nnx.split(model)
    logits = jax.eval_shape(
        lambda state, motion, images: nnx.merge(graph, state)(motion, images),
        state,
        jax.ShapeDtypeStruct((2, 10, 25, 224, 224, 2), jnp.uint8),
        jax.ShapeDtypeStruct((2, 1, 224, 224, 3), jnp.uint8),
    )
    assert (logits.shape, logits.dtype) == ((2, 101), jnp.float32)


@pytest.mark.parametrize("field", ["motion_features", "appearance_features", "num_classes"])
def test_a_head_of_other_sizes_is_named(field):
    config = tiny_config()
    with pytest.raises(ValueError, match=rf"MoCLIPConfig.fusion.{field} must be "):
        MoCLIPConfig(config.motion, config.clip, dataclasses.replace(config.fusion, **{field: 5}))
