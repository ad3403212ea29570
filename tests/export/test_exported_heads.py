"""Every head, and Fisher vectors as motion network, give the model's logits when exported."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from flax import nnx

from moclip_jax.export.saved_model import export_saved_model, export_stablehlo
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fisher_vectors import FisherConfig, Scale
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.moclip import MoCLIP, MoCLIPConfig
from moclip_jax.models.motion_network import MotionNetworkConfig

CLASSES, SEGMENTS, FRAMES = 7, 4, 2
CLIP = CLIPConfig(
    CLIPVisionConfig(16, 8, 16, 2, 2, 32), CLIPTextConfig(20, 8, 16, 1, 2, 32, 19), 12
)
HEADS = {
    "temporal": {"num_segments": SEGMENTS},
    "attention": {"num_segments": SEGMENTS, "num_frames": FRAMES},
    "evl": {
        "num_frames": FRAMES, "token_layers": 2, "token_width": 16, "token_grid": 2,
        "token_heads": 2,
    },
}  # fmt: skip


def config_of(name: str) -> tuple[MoCLIPConfig, tuple[int, ...]]:
    """Return a small model with a head, or with Fisher vectors, and the shape of its motion."""
    if name == "fisher":
        scale = Scale(1, 2, 1)
        motion = FisherConfig(CLASSES, 6, components=2, descriptor_dim=3, scales=(scale,))
        fusion = FusionConfig(motion.num_features, 12, 8, CLASSES)
        return MoCLIPConfig(motion, CLIP, fusion), (1, SEGMENTS, scale.frames, 6, 6, 2)
    backbone = EfficientNetConfig.named("tiny", in_channels=2, num_classes=CLASSES)
    network = MotionNetworkConfig(backbone)
    if name == "temporal":
        network = dataclasses.replace(network, head="temporal", num_segments=SEGMENTS)
    fusion = FusionConfig(backbone.num_features, 12, 8, CLASSES, head=name, **HEADS[name])
    return MoCLIPConfig(network, CLIP, fusion), (1, SEGMENTS, 32, 32, 2)


class Pooled(nnx.Module):
    """Stands for the EfficientNet, whose export `test_saved_model.py` tests."""

    def __init__(self, num_features: int, rngs: nnx.Rngs):
        self.project = nnx.Linear(2, num_features, rngs=rngs)
        self.classifier = nnx.Linear(num_features, CLASSES, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.project(x.mean(axis=(1, 2)))


@pytest.fixture(scope="module", params=[*HEADS, "fisher"])
def recognizer(request) -> SimpleNamespace:
    """What an export reads of a `Recognizer`."""
    config, motion = config_of(request.param)

    def build() -> MoCLIP:
        model = MoCLIP(config, rngs=nnx.Rngs(0))
        if request.param != "fisher":
            model.motion.backbone = Pooled(config.motion.num_features, nnx.Rngs(0))
        return model

    model = nnx.eval_shape(build)
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.Array:
        """Return no zeros, which would hide a part that is left out."""
        values = rng.normal(scale=0.5, size=x.shape).astype(np.float32)
        positive = {"var", "variances", "weights"} & {getattr(key, "key", "") for key in path}
        return jax.device_put(0.5 + np.abs(values) if positive else values)

    nnx.update(model, jax.tree_util.tree_map_with_path(draw, nnx.state(model)))
    return SimpleNamespace(
        model=model,
        input_shapes={"motion": motion, "images": (FRAMES, 16, 16, 3)},
        class_names=[f"class {number}" for number in range(CLASSES)],
        multi_label=False,
    )


@pytest.fixture(scope="module")
def inputs(recognizer) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: rng.integers(0, 256, (3, *shape)).astype(np.uint8)
        for name, shape in recognizer.input_shapes.items()
    }


@pytest.fixture(scope="module")
def expected(recognizer, inputs) -> np.ndarray:
    forward = nnx.jit(lambda model, motion, images: model(motion, images))
    logits = np.asarray(forward(recognizer.model, **inputs))
    assert np.ptp(logits, axis=0).max() > 1e-3
    return logits


def test_stablehlo_gives_the_logits_of_the_model(recognizer, inputs, expected, tmp_path: Path):
    export_stablehlo(recognizer, tmp_path)
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    parameters = safetensors.numpy.load_file(tmp_path / "parameters.safetensors")
    outputs = jax.jit(program.call)(parameters, inputs)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
    described = json.loads((tmp_path / "inputs.json").read_text())
    assert described["inputs"]["motion"] == ["b", *recognizer.input_shapes["motion"]]


def test_saved_model_gives_the_logits_of_the_model(recognizer, inputs, expected, tmp_path: Path):
    export_saved_model(recognizer, tmp_path)
    signature = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    outputs = signature(**{name: tf.constant(values) for name, values in inputs.items()})
    np.testing.assert_allclose(outputs["logits"].numpy(), expected, rtol=1e-4, atol=1e-5)
