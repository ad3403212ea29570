"""State dicts of the published PyTorch code become our networks, and nothing is lost or guessed."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.pretrained.published import load_published_fusion, load_published_motion
from moclip_jax.pretrained.timm_efficientnet import timm_arrays

CLASSES = 5


@pytest.fixture(scope="module")
def network() -> MotionNetwork:
    config = EfficientNetConfig.named("tiny", in_channels=2, num_classes=CLASSES)
    made = nnx.jit(lambda: MotionNetwork(MotionNetworkConfig(config), rngs=nnx.Rngs(0)))()
    made.input_norm.mean.set_value(made.input_norm.mean[...] + 0.25)
    return made


def motion_dict(network: MotionNetwork) -> dict[str, np.ndarray]:
    """The network under the published names."""
    norm = network.input_norm
    arrays = {f"base_model.{name}": array for name, array in timm_arrays(network.backbone).items()}
    arrays |= {
        "data_bn.weight": np.array(norm.scale[...]),
        "data_bn.bias": np.array(norm.bias[...]),
        "data_bn.running_mean": np.array(norm.mean[...]),
        "data_bn.running_var": np.array(norm.var[...]),
        "data_bn.num_batches_tracked": np.array(7),
        "base_model.bn1.num_batches_tracked": np.array(7),
    }
    return arrays


def fusion_dict(network: MotionNetwork, head: FusionHead) -> dict[str, np.ndarray]:
    arrays = {
        f"mv_feature_extractor.{name}": array
        for name, array in motion_dict(network).items()
        if ".classifier." not in name
    }
    for layer, number in ((head.hidden, 0), (head.classifier, 3)):
        arrays[f"fusion_classifier.{number}.weight"] = np.array(layer.kernel[...].T)
        arrays[f"fusion_classifier.{number}.bias"] = np.array(layer.bias[...])
    return arrays


@pytest.fixture(scope="module")
def head() -> FusionHead:
    config = FusionConfig(
        motion_features=320, appearance_features=24, hidden=16, num_classes=CLASSES
    )
    return FusionHead(config, rngs=nnx.Rngs(1))


def same(one: nnx.Module, other: nnx.Module) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one), nnx.state(other))


def test_a_motion_network_from_a_file_is_the_one_that_was_saved(network, tmp_path):
    path = tmp_path / "mv_tsn_efficientnet_best.safetensors"
    safetensors.numpy.save_file(motion_dict(network), path)
    same(load_published_motion(path, variant="tiny"), network)


def test_the_fusion_keeps_the_statistics_that_its_head_was_trained_with(network, head):
    drifted = nnx.clone(network)
    drifted.input_norm.mean.set_value(drifted.input_norm.mean[...] + 0.5)
    loaded, loaded_head = load_published_fusion(
        motion_dict(network), fusion_dict(drifted, head), variant="tiny"
    )
    same(loaded, drifted)
    same(loaded_head, head)
    assert loaded_head.config == head.config


def test_state_dicts_that_do_not_belong_together_are_rejected(network, head):
    other = nnx.clone(network)
    other.input_norm.scale.set_value(other.input_norm.scale[...] + 1)
    with pytest.raises(ValueError, match=r"not trained on.*data_bn.weight differs"):
        load_published_fusion(motion_dict(other), fusion_dict(network, head), variant="tiny")
    part = fusion_dict(network, head)
    del part["mv_feature_extractor.data_bn.bias"]
    with pytest.raises(ValueError, match=r"mv_feature_extractor.data_bn.bias is missing"):
        load_published_fusion(motion_dict(network), part, variant="tiny")
    narrow = fusion_dict(network, head)
    narrow["fusion_classifier.0.bias"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"fusion_classifier.0.* has \(3,\), must be \(16,\)"):
        load_published_fusion(motion_dict(network), narrow, variant="tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"base_model.extra.weight": np.ones(2)}, "unused: extra.weight"),
        (lambda d: d | {"extra": np.ones(2)}, r"unused arrays \['extra'\]"),
        (lambda d: d | {"data_bn.bias": np.ones(3)}, "data_bn.bias is missing or not of length 2"),
        (
            lambda d: {k: v for k, v in d.items() if k != "data_bn.running_var"},
            r"missing \['data_bn.running_var'\]",
        ),
        (
            lambda d: {k: v for k, v in d.items() if "classifier.weight" not in k},
            "classifier.weight is missing or not a matrix",
        ),
        (lambda d: {"weight": np.ones(2)}, "not a motion network's state dict"),
    ],
)
def test_what_does_not_fit_is_named(network, change, message):
    with pytest.raises(ValueError, match=message):
        load_published_motion(change(motion_dict(network)), variant="tiny")


def test_pickles_are_rejected_with_the_remedy(tmp_path):
    path = tmp_path / "fusion_best_model.pth"
    path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"not a .safetensors file.*pickle.*safetensors.torch.save_file"
    ):
        load_published_motion(path)
