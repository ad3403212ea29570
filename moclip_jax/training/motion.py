"""Stage `motion`: train the motion network on segments of motion fields."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moclip_jax.config import motion_network_config, motion_views
from moclip_jax.input_pipeline.batches import (
    MotionViews,
    PreparedDataset,
    train_batches,
    view_batches,
)
from moclip_jax.models.fisher_vectors import FisherNetwork
from moclip_jax.models.moclip import MotionModel, motion_network
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.pretrained import load_efficientnet
from moclip_jax.runtime.tree_io import load_tree, save_tree
from moclip_jax.training.fingerprint import weights_fingerprint
from moclip_jax.training.fisher import fit_fisher_network
from moclip_jax.training.metrics import class_weights
from moclip_jax.training.optimizers import motion_optimizer
from moclip_jax.training.trainer import Batch, Task, train_and_evaluate


def result_settings(motion: ConfigDict) -> dict[str, Any]:
    """Return the settings of the section `config.motion` that change the result."""
    settings = motion.to_dict()
    settings.pop("checkpoint_every_steps")
    # Said only if it is not the published one, so that the networks of earlier versions are kept.
    if settings["head"] == "mean":
        del settings["head"]
    return settings


def initial_motion_network(config: ConfigDict, num_classes: int) -> MotionModel:
    """Return the network that training starts from: random, or with ImageNet weights."""
    rngs = nnx.Rngs(config.seed)
    network = motion_network(motion_network_config(config.motion, num_classes), rngs=rngs)
    if config.motion.pretrained:
        assert isinstance(network, MotionNetwork)  # As the checks of the configuration say.
        network.backbone = load_efficientnet(
            config.motion.pretrained,
            in_channels=2,
            num_classes=num_classes,
            variant=config.motion.backbone,
            dtype=jnp.dtype(config.motion.dtype),
            rngs=rngs,
        )
    return network


def network_logits(model: MotionNetwork, batch: Batch, train: bool, key: Any) -> jax.Array:
    """Return logits float32 `[B, classes]` of a batch with `motion`, as the training loop takes."""
    return model(batch["motion"], train=train).astype(jnp.float32)


def network_optimizer(
    motion: ConfigDict, steps_per_epoch: int, params: nnx.State
) -> optax.GradientTransformation:
    """Return the optimizer of the section `config.motion` for a network's parameters."""
    return motion_optimizer(
        params,
        learning_rate=motion.learning_rate,
        boundaries=tuple(epoch * steps_per_epoch for epoch in motion.decay_epochs),
        decay_factor=motion.decay_factor,
        eps=motion.adam_eps,
        weight_decay=motion.weight_decay,
        multipliers={
            "classifier": motion.classifier_multiplier,
            "stem": motion.stem_multiplier,
            "rest": motion.rest_multiplier,
        },
    )


def epoch_batches(
    config: ConfigDict,
    dataset: PreparedDataset,
    names: list[str],
    views: MotionViews,
    batch_size: int,
) -> Callable[[int, int], Iterator[Batch]]:
    """Return `(epoch, first_step) -> batches` of this process, as `trainer.Task` takes them."""

    def batches(epoch: int, first_step: int) -> Iterator[Batch]:
        return train_batches(
            dataset,
            names,
            views,
            batch_size=batch_size,
            seed=config.seed,
            epoch=epoch,
            first_step=first_step,
            shuffle_buffer=config.motion.shuffle_buffer,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ).as_numpy_iterator()

    return batches


def train_motion(
    config: ConfigDict,
    dataset: PreparedDataset,
    splits: dict[str, list[str]],
    mesh: Mesh,
    directory: Path,
) -> None:
    """Train the motion network, or resume; write its best weights to `directory/network`."""
    motion = config.motion
    initial = initial_motion_network(config, len(dataset.class_names))
    if isinstance(initial, FisherNetwork):
        fit_fisher_network(config, dataset, splits["train"], initial)
        save_tree(directory / "network", nnx.state(initial))
        return
    steps_per_epoch = len(splits["train"]) // motion.batch_size
    views = motion_views(motion, num_segments=motion.num_segments)

    def validation() -> Iterator[Batch]:
        rows = view_batches(
            dataset,
            splits["validation"],
            motion=views,
            frames=None,
            batch_size=motion.batch_size,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for batch in rows.as_numpy_iterator():
            yield {"motion": batch["motion"][:, 0], "label": batch["label"], "mask": batch["mask"]}

    network = train_and_evaluate(
        Task(
            name="motion",
            model=initial,
            logits=network_logits,
            optimizer=lambda params: network_optimizer(motion, steps_per_epoch, params),
            batches=epoch_batches(config, dataset, splits["train"], views, motion.batch_size),
            steps_per_epoch=steps_per_epoch,
            num_epochs=motion.num_epochs,
            validation=validation if splits["validation"] else None,
            eval_every_epochs=motion.eval_every_epochs,
            checkpoint_every_steps=motion.checkpoint_every_steps,
            seed=config.seed,
            profile_steps=config.profile_steps,
            class_weights=class_weights(dataset.labels(splits["train"]), len(dataset.class_names))
            if config.balanced_loss
            else None,
            about={
                "config": result_settings(motion),
                "class_names": dataset.class_names,
                "preprocessing": dataclasses.asdict(dataset.spec),
                "weights": {
                    "initial": weights_fingerprint(
                        motion.pretrained or "random", nnx.state(initial)
                    )
                },
            },
        ),
        directory,
        mesh,
    )
    save_tree(directory / "network", nnx.state(network))


def load_motion_network(config: ConfigDict, num_classes: int, directory: Path) -> MotionModel:
    """Return the network that `train_motion` wrote to `directory/network`."""
    network = nnx.eval_shape(
        lambda: motion_network(motion_network_config(config.motion, num_classes), rngs=nnx.Rngs(0))
    )
    nnx.update(network, load_tree(directory / "network", nnx.state(network)))
    return network
