"""Peak memory of every stage, each in a process of its own.

    python -m benchmarks.memory

`host` is the peak of the process above what it held before the stage (packages, weights);
`program` is what XLA reserves on the device for one call (its arguments aside). On a CPU the
second is part of the first; on an accelerator `device` is the peak that it reports.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.runtime.compilation_cache import FOLDER_VARIABLE


def _network() -> Any:
    from flax import nnx

    from benchmarks.networks import CLASSES
    from moclip_jax.models.efficientnet import EfficientNetConfig
    from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig

    config = MotionNetworkConfig(EfficientNetConfig.named("b0", in_channels=2, num_classes=CLASSES))
    return nnx.jit(lambda: MotionNetwork(config, rngs=nnx.Rngs(0)))()


def _read(source: str, frames: int) -> tuple[Callable, Callable]:
    from benchmarks.clips import generated_video
    from moclip_jax.config import default_config, video_spec
    from moclip_jax.input_pipeline.video.clip import read_clip

    config = default_config()
    config.motion.source = source
    folder = tempfile.TemporaryDirectory()
    # Made by another process, whose memory does not count.
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import pathlib, sys; from benchmarks.clips import generated_video; "
            "generated_video(pathlib.Path(sys.argv[1]), int(sys.argv[2]))",
            folder.name,
            str(frames),
        ],
        check=True,
    )
    del generated_video
    (path,) = Path(folder.name).iterdir()

    def work() -> None:
        read_clip(path, video_spec(config))
        folder.cleanup()

    return work, lambda: 0


def _compiled(function: Callable, *arguments: Any) -> tuple[Callable, Callable]:
    import jax

    from moclip_jax.runtime.device import compiler_options

    compiled = jax.jit(function, compiler_options=compiler_options()).lower(*arguments).compile()
    return (
        lambda: jax.block_until_ready(compiled(*arguments)),
        lambda: compiled.memory_analysis().temp_size_in_bytes,
    )


def _motion(fields: int) -> tuple[Callable, Callable]:
    from flax import nnx

    from benchmarks.networks import random_fields
    from moclip_jax.models.inference import motion_network_for_inference

    graphdef, state = nnx.split(motion_network_for_inference(_network()))
    return _compiled(lambda s, x: nnx.merge(graphdef, s)(x), state, random_fields(1, fields))


def _training(videos: int) -> tuple[Callable, Callable]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from benchmarks.networks import random_fields
    from moclip_jax.runtime.sharding import make_mesh
    from moclip_jax.training.optimizers import motion_optimizer
    from moclip_jax.training.trainer import TrainState, make_train_step

    graphdef, params, stats = nnx.split(_network(), nnx.Param, ...)
    optimizer = motion_optimizer(params, learning_rate=0.01)
    step = make_train_step(
        graphdef, lambda m, b, t, k: m(b["motion"], train=t), optimizer, make_mesh()
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
    batch = {"motion": random_fields(videos, 3), "label": np.zeros(videos, np.int32)}
    key = jax.random.key(0)
    compiled = step.lower(state, batch, key).compile()
    return (
        lambda: jax.block_until_ready(compiled(state, batch, key)),
        lambda: compiled.memory_analysis().temp_size_in_bytes,
    )


def _clip(batch: int) -> tuple[Callable, Callable]:
    from flax import nnx

    from moclip_jax.models.clip import CLIP, CLIPConfig
    from moclip_jax.models.inference import clip_for_inference
    from moclip_jax.runtime.device import matmul_dtype

    clip = nnx.jit(lambda: CLIP(CLIPConfig.named("vit_b32"), rngs=nnx.Rngs(0)))()
    graphdef, state = nnx.split(clip_for_inference(clip, matmul_dtype("auto")).vision)
    images = np.zeros((batch, 224, 224, 3), np.float32)
    return _compiled(lambda s, x: nnx.merge(graphdef, s)(x), state, images)


STAGES: dict[str, Callable[[], tuple[Callable, Callable]]] = {
    "reading a file of 300 frames, native": lambda: _read("native", 300),
    "reading a file of 1200 frames, native": lambda: _read("native", 1200),
    "reading a file of 300 frames, reencode": lambda: _read("reencode", 300),
    "reading a file of 1200 frames, reencode": lambda: _read("reencode", 1200),
    "motion network B0, 32 fields": lambda: _motion(32),
    "motion network B0, 128 fields": lambda: _motion(128),
    "motion training step, 4 videos x 3 fields": lambda: _training(4),
    "motion training step, 8 videos x 3 fields": lambda: _training(8),
    "CLIP ViT-B/32, 1 image": lambda: _clip(1),
    "CLIP ViT-B/32, 16 images": lambda: _clip(16),
}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measure_stage(name: str) -> None:
    import jax

    work, program = STAGES[name]()
    # What was freed by now (compilation) must not hide the stage's own peak.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _resident("VmRSS")
    work()
    reported = {"host": _resident("VmHWM") - before, "before": before, "program": program()}
    stats = jax.devices()[0].memory_stats() or {}
    reported["device"] = stats.get("peak_bytes_in_use")
    print(json.dumps(reported))


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return _peak()


def main(argv: list[str] | None = None) -> int:
    """Print a Markdown table, a line a stage."""
    parser = CommandParser(
        "benchmarks.memory", "Measure the peak memory of every stage.", ("--stage=...",)
    )
    parser.add_argument("--stage", default="", metavar="NAME", help="this one, here; prints JSON")
    arguments = parser.parse(argv)
    os.environ[FOLDER_VARIABLE] = ""
    if arguments.stage and arguments.stage not in STAGES:
        parser.error(f"--stage={arguments.stage}: there are {', '.join(STAGES)}")
    return run(lambda: _measure_stage(arguments.stage) if arguments.stage else measure())


def measure() -> None:
    """Measure every stage in a process of its own."""
    print("| stage | host, MiB | program, MiB | device, MiB |\n|---|---|---|---|", flush=True)
    for name in STAGES:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", f"--stage={name}"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if process.returncode:
            raise RuntimeError(f"the stage '{name}' ended with status {process.returncode}")
        reported = json.loads(process.stdout.splitlines()[-1])
        cells = [
            "" if reported[key] is None else f"{reported[key] / 2**20:.0f}"
            for key in ("host", "program", "device")
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
