"""Stage `fusion`: train the fusion head, and a head on CLIP alone for comparison."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.heads import Head, apply_head, build_head
from moclip_jax.models.text_head import ClassText, TextHead
from moclip_jax.runtime import distributed
from moclip_jax.runtime.progress import say
from moclip_jax.runtime.tree_io import load_tree, save_tree
from moclip_jax.training.evaluate import fused_logits
from moclip_jax.training.features import Features
from moclip_jax.training.metrics import class_weights
from moclip_jax.training.optimizers import head_optimizer
from moclip_jax.training.rejection import write_rejection
from moclip_jax.training.ridge import fit_ridge_head
from moclip_jax.training.scan_epoch import DeviceData, place_data
from moclip_jax.training.trainer import Batch, Task, train_and_evaluate

# From zero-shot CLIP to the trained head.
ALPHAS = np.linspace(0, 1, 11)
# Row of the results -> whether its head uses motion features.
HEADS = {"clip_head": False, "fusion": True}


def head_logits(head: Head, batch: Batch, train: bool, key: jax.Array | None) -> jax.Array:
    """Return logits `[B, classes]` of a batch with `motion` and `appearance`, as a head takes."""
    rngs = nnx.Rngs(dropout=key) if key is not None else None
    return apply_head(head, batch["motion"], batch["appearance"], batch.get("tokens"), rngs=rngs)


def feature_choices(
    num_videos: int,
    num_views: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, np.ndarray]:
    """Return this process's rows of each shuffled global batch, one random view of each video.

    The order and the views depend on `(seed, epoch)` alone. The last partial batch is dropped.

    Returns:
      `video` and `view`, int32 `[steps, rows]`, from `first_step` on.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(num_videos)
    views = rng.integers(num_views, size=num_videos)
    rows = batch_size // process_count
    begin = process_index * rows
    steps = order[: num_videos // batch_size * batch_size].reshape(-1, batch_size)
    videos = steps[first_step:, begin : begin + rows]
    return {"video": videos.astype(np.int32), "view": views[videos].astype(np.int32)}


def chosen_features(data: dict[str, Any], chosen: dict[str, Any]) -> Batch:
    """Return the batch of one step: `motion`, `appearance` and `label`, each `[B, ...]`.

    Args:
      data: The fields of `Features` by name, as NumPy or JAX arrays.
      chosen: `video` and `view`, int `[B]`.
    """
    batch = {name: values[chosen["video"]] for name, values in data.items() if name != "motion"}
    return batch | {"motion": data["motion"][chosen["video"], chosen["view"]]}


def padded_batches(
    features: Features, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Yield this process's rows of all videos, views averaged; `mask` is False for padding."""
    rows = batch_size // process_count
    for start in range(0, len(features.label), batch_size):
        begin = start + process_index * rows
        videos = np.arange(begin, begin + rows)
        mask = videos < len(features.label)
        videos = np.where(mask, videos, 0)
        batch = {name: values[videos] for name, values in features.arrays().items()}
        yield batch | {"motion": batch["motion"].mean(axis=1), "mask": mask}


def train_heads(
    config: ConfigDict,
    train: Features,
    validation: Features,
    head_configs: Mapping[str, FusionConfig],
    mesh: Mesh,
    directory: Path,
    about: Mapping[str, Any] | None = None,
    groups: Sequence[str] = (),
    class_text: ClassText | None = None,
) -> None:
    """Train both heads on cached features, and write each to `directory/NAME/network`.

    Args:
      config: The whole configuration.
      train: Features of the training videos.
      validation: Features of the validation videos.
      head_configs: Architecture of each head.
      mesh: The devices.
      directory: The stage's folder; training resumes from its newest checkpoint.
      about: What else the heads are made from, see `Task.about`.
      groups: Of the training videos; for `config.fusion.fit='ridge'`.
      class_text: Of the classes; for `config.fusion.head='text'`.
    """
    fusion = config.fusion
    if fusion.fit == "ridge":
        for name, head_config in head_configs.items():
            head = build_head(head_config, rngs=nnx.Rngs(config.seed))
            assert isinstance(head, FusionHead)  # As the checks of the configuration say.
            say(f"fusion: {name} in closed form")
            _, heldout = fit_ridge_head(head, train, groups)
            if train.label.ndim == 1:
                write_rejection(directory / name, heldout)
            save_tree(directory / name / "network", nnx.state(head))
        return
    steps_per_epoch = len(train.label) // fusion.batch_size
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    # Both heads use the same copy.
    data = place_data(train.arrays(), mesh)
    if data is None:
        say("fusion: the features do not fit on a device, so batches are sent one by one")
    for name, head_config in head_configs.items():
        if distributed.run_on_main((directory / name / "network").exists):
            continue
        head = build_head(head_config, rngs=nnx.Rngs(config.seed))
        if isinstance(head, TextHead):
            assert class_text is not None
            head.start_from(class_text)

        def choices(epoch: int, first_step: int) -> dict[str, np.ndarray]:
            return feature_choices(
                *train.motion.shape[:2],
                batch_size=fusion.batch_size,
                seed=config.seed,
                epoch=epoch,
                first_step=first_step,
                **processes,
            )

        def batches(epoch: int, first_step: int) -> Iterator[Batch]:
            chosen = choices(epoch, first_step)
            for video, view in zip(chosen["video"], chosen["view"], strict=True):
                yield chosen_features(train.arrays(), {"video": video, "view": view})

        def validation_batches() -> Iterator[Batch]:
            return padded_batches(validation, batch_size=fusion.batch_size, **processes)

        trained = train_and_evaluate(
            Task(
                name=name,
                model=head,
                logits=head_logits,
                optimizer=lambda params: head_optimizer(
                    learning_rate=fusion.learning_rate, weight_decay=fusion.weight_decay
                ),
                batches=batches,
                device_data=None if data is None else DeviceData(data, choices, chosen_features),
                steps_per_epoch=steps_per_epoch,
                num_epochs=fusion.num_epochs,
                validation=validation_batches if len(validation.label) else None,
                eval_every_epochs=fusion.eval_every_epochs,
                checkpoint_every_steps=steps_per_epoch * fusion.num_epochs,
                seed=config.seed,
                class_weights=class_weights(train.label, head_config.num_classes)
                if config.balanced_loss
                else None,
                about={"config": fusion.to_dict(), **(about or {})},
            ),
            directory / name,
            mesh,
        )
        if isinstance(trained, TextHead):
            trained = trained.interpolated(_alpha(fusion.alpha, trained, validation))
        assert isinstance(trained, Head)
        if len(validation.label) and train.label.ndim == 1:
            write_rejection(directory / name, np.asarray(fused_logits(trained, validation)))
        save_tree(directory / name / "network", nnx.state(trained))


def _alpha(setting: str, head: TextHead, heldout: Features) -> float:
    """Return the number that `config.fusion.alpha` is, or that held-out videos ask for."""
    if setting != "auto":
        return float(setting)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(
            fused_logits(head.interpolated(alpha), heldout), heldout.label
        ).mean()
        for alpha in ALPHAS
    ]
    alpha = float(ALPHAS[np.argmin(losses)])
    say(f"fusion: alpha {alpha:.1f} has the least loss on the held-out videos")
    return alpha


def load_head(config: FusionConfig, directory: Path) -> Head:
    """Return the head that `train_heads` wrote to `directory/network`."""
    head = nnx.eval_shape(lambda: build_head(config, rngs=nnx.Rngs(0)))
    nnx.update(head, load_tree(directory / "network", nnx.state(head)))
    return head
