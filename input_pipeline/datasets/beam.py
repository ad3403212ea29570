"""Prepare shards with Apache Beam, which is optional (requirements-beam.txt).

Each shard is one unit of work. A Beam worker writes it to the folder of the shards, so that all
workers need that folder and the videos under the same paths, as on a shared file system.
"""

from collections.abc import Sequence
from typing import Any

from moclip_jax.input_pipeline.datasets.definition import Source
from moclip_jax.input_pipeline.datasets.shards import ShardFolder
from moclip_jax.input_pipeline.datasets.worker import make_records
from moclip_jax.input_pipeline.video.clip import VideoSpec


def pipeline_options(options: str) -> Any:
    """Return Beam's pipeline options.

    Args:
      options: Names and values separated by commas, such as
        'runner=DirectRunner,direct_num_workers=4,direct_running_mode=multi_processing'.

    Raises:
      ValueError: Beam is not installed, or does not know the options.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            "Apache Beam is not installed; pip install -r requirements-beam.txt, or leave "
            "config.dataset.beam empty"
        ) from error
    made = PipelineOptions(flags=[f"--{option}" for option in options.split(",")])
    unknown = (
        made.get_all_options(retain_unknown_options=True).keys() - made.get_all_options().keys()
    )
    if unknown:
        raise ValueError(f"config.dataset.beam: Beam knows no option {', '.join(sorted(unknown))}")
    return made


def write_shards(
    folder: ShardFolder,
    shards: Sequence[tuple[int, Sequence[Source]]],
    spec: VideoSpec,
    *,
    options: Any,
) -> None:
    """Prepare shards (number and videos) in a Beam pipeline; return when all are finished."""
    import apache_beam as beam

    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create([(index, list(sources)) for index, sources in shards])
            # Without it a runner may fuse all steps, and one worker does everything.
            | "Distribute" >> beam.Reshuffle()
            | "Prepare" >> beam.Map(_write_shard, folder, spec)
        )


def _write_shard(shard: tuple[int, list[Source]], folder: ShardFolder, spec: VideoSpec) -> None:
    index, sources = shard
    if folder.outcomes(index) is None:
        for _ in folder.write(index, make_records(sources, spec, num_workers=1)):
            pass
