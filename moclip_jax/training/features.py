"""Stage `features`: extract and store the features of all videos with both frozen backbones."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moclip_jax.config import network_views, token_layers
from moclip_jax.input_pipeline.batches import PreparedDataset, view_batches
from moclip_jax.input_pipeline.views import (
    GridViews,
    MotionViews,
    flip_windows,
    num_images,
)
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fisher_vectors import FisherNetwork
from moclip_jax.models.inference import clip_for_inference, motion_network_for_inference
from moclip_jax.models.moclip import MotionModel, appearance_features, motion_features
from moclip_jax.models.towers import Tower
from moclip_jax.runtime import distributed
from moclip_jax.runtime.device import (
    batch_size_for_memory,
    compiler_options,
    free_memory,
    matmul_dtype,
)
from moclip_jax.runtime.files import atomic_write
from moclip_jax.runtime.progress import Progress, say
from moclip_jax.runtime.sharding import DATA_AXIS, replicate, shard_batch, split_over_model

# Videos in one file of features: what a killed run repeats at most.
VIDEOS_PER_FILE = 256
# Largest feature maps that are alive at once: input and output of a layer, and a padded copy.
_LIVE_MAPS = 3
# Videos of a step for each device where motion is encoded by Fisher vectors.
FISHER_BATCH_SIZE = 8


class Features(NamedTuple):
    """Features of the videos of one split, in the order of its names.

    Attributes:
      motion: Float32 `[videos, views, segments, motion_features]`.
      appearance: Float32 `[videos, frames, D]` of the image network, not normalised.
      label: Int32 `[videos]`, or multi-hot float32 `[videos, classes]`.
      tokens: Float16 `[videos, frames, layers, 3, 1 + patches, width]` of CLIP's image tower, see
        `CLIP.image_features_with_tokens`; None if no head sees them.
    """

    motion: np.ndarray
    appearance: np.ndarray
    label: np.ndarray
    tokens: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, without tokens if there are none."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def make_extract_step(
    network: MotionModel,
    clip: Tower,
    mesh: Mesh,
    products: jax.typing.DTypeLike = jnp.float32,
    motion_products: jax.typing.DTypeLike | None = None,
    num_token_layers: int = 0,
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function from this process's rows of a batch to the features of all rows.

    The motion network is replicated, and the motion fields are split over all devices. The image
    tower is split over the `model` axis of the mesh, so devices along it get the same images.

    Args:
      network: The trained motion network.
      clip: The frozen image network.
      mesh: All devices.
      products: Matmul dtype of CLIP on one CPU, see `device.matmul_dtype`.
      motion_products: Matmul dtype of the motion network on a CPU; None uses the network's own.
      num_token_layers: Last layers of the image tower whose tokens are returned too.
    """
    motion_graph, motion_state = nnx.split(motion_network_for_inference(network, motion_products))
    clip_graph, clip_state = nnx.split(clip_for_inference(clip, products, devices=mesh.size))
    motion_state = replicate(motion_state, mesh)
    clip_state = split_over_model(clip_state, mesh)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def step(motion_state, clip_state, fields, images):
        appearance, tokens = appearance_features(
            nnx.merge(clip_graph, clip_state), images, num_token_layers
        )
        motion = motion_features(nnx.merge(motion_graph, motion_state), fields)
        outputs = {
            "motion": motion.astype(jnp.float32),
            "appearance": appearance.astype(jnp.float32),
        }
        return outputs if tokens is None else outputs | {"tokens": tokens}

    def extract(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fields = shard_batch({"motion": batch["motion"]}, mesh)["motion"]
        images = shard_batch({"images": batch["images"]}, mesh, (DATA_AXIS,))["images"]
        outputs = step(motion_state, clip_state, fields, images)
        local = {name: batch[name] for name in ("label", "index", "mask")}
        if jax.process_count() == 1:
            return {name: np.asarray(value) for name, value in outputs.items()} | local
        gathered = multihost_utils.process_allgather(outputs, tiled=True)
        return gathered | multihost_utils.process_allgather(local, tiled=True)

    return extract


def extract_features(
    config: ConfigDict,
    dataset: PreparedDataset,
    splits: dict[str, list[str]],
    network: MotionModel,
    clip: Tower,
    mesh: Mesh,
    directory: Path,
) -> None:
    """Write the features of the `train`, `validation` and `test` videos to `directory`.

    Training videos get `config.features.train_views` augmented views, the others the crops of their
    test protocol. Fisher vectors have the test view in training too, and its mirror image if they
    were fitted to these. Files that exist are kept.
    """
    train_views, mirrored = config.features.train_views, False
    if isinstance(network, FisherNetwork):
        train_views, mirrored = 0, bool(network.mirrored[...])
    extract = make_extract_step(
        network,
        clip,
        mesh,
        matmul_dtype(config.clip.dtype),
        matmul_dtype(config.features.motion_dtype),
        token_layers(config),
    )
    protocols = {
        "train": (network_views(config, num_segments=config.motion.num_segments), True),
        "validation": (
            network_views(config, num_segments=config.motion.num_segments),
            False,
        ),
        "test": (
            network_views(
                config,
                num_segments=config.evaluation.num_segments,
                crops=config.evaluation.crops,
            ),
            False,
        ),
    }
    for split, (views, augmented) in protocols.items():
        names = splits[split]
        batch_size = config.features.batch_size or distributed.run_on_main(
            functools.partial(
                batch_size_by_memory, network, views, config, mesh, augmented=augmented
            )
        )
        batches_per_file = max(1, VIDEOS_PER_FILE // batch_size)
        num_batches = -(-len(names) // batch_size)
        files = [
            # Named after the first video in it.
            directory / split / f"{first * batch_size:06d}.npz"
            for first in range(0, num_batches, batches_per_file)
        ]
        done = distributed.run_on_main(functools.partial(_first_missing, files))
        if done == len(files):
            continue
        if done:
            say(f"features: {done} of {len(files)} files of '{split}' exist")
        first_batch = done * batches_per_file
        progress = Progress(num_batches, f"features: {split}", "batches", done_before=first_batch)
        batches = view_batches(
            dataset,
            names,
            motion=views,
            augmented_views=train_views if augmented else 0,
            frames=config.clip.frame,
            image_size=clip.config.image_size,
            resize_size=clip.config.preprocessing.resize_size,
            resample=clip.config.preprocessing.resample,
            square=clip.config.preprocessing.square,
            batch_size=batch_size,
            seed=config.seed,
            first_batch=first_batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ).as_numpy_iterator()
        pending: list[dict[str, np.ndarray]] = []
        for number, batch in enumerate(batches, start=first_batch + 1):
            if augmented and mirrored:
                flipped = flip_windows(batch["motion"])
                batch["motion"] = np.concatenate([batch["motion"], flipped], axis=1)
            pending.append(extract(batch))
            progress.advance()
            if number % batches_per_file == 0 or number == num_batches:
                _write(files[(number - 1) // batches_per_file], pending)
                pending = []
        progress.done()


def batch_size_by_memory(
    network: MotionModel,
    views: MotionViews | GridViews,
    config: ConfigDict,
    mesh: Mesh,
    *,
    augmented: bool,
) -> int:
    """Return the number of videos of one step through both networks, for the devices of a mesh."""
    if isinstance(views, GridViews) or isinstance(network, FisherNetwork):
        # Block motion and its histograms are small beside CLIP's maps.
        return FISHER_BATCH_SIZE * mesh.size
    size = bytes_per_video(
        network.backbone.config,
        side=views.image_size,
        segments=views.num_segments,
        views=config.features.train_views if augmented else views.crops,
        images=num_images(config.clip.frame),
    )
    return batch_size_for_memory(size, free_memory(mesh.local_devices), mesh.size)


def bytes_per_video(
    backbone: EfficientNetConfig, *, side: int, segments: int, views: int, images: int
) -> int:
    """Return the device memory that a video needs while its features are computed.

    These are its motion fields and images, and `_LIVE_MAPS` times the largest feature map of the
    motion network, for the segments of one view (views are computed one after the other). The maps
    of the image tower are small beside these.

    Args:
      backbone: Architecture of the motion network.
      side: Side of its motion fields in pixels.
      segments: Motion fields of a view.
      views: Views of a video.
      images: Images of a video.
    """
    inputs = views * segments * side**2 * 2 + images * 224**2 * 3
    scale, largest = 2, backbone.stem_channels * (side // 2) ** 2
    for stage in backbone.stages:
        for block in stage:
            largest = max(largest, block.inner_channels * (side // scale) ** 2)
            scale *= block.stride
    return inputs + segments * _LIVE_MAPS * largest * backbone.map_dtype.itemsize


def _first_missing(files: list[Path]) -> int:
    return next((i for i, path in enumerate(files) if not path.exists()), len(files))


def load_features(
    directory: Path,
    split: str,
    num_videos: int,
    *,
    each_view: bool = True,
    each_segment: bool = True,
) -> Features:
    """Read the features that `extract_features` wrote for one split.

    Averages are taken file by file, so that a protocol of many views fits into memory.

    Args:
      directory: The stage's folder.
      split: `train`, `validation` or `test`.
      num_videos: Videos of the split.
      each_view: False averages over the views, and leaves an axis of one view.
      each_segment: False averages over the segments and over the frames, whose axes are dropped.

    Raises:
      ValueError: Some of its `num_videos` videos are missing or present twice.
    """
    if num_videos == 0:
        empty = np.zeros((0, 1, 1, 0), np.float32)
        return Features(empty, empty[:, 0], np.zeros((0,), np.int32))
    parts = [
        _averaged(dict(np.load(path)), each_view, each_segment)
        for path in sorted((directory / split).glob("[0-9]*.npz"))
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not np.array_equal(np.sort(whole["index"]), np.arange(num_videos)):
        raise ValueError(
            f"{directory / split} holds features of {len(np.unique(whole['index']))} of "
            f"{num_videos} videos; delete {directory} to extract them again"
        )
    order = np.argsort(whole["index"])
    return Features(**{name: whole[name][order] for name in Features._fields if name in whole})


def _averaged(
    part: dict[str, np.ndarray], each_view: bool, each_segment: bool
) -> dict[str, np.ndarray]:
    if not each_segment:
        part["motion"] = part["motion"].mean(axis=2)
        part["appearance"] = part["appearance"].mean(axis=1)
    if not each_view:
        part["motion"] = part["motion"].mean(axis=1, keepdims=True)
    return part


def _write(path: Path, parts: list[dict[str, np.ndarray]]) -> None:
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = whole.pop("mask")
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            np.savez(temporary, **{name: value[rows] for name, value in whole.items()})
