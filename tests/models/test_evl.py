"""EVL's decoder against torch's numbers, and the tokens that it reads against CLIP's own layers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moclip_jax.config import default_config, fusion_config
from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.evl import EVLHead
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.heads import build_head
from moclip_jax.models.inference import clip_for_inference
from moclip_jax.training.optimizers import head_optimizer
from tests.golden import evl_recipe as recipe
from tests.reference.evl_names import set_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "evl.npz"
CONFIG = FusionConfig(
    motion_features=recipe.MOTION,
    appearance_features=4,
    hidden=recipe.HIDDEN,
    num_classes=recipe.CLASSES,
    dropout=0.5,
    head="evl",
    num_segments=recipe.SEGMENTS,
    num_frames=recipe.FRAMES,
    token_layers=recipe.LAYERS,
    token_width=recipe.WIDTH,
    token_grid=recipe.GRID,
    token_heads=recipe.HEADS,
)


@pytest.fixture
def head() -> EVLHead:
    head = build_head(CONFIG, rngs=nnx.Rngs(0))
    assert isinstance(head, EVLHead)
    return head


def test_logits_and_twenty_steps_are_torchs(head):
    golden = np.load(GOLDEN)
    names = [name.removeprefix("weights/") for name in golden.files if "/" in name]
    set_weights(head, {name: golden[f"weights/{name}"] for name in names})
    graph, params = nnx.split(head)
    optimizer = head_optimizer(learning_rate=recipe.LEARNING_RATE)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        def loss_fn(params):
            logits = nnx.merge(graph, params)(batch["motion"], batch["tokens"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), logits

        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, logits

    for number, batch in enumerate(recipe.make_batches()):
        params, state, loss, logits = step(params, state, batch)
        np.testing.assert_allclose(logits, golden["logits"][number], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(loss, golden["losses"][number], rtol=1e-5, atol=1e-5)


def test_the_decoder_sees_the_order_of_the_frames_and_drops_in_training_alone(head):
    golden = np.load(GOLDEN)
    names = [name.removeprefix("weights/") for name in golden.files if "/" in name]
    set_weights(head, {name: golden[f"weights/{name}"] for name in names})
    batch = recipe.make_batches()[0]
    motion, tokens = jnp.asarray(batch["motion"]), jnp.asarray(batch["tokens"])
    logits = nnx.jit(lambda head, *features, rngs=None: head(*features, rngs=rngs))
    forth = logits(head, motion, tokens)
    assert np.abs(logits(head, motion, tokens[:, ::-1]) - forth).max() > 1e-3
    drawn = logits(head, motion, tokens, rngs=nnx.Rngs(dropout=0))
    assert np.array_equal(drawn, logits(head, motion, tokens, rngs=nnx.Rngs(dropout=0)))
    assert not np.array_equal(drawn, forth)
    with pytest.raises(ValueError, match="EVLDecoder needs tokens"):
        head(motion, tokens[:, :2])


def test_tokens_are_those_of_the_last_layers_and_the_embedding_is_the_same():
    config = CLIPConfig(
        CLIPVisionConfig(16, 8, 16, 3, 2, 32), CLIPTextConfig(20, 8, 16, 1, 2, 32, 19), 12
    )
    clip = nnx.jit(lambda: CLIP(config, rngs=nnx.Rngs(0)))()
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    with_tokens = nnx.jit(lambda clip, images: clip.image_features_with_tokens(images, 2))
    embeds, tokens = with_tokens(clip, images)
    np.testing.assert_allclose(embeds, clip.encode_image(images), rtol=1e-5, atol=1e-6)
    assert tokens.shape == (2, 2, 3, 5, 16)
    # By hand: what leaves a layer enters the next, whose norm and product give query and key.
    x = clip.vision.encoder.block(0)(clip.vision.embed(images))
    for number, layer in enumerate((1, 2)):
        block = clip.vision.encoder.block(layer)
        query, key, _ = jnp.split(block.qkv(block.norm1(x)), 3, axis=-1)
        x = block(x)
        for got, expected in zip(tokens[:, number].swapaxes(0, 1), (x, query, key), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    _, frozen = with_tokens(clip_for_inference(clip, jnp.float32), images)
    np.testing.assert_allclose(frozen, tokens, rtol=1e-4, atol=1e-5)


def test_more_layers_than_the_tower_has_are_named():
    config = default_config()
    config.fusion.head, config.fusion.token_layers = "evl", 13
    with pytest.raises(ValueError, match=r"fusion.token_layers=13: the image tower of config.clip"):
        fusion_config(config, motion_features=8, clip=CLIPConfig.named("vit_b32"), num_classes=3)


def test_a_tower_without_a_class_token_is_rejected():
    config = default_config()
    config.fusion.head = "evl"
    siglip = CLIPConfig.named("siglip_b16")
    with pytest.raises(ValueError, match=r"head='evl' reads a class token, which SigLIP's"):
        fusion_config(config, motion_features=8, clip=siglip, num_classes=3)
    assert fusion_config(config, motion_features=0, clip=siglip, num_classes=3).head == "mean"
