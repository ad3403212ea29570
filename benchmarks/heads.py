"""Row of the fusion head: a whole training on cached features of UCF101's size."""

import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks.networks import CLASSES
from benchmarks.peer import Peer
from benchmarks.timing import Comparison, in_turns, timed
from moclip_jax.config import default_config, fusion_config
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.fusion import FusionHead
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training.heads import chosen_features, feature_choices, head_logits
from moclip_jax.training.optimizers import head_optimizer
from moclip_jax.training.scan_epoch import DeviceData, place_data
from moclip_jax.training.trainer import Task, train_and_evaluate

# Of UCF101's first split.
VIDEOS = 9537


def head_training(folder: Path, peer: Peer, epochs: int, rounds: int) -> Comparison:
    """Time the fusion head's training, checkpoints and start included.

    Args:
      folder: for the features, 0.5 GB.
      peer: the other side.
      epochs: 100 is the published number.
      rounds: timed trainings of each side.
    """
    config = default_config()
    fusion, views = config.fusion, config.features.train_views
    rng = np.random.default_rng(0)
    data = {
        "motion": rng.standard_normal((VIDEOS, views, 1280), np.float32),
        "appearance": rng.standard_normal((VIDEOS, 512), np.float32),
        "label": rng.integers(0, CLASSES, VIDEOS).astype(np.int32),
    }
    paths = {name: str(folder / f"{name}.npy") for name in data}
    for name, values in data.items():
        np.save(paths[name], values)
    mesh = make_mesh()
    steps = VIDEOS // fusion.batch_size

    def choices(epoch: int, first_step: int) -> dict[str, np.ndarray]:
        return feature_choices(
            VIDEOS, views, batch_size=fusion.batch_size, seed=0, epoch=epoch, first_step=first_step
        )

    def train() -> None:
        placed = place_data(data, mesh)
        assert placed is not None
        head = FusionHead(
            fusion_config(
                config,
                motion_features=1280,
                clip=CLIPConfig.named("vit_b32"),
                num_classes=CLASSES,
            ),
            rngs=nnx.Rngs(0),
        )
        task = Task(
            name="head",
            model=head,
            logits=head_logits,
            optimizer=lambda params: head_optimizer(
                learning_rate=fusion.learning_rate, weight_decay=fusion.weight_decay
            ),
            batches=lambda epoch, first: iter(()),
            device_data=DeviceData(placed, choices, chosen_features),
            steps_per_epoch=steps,
            num_epochs=epochs,
            eval_every_epochs=fusion.eval_every_epochs,
            checkpoint_every_steps=steps * epochs,
        )
        with tempfile.TemporaryDirectory() as directory:
            jax.block_until_ready(nnx.state(train_and_evaluate(task, Path(directory), mesh)))

    other = peer.job(
        "head_training", **paths, classes=CLASSES, epochs=epochs, batch_size=fusion.batch_size
    )
    times = in_turns([timed(train), other], rounds, warm_up=0)
    other.drop()
    return Comparison(
        f"fusion head, {epochs} epochs of {VIDEOS} videos",
        "a plain loop of PyTorch",
        1,
        "training",
        *times,
        notes={"goal_s": 1.2 * epochs},
    )
