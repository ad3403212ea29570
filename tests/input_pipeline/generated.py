"""A data set of generated videos, some of which misbehave; worker processes import it quickly."""

import functools
import pathlib

from moclip_jax.input_pipeline.datasets.definition import Source, VideoDataset, VideoEntry
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset, prepare_dataset
from tests.input_pipeline.misbehaving import SPEC, make

NUM_VIDEOS = 10


class Generated(VideoDataset):
    """Ten generated videos, half of them for testing; `options` says which misbehave."""

    name = "generated"

    def sources(self, download):
        del download
        options = self.config.options
        return ["even", "odd"], [
            Source(
                VideoEntry(f"v{i}", i % 2, f"g{i}", ("train" if i < 5 else "test",)),
                functools.partial(make, i, options.get(f"v{i}", ""), options["folder"]),
            )
            for i in range(options.get("number", NUM_VIDEOS))
        ]


def prepare(
    folder: pathlib.Path, data_dir: str = "data", workers: int = 1, **options
) -> PreparedDataset:
    """Prepare the data set; options are `beam`, `spec`, `number` and what befalls a video."""
    traps = {key: value for key, value in options.items() if key not in ("beam", "spec")}
    return prepare_dataset(
        "generated",
        data_dir=folder / data_dir,
        spec=options.get("spec", SPEC),
        num_workers=workers,
        options={"folder": str(folder)} | traps,
        beam=options.get("beam", ""),
    )
