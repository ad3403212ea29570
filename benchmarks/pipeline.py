"""How many training samples one core makes from prepared data, and where the time goes.

    python -m benchmarks.pipeline [--rounds=5]

A sample is what the published recipe trains on: three segments of 224x224. The process keeps to
one core. Rows are timed in turns. Training samples come from the compiled kernel
(`training_kernel.py`); the row below makes such samples by the definition in NumPy
(`views.training_view`). Test views and images are what features are extracted from. The time until
the first batch of an epoch is shown separately: it does not grow with the epoch.
"""

import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from moclip_jax.runtime.cli import CommandParser, run

GOAL = 300


def rows(rounds: int) -> list[dict[str, Any]]:
    """Return samples a second, by the clock and of the processor's time, of each stage.

    Args:
      rounds: passes over the data of each stage.

    Each row holds `stage`, `clock` and `processor` (videos a second), and `start`: processor
    seconds until the first batch.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # After that, so that TensorFlow makes threads for one core.
    import tensorflow as tf

    from benchmarks.preparation import prepare, write_clips
    from moclip_jax.input_pipeline.batches import MotionViews, train_batches, view_batches

    views = MotionViews()
    names = ("label", "displacements", "is_intra", "num_frames")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_clips(folder, copies=16)
        dataset = prepare(folder, workers=1)
        videos = [entry.name for entry in dataset.index]

        @tf.function(autograph=False)
        def parsed(record: Any) -> Any:
            return dataset.parse(record, names)["displacements"][0]

        def records() -> Any:
            return tf.data.TFRecordDataset(dataset.records())

        def trained(epoch: int) -> Any:
            return train_batches(
                dataset, videos, views, batch_size=8, seed=0, epoch=epoch, shuffle_buffer=64
            )

        def viewed(epoch: int, **options: Any) -> Any:
            return view_batches(dataset, videos, batch_size=8, seed=epoch, **options)

        stages = {
            "records read": lambda _: records().batch(8),
            "and parsed": lambda _: records().map(parsed).batch(8),
            "training samples": trained,
            "the same by NumPy": lambda n: viewed(n, motion=views, augmented_views=1),
            "test views": lambda n: viewed(n, motion=views),
            "images": lambda n: viewed(n, motion=None, frames="middle"),
        }
        times: dict[str, list[tuple[float, ...]]] = {stage: [] for stage in stages}
        for number in range(rounds + 1):
            for stage, make in stages.items():
                options = tf.data.Options()
                options.threading.private_threadpool_size = 1
                begin = time.process_time()
                data = make(number).with_options(options)
                iterator = iter(data)
                next(iterator)
                clock, processor = time.perf_counter(), time.process_time()
                for _ in iterator:
                    pass
                ended = time.perf_counter() - clock, time.process_time() - processor
                times[stage].append((*ended, processor - begin))
    timed = len(videos) - 8
    return [
        {
            "stage": stage,
            "clock": timed / float(np.median([one[0] for one in passes[1:]])),
            "processor": timed / float(np.median([one[1] for one in passes[1:]])),
            "start": float(np.median([one[2] for one in passes[1:]])),
        }
        for stage, passes in times.items()
    ]


def print_rows(rounds: int) -> list[dict[str, Any]]:
    head = ("videos/s, clock", "processor", "ms each", "start, s")
    print(f"{'one core':<28}" + "".join(f"{title:>17}" for title in head))
    found = rows(rounds)
    for row in found:
        each = 1e3 / row["processor"]
        print(
            f"{row['stage']:<28}{row['clock']:>17.0f}{row['processor']:>17.0f}{each:>17.2f}"
            f"{row['start']:>17.2f}"
        )
    print(f"goal: {GOAL} training samples a second")
    return found


def main(argv: list[str] | None = None) -> int:
    """Read the command line and prints the table."""
    parser = CommandParser("benchmarks.pipeline", "Time the making of samples.", ("--rounds=3",))
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed passes (5)")
    arguments = parser.parse(argv)
    return run(lambda: print_rows(arguments.rounds) and None)


if __name__ == "__main__":
    raise SystemExit(main())
