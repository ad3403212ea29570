"""The prepared videos of a run, as its configuration names them, and what each is for."""

from pathlib import Path

from ml_collections import ConfigDict

from moclip_jax.config import video_spec
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset, prepare_dataset
from moclip_jax.runtime import distributed


def open_dataset(config: ConfigDict, workdir: Path, *, only_open: bool = False) -> PreparedDataset:
    """Returns the run's prepared videos, preparing them first if they are not there.

    Args:
      config: the whole configuration.
      workdir: the run's folder, which holds them unless `config.dataset.data_dir` names another.
      only_open: True prepares nothing.

    In a run of several processes one prepares while the others wait.

    Raises:
      FileNotFoundError: they are not there and `only_open`.
      ValueError: the data set's files or settings are wrong, or changed since.
    """
    return distributed.run_on_main_first(
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


def video_splits(config: ConfigDict, dataset: PreparedDataset) -> dict[str, list[str]]:
    """Returns the names of the videos under `train`, `validation`, `test` and `rejected_test`."""
    return dataset.splits(
        split=config.dataset.split,
        selection=config.selection.mode,
        heldout_fraction=config.selection.heldout_fraction,
        seed=config.seed,
    )
