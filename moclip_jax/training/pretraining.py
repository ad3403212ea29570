"""Pretrain the motion network without labels, in one of two ways.

* `contrastive`: two clips of one video agree, and differ from those of the other videos of the
  batch (InfoNCE: van den Oord et al., arXiv 1807.03748), each cropped where it moves (MCL: Li et
  al., "Motion-Focused Contrastive Learning of Video Representations", ICCV 2021, arXiv 2201.04029).
* `masked`: blocks of the motion fields are hidden, and their mean motion is predicted from the rest
  (as masked image modelling: Xie et al., "SimMIM", CVPR 2022, arXiv 2111.09886).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.training.trainer import Batch

_TEMPERATURE = 0.1
_PROJECTED = 64
# Sides of the blocks that are hidden, and the share of the blocks.
_BLOCK = 8
_HIDDEN = 0.5


class ContrastivePretraining(nnx.Module):
    """A motion network and the projection in which two clips of a video are to agree."""

    def __init__(self, network: MotionNetwork, *, rngs: nnx.Rngs):
        size = network.config.num_features
        self.network = network
        self.hidden = nnx.Linear(size, size, rngs=rngs)
        self.projection = nnx.Linear(size, _PROJECTED, rngs=rngs)

    def __call__(self, fields: jax.Array, *, train: bool) -> jax.Array:
        """Return unit vectors `[B, 64]` of clips, uint8 `[B, S, H, W, 2]`."""
        features = self.network.features(fields, train=train).mean(axis=1)
        projected = self.projection(nnx.relu(self.hidden(features)))
        return projected / jnp.linalg.norm(projected, axis=-1, keepdims=True).clip(1e-6)


class MaskedPretraining(nnx.Module):
    """A motion network and the linear layer that predicts motion from its features."""

    def __init__(self, network: MotionNetwork, image_size: int, *, rngs: nnx.Rngs):
        self.network = network
        blocks = (image_size // _BLOCK) ** 2
        self.decoder = nnx.Linear(network.config.num_features, 2 * blocks, rngs=rngs)


def contrastive_logits(
    model: ContrastivePretraining, batch: Batch, train: bool, key: jax.Array, *, image_size: int
) -> jax.Array:
    """Return how each first clip agrees with all second ones, its own in column 0, `[B, B]`.

    With labels of 0, cross-entropy is InfoNCE.

    Args:
      batch: `motion` uint8 `[B, 2, S, H, W, 2]`, two clips of each video.
      image_size: Side of the motion-focused crops.
    """
    fields = batch["motion"]
    videos = len(fields)
    clips = jnp.concatenate([fields[:, 0], fields[:, 1]])
    crops = motion_crops(clips, key, image_size)
    first, second = jnp.split(model(crops, train=train), 2)
    agreement = first @ second.T / _TEMPERATURE
    columns = (jnp.arange(videos)[:, None] + jnp.arange(videos)) % videos
    return jnp.take_along_axis(agreement, columns, axis=1)


def motion_crops(clips: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """Cut a square from each clip, at random among those with more motion than the median square.

    Motion is the distance of a pixel's vector to the mean of its field, so that camera motion does
    not count.

    Args:
      clips: uint8 `[N, S, H, W, 2]`.
      size: Side of the squares, at most `H` and `W`.

    Returns:
      uint8 `[N, S, size, size, 2]`, all segments of a clip cut at the same place.
    """

    def cut(clip: jax.Array, key: jax.Array) -> jax.Array:
        fields = clip.astype(jnp.float32)
        strength = jnp.abs(fields - fields.mean(axis=(1, 2), keepdims=True)).sum(axis=(0, 3))
        sums = jnp.pad(strength, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size]
        inside = (inside + sums[:-size, :-size]).reshape(-1)
        allowed = jnp.where(inside >= jnp.median(inside), 0.0, -jnp.inf)
        place = jax.random.categorical(key, allowed)
        top, left = jnp.divmod(place, clip.shape[2] - size + 1)
        return jax.lax.dynamic_slice(
            clip, (0, top, left, 0), (clip.shape[0], size, size, clip.shape[3])
        )

    return jax.vmap(cut)(clips, jax.random.split(key, len(clips)))


def masked_errors(model: MaskedPretraining, batch: Batch, train: bool, key: jax.Array) -> jax.Array:
    """Return the errors of the predicted motion, 0 where a block was seen, `[B, S * blocks * 2]`.

    Args:
      batch: `motion` uint8 `[B, S, H, W, 2]`.
    """
    fields = batch["motion"]
    videos, segments, height, width, _ = fields.shape
    rows, columns = height // _BLOCK, width // _BLOCK
    motion = (fields.astype(jnp.float32) - 128) / 16
    blocks = motion[:, :, : rows * _BLOCK, : columns * _BLOCK]
    target = blocks.reshape(videos, segments, rows, _BLOCK, columns, _BLOCK, 2).mean((3, 5))
    hidden = jax.random.bernoulli(key, _HIDDEN, (videos, segments, rows, columns, 1))
    every = hidden.repeat(_BLOCK, 2).repeat(_BLOCK, 3)
    every = jnp.pad(
        every, ((0, 0), (0, 0), (0, height - every.shape[2]), (0, width - every.shape[3]), (0, 0))
    )
    seen = jnp.where(every, jnp.uint8(128), fields)
    features = model.network.features(seen, train=train)
    predicted = model.decoder(features).reshape(target.shape)
    return jnp.where(hidden, predicted - target, 0.0).reshape(videos, -1)


def mean_square(errors: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the loss of each video, float32 `[B]`; labels are not looked at."""
    del labels
    return jnp.square(errors).mean(axis=-1)


def pretraining(
    way: str, network: MotionNetwork, image_size: int, *, rngs: nnx.Rngs
) -> dict[str, Any]:
    """Return `model`, `logits` and `loss` of a `trainer.Task` for `contrastive` or `masked`."""
    if way == "contrastive":
        return {
            "model": ContrastivePretraining(network, rngs=rngs),
            "logits": functools.partial(contrastive_logits, image_size=image_size),
        }
    return {
        "model": MaskedPretraining(network, image_size, rngs=rngs),
        "logits": masked_errors,
        "loss": mean_square,
    }
