"""The published code's state dicts become a model that predict loads, strictly checked."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from moclip_jax.configs import testing
from moclip_jax.inference.recognizer import load
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.pretrained.import_published import import_published
from moclip_jax.pretrained.timm_efficientnet import timm_arrays

ROOT = Path(__file__).parents[2]
NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def state_dicts(folder: Path, num_classes: int = 3, appearance: int = 64) -> tuple[Path, Path]:
    """Random weights of a tiny model, under the published names."""
    backbone = EfficientNetConfig.named("tiny", in_channels=2, num_classes=num_classes)
    network = MotionNetwork(MotionNetworkConfig(backbone), rngs=nnx.Rngs(0))
    head = FusionHead(
        FusionConfig(
            motion_features=backbone.num_features,
            appearance_features=appearance,
            hidden=16,
            num_classes=num_classes,
        ),
        rngs=nnx.Rngs(1),
    )
    motion = {f"base_model.{name}": array for name, array in timm_arrays(network.backbone).items()}
    for theirs, ours in NORM.items():
        motion[f"data_bn.{theirs}"] = np.array(getattr(network.input_norm, ours)[...])
    fusion = {
        f"mv_feature_extractor.{name}": array
        for name, array in motion.items()
        if ".classifier." not in name
    }
    for layer, number in ((head.hidden, 0), (head.classifier, 3)):
        fusion[f"fusion_classifier.{number}.weight"] = np.array(layer.kernel[...].T)
        fusion[f"fusion_classifier.{number}.bias"] = np.array(layer.bias[...])
    files = folder / "mv.safetensors", folder / "fusion.safetensors"
    for arrays, file in zip((motion, fusion), files, strict=True):
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        safetensors.numpy.save_file(whole, file)
    return files


@pytest.fixture
def classes(tmp_path) -> Path:
    path = tmp_path / "classInd.txt"
    path.write_text("1 Star\n2 Ring\n3 CrossSpinning\n")
    return path


def test_the_command_writes_a_model_with_the_files_own_weights(tmp_path, classes):
    motion, fusion = state_dicts(tmp_path)
    workdir = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "moclip_jax.pretrained.import_published",
            "--config=configs/testing.py",
            f"--workdir={workdir}", f"--motion={motion}", f"--fusion={fusion}",
            f"--classes={classes}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"predict --workdir={workdir}" in done.stdout
    model = load(workdir / "export")
    assert model.class_names == ("Star", "Ring", "CrossSpinning")
    arrays = safetensors.numpy.load_file(fusion)
    np.testing.assert_array_equal(
        model.model.head.hidden.kernel.T, arrays["fusion_classifier.0.weight"]
    )
    np.testing.assert_array_equal(
        model.model.motion.input_norm.var, arrays["mv_feature_extractor.data_bn.running_var"]
    )
    card = (workdir / "export" / "README.md").read_text()
    assert "imported from its state dicts" in card and "Not measured by this package" in card


def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path, classes):
    motion, fusion = map(str, state_dicts(tmp_path))
    files = {"motion": motion, "fusion": fusion, "classes": str(classes)}
    classes.write_text("1 Star\n2 Ring\n")
    with pytest.raises(ValueError, match=r"has 3 classes, but .*classInd.txt lists 2; pass the"):
        import_published(testing.get_config(), tmp_path / "run", **files)
    classes.write_text("1 Star\n2 Ring\n3 Cross\n")
    (tmp_path / "other").mkdir()
    other = map(str, state_dicts(tmp_path / "other", appearance=32))
    files |= dict(zip(("motion", "fusion"), other, strict=True))
    with pytest.raises(ValueError, match=r"trained on 32 features per image, and"):
        import_published(testing.get_config(), tmp_path / "run", **files)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "export").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"exists; choose another --workdir"):
        import_published(testing.get_config(), tmp_path / "run", **files)
