"""Prepare shards under Apache Beam, which is optional (requirements-beam.txt).

Each shard is one piece of work. A Beam worker writes it to the folder of the shards, so all
workers need that folder and the videos under the same paths, as on a shared file system.
"""

from collections.abc import Sequence
from typing import Any

from moclip_jax.input_pipeline.datasets.shards import ShardFolder
from moclip_jax.input_pipeline.datasets.worker import Source, make_records
from moclip_jax.input_pipeline.video.clip import VideoSpec


def pipeline_options(options: str) -> Any:
    """Return Beam's pipeline options.

    Args:
      options: Separated by commas, as `tfds build --beam_pipeline_options` takes them, such as
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
    runner: Any = None,
) -> None:
    """Prepare shards by a Beam pipeline; returns when all are finished.

    Args:
      folder: Where they are written.
      shards: Number and videos of each.
      spec: The canonical form.
      options: Beam's `PipelineOptions`; None for Beam's own.
      runner: A Beam runner, or its name; None for that of the options.
    """
    import apache_beam as beam

    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create([(index, list(sources)) for index, sources in shards])
            # Else a runner may join all that follows, and one worker does everything.
            | "Distribute" >> beam.Reshuffle()
            | "Prepare" >> beam.Map(_write_shard, folder, spec)
        )


def _write_shard(shard: tuple[int, list[Source]], folder: ShardFolder, spec: VideoSpec) -> None:
    index, sources = shard
    if folder.outcomes(index) is None:
        for _ in folder.write(index, make_records(sources, spec, num_workers=1)):
            pass
