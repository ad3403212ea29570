"""Stage `prepare`: decode all videos once, store their motion vectors, and split them."""

from pathlib import Path

from ml_collections import ConfigDict

from moclip_jax.config import FISHER, stages_of, video_spec
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset, prepare_dataset
from moclip_jax.runtime import distributed
from moclip_jax.runtime.progress import say


def open_dataset(config: ConfigDict, workdir: Path, *, only_open: bool = False) -> PreparedDataset:
    """Return the run's prepared videos, and prepare them first if they do not exist.

    The main process prepares them while the others wait.

    Args:
      workdir: The run's folder, which holds them unless `config.dataset.data_dir` names another.

    Raises:
      FileNotFoundError: They do not exist, and `only_open` is set.
      ValueError: The files or settings of the data set are wrong, or have changed since.
    """
    dataset = distributed.run_on_main_first(
        lambda: prepare_dataset(
            config.dataset.name,
            data_dir=config.dataset.data_dir or str(workdir / "data"),
            spec=video_spec(config),
            videos=config.dataset.videos,
            lists=config.dataset.lists,
            num_workers=config.dataset.num_workers,
            options=config.dataset.options.to_dict(),
            only_open=only_open,
            beam=config.dataset.beam,
        )
    )
    number = config.selection.get("num_classes", 0)
    return dataset.first_classes(number) if number else dataset


def video_splits(config: ConfigDict, dataset: PreparedDataset) -> dict[str, list[str]]:
    """Return the names of the videos under `train`, `validation`, `test` and `rejected_test`."""
    return dataset.splits(
        split=config.dataset.split,
        selection=config.selection.mode,
        heldout_fraction=config.selection.heldout_fraction,
        seed=config.seed,
        # Reports are also written of runs of earlier versions, which had none of these.
        shots=config.selection.get("shots", 0),
        shot_list=config.selection.get("shot_list", ""),
    )


def trained_in_batches(config: ConfigDict) -> tuple[str, ...]:
    """Return the sections of the networks that are trained by gradient descent."""
    if "pretrain" in stages_of(config):
        return ("pretraining",)
    motion = () if config.motion.backbone == FISHER else ("motion",)
    return motion if config.fusion.fit == "ridge" else (*motion, "fusion")


def check_batch_sizes(config: ConfigDict, splits: dict[str, list[str]]) -> None:
    """Check that the training split fills at least one batch of each trained stage.

    Raises:
      ValueError: It does not; the message names the setting and the number of videos.
    """
    for section in trained_in_batches(config):
        batch_size = config[section].batch_size
        if len(splits["train"]) < batch_size:
            raise ValueError(
                f"config.{section}.batch_size={batch_size} is larger than the training split "
                f"({len(splits['train'])} videos); lower it"
            )


def log_splits(dataset: PreparedDataset, splits: dict[str, list[str]]) -> None:
    """Log each rejected video with the reason, and the number of videos of each split."""
    rejected = [entry for entry in dataset.index if entry.error]
    for entry in rejected:
        say(f"prepare: rejected {entry.name}: {entry.error}")
    say(
        f"prepare: {len(dataset.index)} videos of {len(dataset.class_names)} classes, "
        f"{len(rejected)} rejected; train {len(splits['train'])}, validation "
        f"{len(splits['validation'])}, test {len(splits['test'])}"
    )
