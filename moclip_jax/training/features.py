"""Stage `features`: run both frozen backbones over every video once, and keep what they say."""

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

from moclip_jax.config import motion_views
from moclip_jax.input_pipeline.batches import PreparedDataset, view_batches
from moclip_jax.input_pipeline.views import MotionViews, num_images
from moclip_jax.models.clip import CLIP, normalize_images
from moclip_jax.models.inference import clip_for_inference, motion_network_for_inference
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.runtime import distributed
from moclip_jax.runtime.device import (
    bytes_of_a_video,
    compiler_options,
    extraction_batch_size,
    free_memory,
    matmul_dtype,
)
from moclip_jax.runtime.files import atomic_write
from moclip_jax.runtime.progress import Progress, say
from moclip_jax.runtime.sharding import DATA_AXIS, replicate, shard_batch, split_over_model

# Videos in one file of the cache: what a killed run has to do again at most.
VIDEOS_PER_FILE = 256


class Features(NamedTuple):
    """What the frozen backbones say of the videos of one role, in the order of its names.

    Attributes:
      motion: float32 `[videos, views, motion_features]`, averaged over segments.
      appearance: float32 `[videos, projection_dim]`, averaged over frames, not normalised.
      label: int32 `[videos]`.
    """

    motion: np.ndarray
    appearance: np.ndarray
    label: np.ndarray


def motion_features(network: MotionNetwork, fields: jax.Array) -> jax.Array:
    """Returns features `[B, views, D]` of uint8 fields `[B, views, S, H, W, 2]`.

    One view at a time, so that memory does not grow with the number of views.
    """
    if fields.shape[1] == 1:
        return network.features(fields[:, 0]).mean(axis=1)[:, None]
    graphdef, state = nnx.split(network)

    def one_view(view: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).features(view).mean(axis=1)

    return jnp.moveaxis(jax.lax.map(one_view, jnp.moveaxis(fields, 1, 0)), 0, 1)


def appearance_features(clip: CLIP, images: jax.Array) -> jax.Array:
    """Returns features `[B, D]` of uint8 images `[B, frames, H, W, 3]`, averaged over frames."""
    batch, frames = images.shape[:2]
    embeds = clip.encode_image(normalize_images(images.reshape(-1, *images.shape[2:])))
    return embeds.reshape(batch, frames, -1).mean(axis=1)


def make_extract_step(
    network: MotionNetwork,
    clip: CLIP,
    mesh: Mesh,
    products: jax.typing.DTypeLike = jnp.float32,
    motion_products: jax.typing.DTypeLike | None = None,
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns a function from this process's rows of a batch to the features of all rows.

    The motion network is whole on every device, and the fields are split over all of them. The
    image tower is split over the `model` axis of the mesh, so devices along it see the same images.

    Args:
      network: the trained motion network.
      clip: the frozen CLIP.
      mesh: all devices.
      products: dtype of CLIP's products where all is done by one CPU, see
        `device_rules.matmul_dtype`.
      motion_products: dtype of the motion network's products on a CPU; None: as the network's.
    """
    motion_graph, motion_state = nnx.split(motion_network_for_inference(network, motion_products))
    clip_graph, clip_state = nnx.split(clip_for_inference(clip, products, devices=mesh.size))
    motion_state = replicate(motion_state, mesh)
    clip_state = split_over_model(clip_state, mesh)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def step(motion_state, clip_state, fields, images):
        return {
            "motion": motion_features(nnx.merge(motion_graph, motion_state), fields).astype(
                jnp.float32
            ),
            "appearance": appearance_features(nnx.merge(clip_graph, clip_state), images).astype(
                jnp.float32
            ),
        }

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
    network: MotionNetwork,
    clip: CLIP,
    mesh: Mesh,
    directory: Path,
) -> None:
    """Writes the features of the `train`, `validation` and `test` videos under `directory`.

    Training videos are seen in `config.features.train_views` augmented views, the others in the
    crops of their protocol. Files that are there already are not made again.
    """
    extract = make_extract_step(
        network,
        clip,
        mesh,
        matmul_dtype(config.clip.dtype),
        matmul_dtype(config.features.motion_dtype),
    )
    protocols = {
        "train": (motion_views(config.motion, num_segments=config.motion.num_segments), True),
        "validation": (
            motion_views(config.motion, num_segments=config.motion.num_segments),
            False,
        ),
        "test": (
            motion_views(
                config.motion,
                num_segments=config.evaluation.num_segments,
                crops=config.evaluation.crops,
            ),
            False,
        ),
    }
    for role, (views, augmented) in protocols.items():
        names = splits[role]
        batch_size = config.features.batch_size or distributed.run_on_main(
            functools.partial(
                batch_size_by_memory, network, views, config, mesh, augmented=augmented
            )
        )
        batches_per_file = max(1, VIDEOS_PER_FILE // batch_size)
        num_batches = -(-len(names) // batch_size)
        files = [
            # By their first video.
            directory / role / f"{first * batch_size:06d}.npz"
            for first in range(0, num_batches, batches_per_file)
        ]
        done = distributed.run_on_main(functools.partial(_first_missing, files))
        if done == len(files):
            continue
        if done:
            say(f"features: {done} of {len(files)} files of '{role}' are there")
        first_batch = done * batches_per_file
        progress = Progress(num_batches, f"features: {role}", "batches", done_before=first_batch)
        batches = view_batches(
            dataset,
            names,
            motion=views,
            augmented_views=config.features.train_views if augmented else 0,
            frames=config.clip.frame,
            image_size=clip.config.vision.image_size,
            batch_size=batch_size,
            seed=config.seed,
            first_batch=first_batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ).as_numpy_iterator()
        pending: list[dict[str, np.ndarray]] = []
        for number, batch in enumerate(batches, start=first_batch + 1):
            pending.append(extract(batch))
            progress.advance()
            if number % batches_per_file == 0 or number == num_batches:
                _write(files[(number - 1) // batches_per_file], pending)
                pending = []
        progress.done()


def batch_size_by_memory(
    network: MotionNetwork, views: MotionViews, config: ConfigDict, mesh: Mesh, *, augmented: bool
) -> int:
    """Returns how many videos go through both networks in a step, on the devices of this mesh."""
    size = bytes_of_a_video(
        network.backbone.config,
        side=views.image_size,
        segments=views.num_segments,
        views=config.features.train_views if augmented else views.crops,
        images=num_images(config.clip.frame),
    )
    return extraction_batch_size(size, free_memory(mesh.local_devices), mesh.size)


def _first_missing(files: list[Path]) -> int:
    return next((i for i, path in enumerate(files) if not path.exists()), len(files))


def load_features(directory: Path, role: str, num_videos: int) -> Features:
    """Reads what `extract_features` wrote of one role.

    Raises:
      ValueError: some of its `num_videos` videos are missing or doubled.
    """
    if num_videos == 0:
        empty = np.zeros((0, 0), np.float32)
        return Features(empty[:, None], empty, np.zeros((0,), np.int32))
    parts = [dict(np.load(path)) for path in sorted((directory / role).glob("[0-9]*.npz"))]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not np.array_equal(np.sort(whole["index"]), np.arange(num_videos)):
        raise ValueError(
            f"{directory / role} holds features of {len(np.unique(whole['index']))} of "
            f"{num_videos} videos; delete {directory} to extract them again"
        )
    order = np.argsort(whole["index"])
    return Features(*(whole[name][order] for name in Features._fields))


def _write(path: Path, parts: list[dict[str, np.ndarray]]) -> None:
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = whole.pop("mask")
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            np.savez(temporary, **{name: value[rows] for name, value in whole.items()})
