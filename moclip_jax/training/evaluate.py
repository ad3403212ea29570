"""Stage `evaluate`: compute accuracy and cost of the four rows of the results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import network_views, token_layers
from moclip_jax.inference.zero_shot import zero_shot_logits
from moclip_jax.input_pipeline.views import num_images
from moclip_jax.models import moclip
from moclip_jax.models.clip import CLIP
from moclip_jax.models.flops import count_parameters, multiply_adds
from moclip_jax.models.heads import Head, apply_head
from moclip_jax.models.moclip import MotionModel
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.models.text_head import TextHead
from moclip_jax.models.towers import Tower
from moclip_jax.runtime.files import write_json
from moclip_jax.training.features import Features
from moclip_jax.training.metrics import class_quality, mean_over_classes, topk_accuracy

# One program each, where every operation by itself would be another.
_network_logits = nnx.jit(lambda network, features: network.logits(features))
_head_logits: Callable[..., jax.Array] = nnx.jit(moclip.fused_logits)


def motion_logits(network: MotionModel, features: np.ndarray) -> np.ndarray:
    """Return logits `[videos, classes]` of `features [videos, views, segments, D]`.

    The head sees the features averaged over the views.
    """
    return np.asarray(_network_logits(network, features.mean(axis=1)))


def fused_logits(head: Head, features: Features) -> np.ndarray:
    """Return a head's logits `[videos, classes]` for motion features averaged over the views."""
    arrays = {name: values for name, values in features.arrays().items() if name != "label"}
    return np.asarray(_head_logits(head, **arrays))


def cost_of_one_view(config: ConfigDict, network: MotionModel, clip: Tower) -> dict[str, int]:
    """Return the multiply-adds of one motion field (`motion`) and one image (`appearance`).

    With the head `evl` also of an image of which all tokens are wanted (`tokens`).
    """
    motion_graph, motion_state = nnx.split(network)
    clip_graph, clip_state = nnx.split(clip)

    def one_field(state: nnx.State, field: jax.Array) -> jax.Array:
        merged = nnx.merge(motion_graph, state)
        return merged.classifier(merged.features(field))

    field = jax.ShapeDtypeStruct(network_views(config, num_segments=1).shape, jnp.uint8)
    side = clip.config.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    layers = token_layers(config)

    def one_image(state: nnx.State, image: jax.Array) -> Any:
        merged = nnx.merge(clip_graph, state)
        assert isinstance(merged, CLIP)
        return merged.image_features_with_tokens(image, layers)

    tokens = {"tokens": multiply_adds(one_image, clip_state, image)} if layers else {}
    return tokens | {
        "motion": multiply_adds(one_field, motion_state, field),
        "appearance": multiply_adds(
            lambda state, x: nnx.merge(clip_graph, state).image_features(x), clip_state, image
        ),
    }


def cost_of_views(config: ConfigDict, one_view: dict[str, int]) -> dict[str, int]:
    """Return the multiply-adds per video of `motion` and `appearance` under the test protocol."""
    evaluation = config.evaluation
    frames = num_images(config.clip.frame)
    cost = {name: macs * frames for name, macs in one_view.items()}
    return cost | {"motion": one_view["motion"] * evaluation.num_segments * evaluation.crops}


def evaluate(
    config: ConfigDict,
    features: Features,
    rejected: np.ndarray,
    text: np.ndarray | None,
    network: MotionModel,
    clip: Tower,
    heads: dict[str, Head],
    directory: Path,
) -> dict[str, dict[str, Any]]:
    """Score the test videos in every row, and write `scores.npz` and `rows.json`.

    Args:
      config: The whole configuration.
      features: Features of the test videos.
      rejected: Classes of the test videos that could not be read, which count as wrong, int `[n]`
        or multi-hot `[n, classes]`.
      text: Text features of the classes `[classes, D]`, of unit length; None where the image
        network has no text side: then there is no row `zero_shot`.
      network: The trained motion network.
      clip: The frozen image network.
      heads: `clip_head` and `fusion`.
      directory: The stage's folder.

    Returns:
      The rows `zero_shot`, `clip_head`, `motion`, `fusion`, each with `top1`, `top5`,
      `balanced_accuracy` (the mean over the classes; all from 0 to 1) or, for several labels a
      video, `mAP` (mean average precision), `num_examples`, `protocol`,
      `gflops` (10^9 multiply-adds per video, for the views that the accuracy was measured with),
      `gflops_per_view` (for one motion field, one image), `params` (of all networks that a video
      goes through) and `trainable_params` (trained for this row).
    """
    scores, fusion = {}, heads["fusion"]
    if text is not None:
        assert isinstance(clip, CLIP)
        embeddings = clip.embeddings(features.appearance.mean(axis=1))
        scores["zero_shot"] = (
            # The start of that head: the same program gives the same bits.
            fused_logits(fusion.interpolated(0.0), features)
            if isinstance(fusion, TextHead)
            else zero_shot_logits(np.asarray(embeddings), text)
        )
    scores |= {
        "clip_head": fused_logits(heads["clip_head"], features),
        "motion": motion_logits(network, features.motion),
        "fusion": fused_logits(fusion, features),
    }
    one_view = cost_of_one_view(config, network, clip)
    cost = cost_of_views(config, one_view)
    # Text features are computed once for all videos, so they do not count.
    head_cost = {name: cost_of_head(head, features) for name, head in heads.items()}
    macs = {
        "zero_shot": cost["appearance"],
        "clip_head": cost["appearance"] + head_cost["clip_head"],
        "motion": cost["motion"] + cost_of_temporal(network, features),
        "fusion": cost["motion"] + cost.get("tokens", cost["appearance"]) + head_cost["fusion"],
    }
    size = {name: count_parameters(head) for name, head in heads.items()}
    size |= {"motion": count_parameters(network), "tower": count_parameters(clip.vision)}
    trained = {"zero_shot": 0} | {name: size[name] for name in ("clip_head", "motion", "fusion")}
    # Parameters of all networks that a video goes through, frozen or not.
    total = {
        "zero_shot": size["tower"],
        "clip_head": size["tower"] + size["clip_head"],
        "motion": size["motion"],
        "fusion": size["tower"] + size["motion"] + size["fusion"],
    }
    streams = {
        "zero_shot": ("appearance",),
        "clip_head": ("appearance",),
        "motion": ("motion",),
        "fusion": ("motion", "appearance"),
    }
    frames = f"{config.clip.frame} frame" if "_" not in config.clip.frame else config.clip.frame
    views = f"{config.evaluation.num_segments} segments x {config.evaluation.crops} crops"
    protocol = {
        "zero_shot": frames,
        "clip_head": frames,
        "motion": views + _head_name(config.motion.head),
        "fusion": f"{views} + {frames}"
        + _head_name(config.fusion.head)
        + (f", alpha {fusion.alpha[...]:.1f}" if isinstance(fusion, TextHead) else ""),
    }
    quality = {
        name: class_quality(values, features.label, rejected) for name, values in scores.items()
    }
    rows = {
        name: {
            "top1": topk_accuracy(scores[name], features.label, 1, len(rejected)),
            "top5": topk_accuracy(scores[name], features.label, 5, len(rejected)),
            quality[name][0]: mean_over_classes(quality[name][1]),
            "num_examples": len(features.label) + len(rejected),
            "protocol": protocol[name],
            "gflops": macs[name] / 1e9,
            "gflops_per_view": {stream: one_view[stream] / 1e9 for stream in streams[name]},
            "params": total[name],
            "trainable_params": trained[name],
        }
        for name in scores
    }
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "scores.npz", **(scores | {"label": features.label}))  # type: ignore[arg-type]
    write_json(directory / "rows.json", rows)
    return rows


def cost_of_head(head: Head, features: Features) -> int:
    """Return the multiply-adds of a head for one video with as many segments and frames."""
    inputs = [features.motion[:, 0], features.appearance]
    inputs += [] if features.tokens is None else [features.tokens]
    graph, state = nnx.split(head)
    return multiply_adds(
        lambda s, *x: apply_head(nnx.merge(graph, s), *x), state, *map(_of_one_video, inputs)
    )


def cost_of_temporal(network: MotionModel, features: Features) -> int:
    """Return the multiply-adds of the temporal residual of a motion network for one video."""
    if not isinstance(network, MotionNetwork) or network.temporal is None:
        return 0
    graph, state = nnx.split(network.temporal)
    motion = _of_one_video(features.motion[:, 0])
    return multiply_adds(lambda s, x: nnx.merge(graph, s)(x), state, motion)


def _of_one_video(features: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *features.shape[1:]), jnp.float32)


def _head_name(name: str) -> str:
    return "" if name == "mean" else f", {name} head"
