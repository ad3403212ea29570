"""How much of training would wait for data, against the speed of the device.

    python -m benchmarks.starvation

The pipeline of motion training at full size feeds a device that is simulated: it takes every batch
and rests for a given time, which leaves the processor to the pipeline as an accelerator would. What
is told is the share of time that it waited (`moclip_jax.training.metric_log`), and the fastest
device that this machine's processor can feed.
"""

import os
import tempfile
import time
from pathlib import Path

from moclip_jax.config import default_config
from moclip_jax.runtime.cli import CommandParser, run

VIDEOS_A_BATCH = 16
STEPS = 4
# Of one step of the simulated device.
MILLISECONDS = (0, 50, 100, 200, 400, 800, 1600)


class _Device:
    """Always done: the rest has passed before the next batch is requested."""

    def is_ready(self) -> bool:
        return True


def measure() -> None:
    """Print a Markdown table."""
    from moclip_jax.config import motion_views
    from moclip_jax.input_pipeline.batches import train_batches
    from moclip_jax.training.metric_log import StepTimer
    from moclip_jax.training.prepare import open_dataset

    config = default_config()
    config.dataset.name = "moving_shapes"
    config.dataset.options.num_train_groups = 1
    config.dataset.options.num_test_groups = 1
    config.dataset.options.num_frames = 48
    config.dataset.options.height, config.dataset.options.width = 256, 340
    config.video.clip_frames = 1
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(config, Path(folder))
        names = [entry.name for entry in dataset.index if not entry.error]
        views = motion_views(config.motion, num_segments=config.motion.num_segments)
        steps = min(STEPS, len(names) // VIDEOS_A_BATCH)
        print(
            f"{os.cpu_count()} cores; batches of {VIDEOS_A_BATCH} videos x "
            f"{config.motion.num_segments} fields of {config.motion.image_size} pixels\n\n"
            "| ms a step of the device | waiting for data | videos a second |\n|---|---|---|"
        )
        for rest in MILLISECONDS:
            pace = StepTimer(Path(folder))
            for attempt in range(2):  # The first one traces the pipeline.
                batches = train_batches(
                    dataset, names, views, batch_size=VIDEOS_A_BATCH, seed=0, epoch=attempt
                )
                start = time.perf_counter()
                for _ in pace.items(batches.take(steps).as_numpy_iterator()):
                    time.sleep(rest / 1e3)
                    pace.dispatched(_Device(), 1)  # type: ignore[arg-type]
                seconds = time.perf_counter() - start
                share = pace.end_epoch(attempt, steps)
            print(f"| {rest} | {share:.0%} | {steps * VIDEOS_A_BATCH / seconds:.0f} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Read the command line and measures."""
    CommandParser(
        "benchmarks.starvation",
        "Measure which share of motion training would wait for data, against the device's speed.",
        ("",),
    ).parse(argv)
    return run(measure)


if __name__ == "__main__":
    raise SystemExit(main())
