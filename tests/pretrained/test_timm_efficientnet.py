"""Loading timm's weights: one to one, in every form, and loud about everything that does not fit.

That the arrays land in the right places is proved by tests/models/test_efficientnet.py, which runs
models loaded here against timm.
"""

import json
import logging as std_logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.pretrained.timm_efficientnet import (
    load_efficientnet,
    save_efficientnet,
    timm_arrays,
)
from tests.pretrained.torch_zip import save_arrays


@pytest.fixture(scope="module")
def model():
    return EfficientNet(EfficientNetConfig.named("tiny", num_classes=6), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def arrays(model):
    return timm_arrays(model)


def load(source, *args, **options):
    return load_efficientnet(source, *args, variant="tiny", **options)


def assert_same(a, b):
    for (path, x), (other, y) in zip(
        nnx.to_flat_state(nnx.state(a)), nnx.to_flat_state(nnx.state(b)), strict=True
    ):
        assert path == other
        assert np.array_equal(x[...], y[...]), path


def test_round_trip_through_a_file_a_folder_and_a_mapping(model, arrays, tmp_path):
    save_efficientnet(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_tiny"}))
    for source in (tmp_path / "model.safetensors", str(tmp_path), arrays):
        assert_same(load(source, num_classes=6), model)


def test_full_size_b0_survives_a_file(tmp_path):
    model = EfficientNet(EfficientNetConfig.named("b0"), rngs=nnx.Rngs(0))
    path = tmp_path / "b0.safetensors"
    save_efficientnet(model, path)
    stored = safetensors.numpy.load_file(path)
    # timm's efficientnet_b0 has 360 entries, of which 49 are counters num_batches_tracked.
    assert len(stored) == 311
    assert stored["blocks.1.0.conv_dw.weight"].shape == (96, 1, 3, 3)
    assert_same(load_efficientnet(path), model)


def test_counters_are_dropped_and_said_so(arrays, model, caplog):
    with caplog.at_level(std_logging.INFO, logger="absl"):
        loaded = load(arrays | {"bn1.num_batches_tracked": np.array(7)}, num_classes=6)
    assert "1 counters *.num_batches_tracked dropped" in caplog.text
    assert_same(loaded, model)


def test_half_precision_sources_become_float32(arrays):
    loaded = load({key: a.astype(np.float16) for key, a in arrays.items()}, num_classes=6)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(loaded))} == {jnp.dtype("float32")}


def test_two_channel_stem_is_the_rgb_kernel_averaged_and_repeated(arrays, model):
    loaded = load(arrays, 2, 6)
    mean = np.asarray(model.stem.kernel[...]).mean(axis=2)
    for channel in range(2):
        np.testing.assert_allclose(loaded.stem.kernel[:, :, channel], mean, rtol=1e-6)
    assert np.array_equal(loaded.head.kernel[...], model.head.kernel[...])


def test_another_number_of_classes_needs_rngs_and_keeps_all_else(arrays, model):
    with pytest.raises(ValueError, match=r"has 6 classes, not 4: give rngs"):
        load(arrays, num_classes=4)
    loaded = load(arrays, num_classes=4, rngs=nnx.Rngs(3))
    assert loaded.classifier.kernel.shape == (model.config.num_features, 4)
    # torch.nn.Linear's range, as in the published code.
    bound = model.config.num_features**-0.5
    assert np.max(np.abs(loaded.classifier.kernel[...])) == pytest.approx(bound, rel=0.02)
    assert np.any(loaded.classifier.bias[...])
    rest = {k: v for k, v in timm_arrays(loaded).items() if not k.startswith("classifier")}
    assert all(np.array_equal(value, arrays[key]) for key, value in rest.items())


def test_everything_that_does_not_fit_is_named(arrays):
    broken = dict(arrays)
    del broken["blocks.2.0.se.conv_reduce.bias"]
    broken["blocks.9.0.bn1.weight"] = np.zeros(3)
    broken["conv_head.weight"] = broken["conv_head.weight"][:, :, 0, 0]
    with pytest.raises(ValueError, match="do not fit") as error:
        load(broken, num_classes=6)
    for part in (
        "unused: blocks.9.0.bn1.weight",
        "missing: blocks.2.0.se.conv_reduce.bias",
        "wrong shape: conv_head.weight is (320, 80), must be (320, 80, 1, 1)",
    ):
        assert part in str(error.value)


def test_weights_of_another_variant_are_rejected(arrays):
    with pytest.raises(ValueError, match=r"do not fit this EfficientNet .is `variant` right"):
        load_efficientnet(arrays, num_classes=6, variant="small")


def test_a_namesake_with_other_semantics_is_rejected(model, tmp_path):
    save_efficientnet(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "tf_efficientnet_tiny"}))
    with pytest.raises(ValueError, match="these are weights of tf_efficientnet_tiny, not of"):
        load(tmp_path, num_classes=6)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt"])
def test_a_torch_file_is_read_like_any_other(model, arrays, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_arrays(path, arrays)
    assert_same(load(path, num_classes=6), model)


def test_absent_sources_say_what_to_do(tmp_path):
    with pytest.raises(OSError, match=r"no model\.safetensors in this folder"):
        load(tmp_path)
    with pytest.raises(OSError, match="neither a file, a folder, a package"):
        load(tmp_path / "absent.safetensors")
    # The hub is offline in all tests (conftest.py).
    for source in ("timm/efficientnet_b0.absent", "hf-hub:timm/efficientnet_b0.absent"):
        with pytest.raises(OSError, match=r"cannot get .* from the Hugging Face hub") as error:
            load_efficientnet(source)
        assert "hf download timm/efficientnet_b0.absent" in str(error.value)
        assert "in place of the hub id" in str(error.value)


def test_saving_under_another_suffix_is_rejected(model, tmp_path):
    with pytest.raises(ValueError, match="name it so"):
        save_efficientnet(model, tmp_path / "model.pth")
