"""Time and memory of `predict` on one short clip as a whole process, beside importing JAX and Flax.

    python -m benchmarks.startup

The export is of `configs/demo.py`'s sizes with random weights; a trained one takes as long. The
second start is what counts: the first compiles, and leaves the compiled program for the next.
"""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# Goals of the second start: times the imports' seconds, and megabytes of the largest process.
MOST_RATIO, MOST_MEGABYTES = 3.0, 450
IMPORTS = "import jax, flax.nnx"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a process cost.

    Attributes:
      wall_s: seconds from start to end.
      cpu_s: seconds of all cores, those of child processes included.
      megabytes: peak memory of the largest process, the child processes included.
    """

    wall_s: float
    cpu_s: float
    megabytes: float


def make_inputs(folder: Path) -> tuple[str, str]:
    """Write an export of the demo's sizes with random weights, and a clip; returns both paths."""
    from flax import nnx

    from benchmarks.clips import generated_video
    from moclip_jax.config import fusion_config, motion_network_config
    from moclip_jax.configs import demo
    from moclip_jax.export.exporter import export_model
    from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, SHAPES
    from moclip_jax.models.fusion import FusionHead
    from moclip_jax.models.motion_network import MotionNetwork
    from moclip_jax.pretrained import TINY_CLIP, load_tower

    config = demo.get_config()
    names = [f"{shape} {motion}" for shape in SHAPES for motion in MOTIONS]
    clip, tokenizer = load_tower(TINY_CLIP)
    network_config = motion_network_config(config.motion, len(names))
    dimension = clip.config.projection_dim
    network, head = nnx.jit(
        lambda: (
            MotionNetwork(network_config, rngs=nnx.Rngs(0)),
            FusionHead(
                fusion_config(
                    config,
                    motion_features=network_config.num_features,
                    clip=clip.config,
                    num_classes=len(names),
                ),
                rngs=nnx.Rngs(1),
            ),
        )
    )()
    text = np.zeros((len(names), dimension), np.float32)
    export_model(config, names, network, clip, tokenizer, head, text, {}, {}, folder / "export")
    return str(folder / "export"), str(generated_video(folder, 75, 256, 256))


def start(arguments: list[str], environment: dict[str, str]) -> Start:
    """Run Python with some arguments, and returns what it cost.

    Raises:
      RuntimeError: it failed.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {process.returncode}")
    # Of the process or of the largest of its children, in kilobytes.
    return Start(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def print_rows(rounds: int) -> list[dict[str, Any]]:
    """Print the first and the second start beside the imports; returns the rows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In another process: the peak memory of a child counts that of its parent at the start.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            export, video = process.submit(make_inputs, folder).result()
        environment = {"MOCLIP_JAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
        command = ["-m", "moclip_jax.predict", f"--workdir={export}", video]
        first = start(command, environment)
        # In turns, so that a noisy machine disturbs both alike.
        pairs = [
            (start(command, environment), start(["-c", IMPORTS], environment))
            for _ in range(rounds)
        ]
    medians = [
        Start(*np.median([dataclasses.astuple(pair[side]) for pair in pairs], axis=0).tolist())
        for side in (0, 1)
    ]
    names = ("predict, first start", "predict, second start", IMPORTS)
    starts = (first, *medians)
    print("| process | seconds | of the imports | CPU seconds | of the imports | peak MB |")
    print("|---|---|---|---|---|---|")
    base = starts[-1]
    rows = []
    for name, one in zip(names, starts, strict=True):
        wall, cpu = one.wall_s / base.wall_s, one.cpu_s / base.cpu_s
        print(
            f"| {name} | {one.wall_s:.2f} | {wall:.2f} | {one.cpu_s:.2f} | {cpu:.2f} | "
            f"{one.megabytes:.0f} |"
        )
        rows.append({"name": name} | dataclasses.asdict(one) | {"ratio": wall, "cpu_ratio": cpu})
    second = rows[1]
    reached = second["ratio"] <= MOST_RATIO and second["megabytes"] <= MOST_MEGABYTES
    print(
        f"\ngoal of the second start, at most {MOST_RATIO:g} times the imports and "
        f"{MOST_MEGABYTES} MB: {'reached' if reached else 'missed'}"
    )
    return rows


if __name__ == "__main__":
    print_rows(5)
