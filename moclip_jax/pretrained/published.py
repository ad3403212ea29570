"""The published PyTorch code's own state dicts, into our networks, strictly one to one.

Names as in https://github.com/microa/MoCLIP-Lite: `model.py` saves `data_bn.*` and `base_model.*`
(timm's EfficientNet); `train_fusion.py` saves both under `mv_feature_extractor.`, without the
classifier, beside `fusion_classifier.0.*` and `fusion_classifier.3.*`.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.pretrained.timm_efficientnet import load_efficientnet

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_BACKBONE, _INPUT_NORM, _EXTRACTOR = "base_model.", "data_bn.", "mv_feature_extractor."
_HIDDEN, _CLASSIFIER = "fusion_classifier.0.", "fusion_classifier.3."
_COUNTER = "num_batches_tracked"

Source = str | Path | Mapping[str, np.ndarray]


def load_published_motion(source: Source, *, variant: str = "b0") -> MotionNetwork:
    """Build a motion network from the state dict that the published motion training saves.

    Args:
      source: a .safetensors file, or a mapping of torch names to arrays.
      variant: the EfficientNet's name in `EfficientNetConfig.named`.

    Returns:
      The network, with as many classes as the state dict has.

    Raises:
      ValueError: unused, missing or misshapen arrays (named), or a pickle file.
      OSError: the file cannot be read.
    """
    arrays = _arrays(source)
    if not any(name.startswith(_BACKBONE) for name in arrays):
        raise ValueError(
            f"{_name(source)}: no {_BACKBONE}* arrays, so it is not a motion network's state dict"
        )
    backbone = _under(arrays, _BACKBONE)
    norm = _under(arrays, _INPUT_NORM)
    _check_names(arrays, [_BACKBONE, *(_INPUT_NORM + name for name in _NORM)], source)
    classes = _shape(backbone, "classifier.weight", source)[0]
    config = EfficientNetConfig.named(variant, in_channels=2, num_classes=classes)
    network = nnx.eval_shape(lambda: MotionNetwork(MotionNetworkConfig(config), rngs=nnx.Rngs(0)))
    network.backbone = load_efficientnet(backbone, 2, classes, variant=variant)
    for theirs, ours in _NORM.items():
        if norm.get(theirs, np.empty(0)).shape != (2,):
            raise ValueError(
                f"{_name(source)}: {_INPUT_NORM}{theirs} is missing or not of length 2"
            )
        variable = getattr(network.input_norm, ours)
        variable.set_value(jax.device_put(np.asarray(norm[theirs], np.float32)))
    return network


def load_published_fusion(
    motion: Source, fusion: Source, *, variant: str = "b0"
) -> tuple[MotionNetwork, FusionHead]:
    """Build both trained parts of a published model.

    While the published head was trained, the running statistics of the motion network drifted. It
    expects their last values, which are in the fusion's state dict; the classifier, which that
    lacks, comes from the motion network's.

    Args:
      motion: what the published motion training saves; as for `load_published_motion`.
      fusion: what the published fusion training saves.
      variant: the EfficientNet's name in `EfficientNetConfig.named`.

    Returns:
      The motion network and the fusion head.

    Raises:
      ValueError: as `load_published_motion`; or the two do not belong together: a weight (not a
        running statistic) of the motion network differs.
      OSError: a file cannot be read.
    """
    before, after = _arrays(motion), _arrays(fusion)
    layers = [layer + leaf for layer in (_HIDDEN, _CLASSIFIER) for leaf in ("weight", "bias")]
    _check_names(after, [_EXTRACTOR, *layers], fusion)
    extractor = _under(after, _EXTRACTOR)
    for name, array in before.items():
        if "classifier." in name:
            continue
        if name not in extractor:
            raise ValueError(f"{_name(fusion)}: {_EXTRACTOR}{name} is missing")
        if "running_" not in name and not np.array_equal(array, extractor[name]):
            raise ValueError(
                f"{_name(fusion)} was not trained on {_name(motion)}: {name} differs between them"
            )
    whole = extractor | {name: a for name, a in before.items() if "classifier." in name}
    network = load_published_motion(whole, variant=variant)

    hidden, inputs = _shape(after, _HIDDEN + "weight", fusion)
    classes = _shape(after, _CLASSIFIER + "weight", fusion)[0]
    features = network.config.num_features
    config = FusionConfig(
        motion_features=features,
        appearance_features=inputs - features,
        hidden=hidden,
        num_classes=classes,
    )
    head = FusionHead(config, rngs=nnx.Rngs(0))
    for linear, prefix in ((head.hidden, _HIDDEN), (head.classifier, _CLASSIFIER)):
        assert linear is not None and linear.bias is not None
        for leaf, array in (
            (linear.kernel, after[prefix + "weight"].T),
            (linear.bias, after[prefix + "bias"]),
        ):
            if leaf.shape != array.shape:
                raise ValueError(
                    f"{_name(fusion)}: {prefix}* has {array.shape[::-1]}, must be "
                    f"{leaf.shape[::-1]}"
                )
            leaf.set_value(jax.device_put(np.asarray(array, np.float32)))
    return network, head


def _arrays(source: Source) -> dict[str, np.ndarray]:
    """The arrays of a source, without torch's counters of batches, which are not used."""
    if isinstance(source, str | Path):
        if Path(source).suffix != ".safetensors":
            raise ValueError(
                f"{source}: not a .safetensors file. A pickle can run code when it is read, so it "
                "is not loaded; convert it by safetensors.torch.save_file(torch.load(PATH, "
                "weights_only=True), 'model.safetensors')"
            )
        source = safetensors.numpy.load_file(source)
    return {name: np.asarray(a) for name, a in source.items() if not name.endswith(_COUNTER)}


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _shape(arrays: Mapping[str, np.ndarray], name: str, source: Source) -> tuple[int, int]:
    array = arrays.get(name)
    if array is None or array.ndim != 2:
        raise ValueError(f"{_name(source)}: {name} is missing or not a matrix")
    return array.shape[0], array.shape[1]


def _check_names(arrays: Mapping[str, np.ndarray], known: list[str], source: Source) -> None:
    """Every name starts with one of the known ones, and each of those is there."""
    unused = [name for name in arrays if not name.startswith(tuple(known))]
    missing = [start for start in known if not any(name.startswith(start) for name in arrays)]
    if unused or missing:
        raise ValueError(f"{_name(source)}: unused arrays {unused}, missing {missing}")


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the state dict"
