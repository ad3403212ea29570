"""Stage `pretrain`: train the motion network without labels, for `config.motion.pretrained`.

Two clips of a video are to agree, and to differ from the clips of other videos (InfoNCE: van den
Oord et al., arXiv 1807.03748), each cropped where it moves, as in MCL (Li et al., "Motion-Focused
Contrastive Learning of Video Representations", ICCV 2021, arXiv 2201.04029).
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moclip_jax.config import motion_views
from moclip_jax.input_pipeline.batches import MotionViews, PreparedDataset
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.pretrained import save_efficientnet
from moclip_jax.runtime import distributed
from moclip_jax.runtime.progress import say
from moclip_jax.training.fingerprint import weights_fingerprint
from moclip_jax.training.motion import epoch_batches, initial_motion_network, result_settings
from moclip_jax.training.trainer import Batch, Task, train_and_evaluate

# The name by which `load_efficientnet` finds weights in a folder.
WEIGHTS_FILE = "model.safetensors"
TEMPERATURE = 0.1
_PROJECTED = 64
# The least share of a field's sides that a crop takes.
_SMALLEST_CROP = 0.5


class ContrastiveNetwork(nnx.Module):
    """A motion network and the projection in which two clips of a video are to agree.

    Attributes:
      batch_axes: Inside `jax.shard_map`, the mesh axes that the batch is split over.
    """

    def __init__(self, network: MotionNetwork, *, rngs: nnx.Rngs):
        size = network.config.num_features
        self.network = network
        self.hidden = nnx.Linear(size, size, rngs=rngs)
        self.projection = nnx.Linear(size, _PROJECTED, rngs=rngs)
        self.batch_axes: tuple[str, ...] = ()

    def __call__(self, clips: jax.Array, *, train: bool) -> jax.Array:
        """Return unit vectors float32 `[N, 64]` of clips, uint8 or scaled `[N, S, H, W, 2]`."""
        features = self.network.features(clips, train=train).mean(axis=1)
        projected = self.projection(nnx.relu(self.hidden(features)))
        return projected / jnp.linalg.norm(projected, axis=-1, keepdims=True).clip(1e-6)


def contrastive_logits(
    model: ContrastiveNetwork, batch: Batch, train: bool, key: jax.Array, *, image_size: int
) -> jax.Array:
    """Return the agreement of each first clip with all second ones, its own in column 0.

    With labels of 0, softmax cross-entropy is InfoNCE, and top-1 how often a clip finds its own.

    Args:
      batch: `motion` uint8 `[B, 2S, H, W, 2]`, whose segments are dealt to two clips at random.
      image_size: Side of the crops in pixels.

    Returns:
      float32 `[B, N]`, see `info_nce_logits`; N is B times the devices.
    """
    fields = batch["motion"]
    videos, segments = fields.shape[:2]
    own = jnp.arange(videos)
    if model.batch_axes:
        own += videos * jax.lax.axis_index(model.batch_axes)
    deal_key, crop_key = jax.random.split(key)
    order = jax.random.permutation(deal_key, segments)
    clips = jnp.stack(jnp.split(fields[:, order], 2, axis=1))
    # By the place in the global batch, so that the number of devices changes nothing.
    keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(crop_key, n)), out_axes=1)(own)
    crop = functools.partial(motion_crop, size=image_size)
    crops = jax.vmap(jax.vmap(crop))(clips, keys)
    first, second = jnp.split(model(crops.reshape(2 * videos, *crops.shape[2:]), train=train), 2)
    if model.batch_axes:
        second = jax.lax.all_gather(second, model.batch_axes, tiled=True)
    return info_nce_logits(first, second, own)


def info_nce_logits(first: jax.Array, second: jax.Array, own: jax.Array) -> jax.Array:
    """Return the logits of InfoNCE, whose label is always 0.

    Args:
      first: Unit vectors float32 `[B, D]`.
      second: Unit vectors float32 `[N, D]`.
      own: int `[B]`, the row of `second` that each of `first` is to agree with.

    Returns:
      float32 `[B, N]`: cosine similarities over the temperature, from the own row on, in a circle.
    """
    columns = (own[:, None] + jnp.arange(len(second))[None]) % len(second)
    return jnp.take_along_axis(first @ second.T / TEMPERATURE, columns, axis=1)


def motion_crop(clip: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """Cut a square around a pixel that moves from all segments, and resize it.

    The pixel is drawn with a probability in proportion to the squared distance of its motion to the
    mean of its field, so that a pan does not count. The square's side is 50 to 100 % of the field.

    Args:
      clip: uint8 `[S, H, H, 2]`, 128 is no motion.
      size: Side of the result.

    Returns:
      float32 `[S, size, size, 2]`, scaled to x / 255 - 0.5 as `MotionNetwork` takes it.
    """
    place_key, share_key, corner_key = jax.random.split(key, 3)
    fields = clip.astype(jnp.float32) / 255 - 0.5
    side = fields.shape[1]
    energy = jnp.square(fields - fields.mean(axis=(1, 2), keepdims=True)).sum(axis=(0, 3))
    place = jax.random.categorical(place_key, jnp.log(energy.reshape(-1) + 1e-6))
    center = jnp.stack(jnp.divmod(place, side)) + 0.5
    crop = side * jax.random.uniform(share_key, minval=_SMALLEST_CROP, maxval=1.0)
    corner = center - crop * jax.random.uniform(corner_key, (2,))
    corner = jnp.clip(corner, 0, side - crop)
    scale = size / crop
    shape = (len(fields), size, size, 2)
    return jax.image.scale_and_translate(
        fields, shape, (1, 2), jnp.full(2, scale), -corner * scale, "linear", antialias=False
    )


def pretraining_views(motion: ConfigDict) -> MotionViews:
    """Return how motion is sampled for two clips: whole fields, as the step cuts the crops."""
    views = motion_views(motion, num_segments=2 * motion.num_segments)
    return dataclasses.replace(views, image_size=motion.resize_size, scales=(1.0,))


def pretrain(
    config: ConfigDict, dataset: PreparedDataset, names: list[str], mesh: Mesh, directory: Path
) -> None:
    """Pretrain on videos whose labels are not looked at, or resume.

    Writes the EfficientNet as `directory/model.safetensors`, under timm's names; the normalization
    of the input and the classifier are left to the supervised stage.
    """
    motion, pretraining = config.motion, config.pretraining
    network = initial_motion_network(config, num_classes=1)
    assert isinstance(network, MotionNetwork)  # As the checks of the configuration say.
    model = ContrastiveNetwork(network, rngs=nnx.Rngs(config.seed))
    steps_per_epoch = len(names) // pretraining.batch_size
    stream = epoch_batches(
        config, dataset, names, pretraining_views(motion), pretraining.batch_size
    )

    def batches(epoch: int, first_step: int) -> Iterator[Batch]:
        for batch in stream(epoch, first_step):
            yield {"motion": batch["motion"], "label": np.zeros(len(batch["motion"]), np.int32)}

    schedule = optax.cosine_onecycle_schedule(
        pretraining.num_epochs * steps_per_epoch, pretraining.learning_rate
    )
    trained = train_and_evaluate(
        Task(
            name="pretrain",
            model=model,
            logits=functools.partial(contrastive_logits, image_size=motion.image_size),
            optimizer=lambda _: optax.adam(schedule),
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            num_epochs=pretraining.num_epochs,
            eval_every_epochs=pretraining.num_epochs,
            checkpoint_every_steps=motion.checkpoint_every_steps,
            seed=config.seed,
            about={
                "config": result_settings(motion) | {"pretraining": pretraining.to_dict()},
                "preprocessing": dataclasses.asdict(dataset.spec),
                "weights": {
                    "initial": weights_fingerprint(
                        motion.pretrained or "random", nnx.state(network)
                    )
                },
            },
        ),
        directory,
        mesh,
    )
    assert isinstance(trained, ContrastiveNetwork)
    if distributed.is_main_process():
        save_efficientnet(trained.network.backbone, directory / WEIGHTS_FILE)
        say(f"pretrain: start training from it with --config.motion.pretrained={directory}")
