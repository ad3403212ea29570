"""Cost beside accuracy, at full size, against the figures of the paper and of counting by hand."""

import jax
import numpy as np
import pytest
from flax import nnx

from moclip_jax.config import motion_network_config
from moclip_jax.configs import ucf101
from moclip_jax.models.clip import CLIP, CLIPConfig
from moclip_jax.models.flops import count_parameters
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.training.evaluate import (
    cost_of_head,
    cost_of_one_view,
    cost_of_views,
    fused_logits,
    motion_logits,
)
from moclip_jax.training.features import Features


@pytest.fixture(scope="module")
def full_size() -> tuple[MotionNetwork, CLIP]:
    config = ucf101.get_config()
    return nnx.eval_shape(
        lambda: (
            MotionNetwork(motion_network_config(config.motion, 101), rngs=nnx.Rngs(0)),
            CLIP(CLIPConfig.named("vit_b32"), rngs=nnx.Rngs(0)),
        )
    )


def one_video(segments: int = 25, frames: int = 1) -> Features:
    motion = np.zeros((1, 1, segments, 1280), np.float32)
    return Features(motion, np.zeros((1, frames, 512), np.float32), np.zeros(1, np.int32))


TOKENS, WIDTH, LAYERS = 49 + 1, 768, 12


def _clip_b32_by_hand() -> int:
    projections = TOKENS * WIDTH * (4 * WIDTH + 2 * 4 * WIDTH)
    attention = 2 * TOKENS * TOKENS * WIDTH
    return 49 * 32 * 32 * 3 * WIDTH + LAYERS * (projections + attention) + WIDTH * 512


def _left_out_of_the_last_block() -> int:
    """Of all tokens but the first: queries' products, the layer after attention, the MLP."""
    return (TOKENS - 1) * (2 * TOKENS * WIDTH + WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH)


def test_one_clip_image_costs_what_counting_by_hand_gives(full_size):
    cost = cost_of_one_view(ucf101.get_config(), *full_size)
    assert _clip_b32_by_hand() / 1e9 == pytest.approx(4.41, abs=0.01)
    assert cost["appearance"] == _clip_b32_by_hand() - _left_out_of_the_last_block()


@pytest.mark.parametrize(
    ("segments", "crops", "gmacs"), [(1, 1, 4.41 + 0.39), (32, 1, 16.9), (25, 10, 102)]
)
def test_a_video_costs_what_the_paper_says_for_the_views_it_is_measured_with(
    full_size, segments, crops, gmacs
):
    config = ucf101.get_config()
    config.evaluation.num_segments, config.evaluation.crops = segments, crops
    cost = cost_of_views(config, cost_of_one_view(config, *full_size))
    head = nnx.eval_shape(lambda: FusionHead(FusionConfig(), rngs=nnx.Rngs(0)))
    total = cost["motion"] + cost["appearance"] + cost_of_head(head, one_video())
    # The paper counts CLIP's last block whole.
    total += _left_out_of_the_last_block()
    # It rounds B0 to 0.39 G, which 32 or 250 views add up.
    assert total / 1e9 == pytest.approx(gmacs, rel=0.03)


def test_more_frames_cost_more(full_size):
    config = ucf101.get_config()
    one = cost_of_one_view(config, *full_size)
    config.clip.frame = "uniform_8"
    assert cost_of_views(config, one)["appearance"] == 8 * one["appearance"]


def test_the_published_head_has_969829_parameters():
    head = nnx.eval_shape(lambda: FusionHead(FusionConfig(), rngs=nnx.Rngs(0)))
    assert count_parameters(head) == 969_829
    assert cost_of_head(head, one_video()) == (1280 + 512) * 512 + 512 * 101


def test_logits_of_the_mean_feature_are_the_mean_of_the_logits(finished_run):
    from moclip_jax.inference.recognizer import load

    network = load(finished_run).model.motion
    rng = np.random.default_rng(0)
    width = network.backbone.config.num_features
    features = rng.normal(size=(3, 2, 4, width)).astype(np.float32)
    expected = network.backbone.classifier(features).mean(axis=(1, 2))
    np.testing.assert_allclose(motion_logits(network, features), expected, atol=1e-5)


def test_a_head_on_clip_alone_does_not_see_motion():
    head = FusionHead(
        FusionConfig(motion_features=0, appearance_features=4, hidden=8, num_classes=3),
        rngs=nnx.Rngs(0),
    )
    appearance, label = np.ones((2, 1, 4), np.float32), np.zeros(2, np.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    one, other = (
        fused_logits(
            head, Features(np.asarray(jax.random.normal(key, (2, 1, 3, 5))), appearance, label)
        )
        for key in keys
    )
    np.testing.assert_array_equal(one, other)
