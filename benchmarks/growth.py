"""How cost grows: against frames, resolution, segments, batch and classes, with fitted exponents.

    python -m benchmarks.growth [--out=docs/images/growth.png]

Each cost is processor time of this process, the least of a few passes, so other users of the
machine disturb little. The exponent is the slope of a straight line through the logarithms of the
larger half of the sizes, where fixed costs weigh little: 1 is linear growth.
"""

import dataclasses
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.runtime.compilation_cache import FOLDER_VARIABLE

PASSES = 3
CLASSES = 101
# Frames that the cost of their number is measured with; 12 segments each.
SEGMENTS = 12


@dataclasses.dataclass(frozen=True)
class Growth:
    """Cost of one piece of work at several sizes.

    Attributes:
      work: what is done.
      axis: what its size is.
      sizes: rising.
      seconds: of processor time, for each size.
    """

    work: str
    axis: str
    sizes: Sequence[int]
    seconds: Sequence[float]

    @property
    def exponent(self) -> float:
        """Slope of the logarithms over the larger half of the sizes."""
        half = len(self.sizes) // 2
        return fitted_exponent(self.sizes[half - 1 :], self.seconds[half - 1 :])


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of the least-squares line through (log size, log seconds)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def processor_seconds(work: Callable[[], object], passes: int = PASSES) -> float:
    """Return the least processor time of some passes, after one that does not count."""
    work()
    times = []
    for _ in range(passes):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def _video(
    frames_of: Sequence[int], sides: Sequence[tuple[int, int]], folder: Path
) -> list[Growth]:
    from benchmarks.clips import generated_video
    from moclip_jax.config import default_config, motion_views, video_spec
    from moclip_jax.input_pipeline.video.clip import read_clip
    from moclip_jax.input_pipeline.views import test_view

    for source in ("native", "reencode"):
        config = default_config()
        config.motion.source = source
        spec = video_spec(config)
        views = motion_views(config.motion, num_segments=SEGMENTS)

        def costs(paths: list[Path], spec: Any = spec, views: Any = views) -> tuple[list, list]:
            reads, looks = [], []
            for path in paths:
                reads.append(processor_seconds(lambda path=path: read_clip(path, spec), 3))
                look = functools.partial(test_view, read_clip(path, spec), views, spec)
                looks.append(processor_seconds(look, 3))
            return reads, looks

        paths = [generated_video(folder, frames) for frames in frames_of]
        reads, looks = costs(paths)
        yield Growth(f"reading a file, {source}", "frames", frames_of, reads)
        yield Growth(f"views of 12 segments, {source}", "frames", frames_of, looks)
        paths = [generated_video(folder, 48, height, width) for height, width in sides]
        reads, looks = costs(paths)
        pixels = [height * width for height, width in sides]
        yield Growth(f"reading a file, {source}", "pixels", pixels, reads)
        if source == "native":
            yield Growth("views of 12 segments, native", "pixels", pixels, looks)


def _networks() -> Iterator[Growth]:
    import jax
    from flax import nnx

    from benchmarks.networks import random_fields
    from moclip_jax.models.clip import CLIP, CLIPConfig
    from moclip_jax.models.efficientnet import EfficientNetConfig
    from moclip_jax.models.fusion import FusionConfig, FusionHead
    from moclip_jax.models.inference import clip_for_inference, motion_network_for_inference
    from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
    from moclip_jax.runtime.device import compiler_options, matmul_dtype

    def cost(module: nnx.Module, call: Callable[[Any, Any], Any], inputs: Any) -> float:
        graphdef, state = nnx.split(module)
        compiled = (
            jax.jit(
                lambda state, x: call(nnx.merge(graphdef, state), x),
                compiler_options=compiler_options(),
            )
            .lower(state, inputs)
            .compile()
        )
        return processor_seconds(lambda: jax.block_until_ready(compiled(state, inputs)))

    network = nnx.jit(
        lambda: MotionNetwork(
            MotionNetworkConfig(EfficientNetConfig.named("b0", in_channels=2, num_classes=CLASSES)),
            rngs=nnx.Rngs(0),
        )
    )()
    network = motion_network_for_inference(network)
    segments = (4, 8, 16, 32, 64)
    seconds = [cost(network, lambda m, x: m(x), random_fields(1, count)) for count in segments]
    yield Growth("motion network B0", "segments", segments, seconds)

    clip = nnx.jit(lambda: CLIP(CLIPConfig.named("vit_b32"), rngs=nnx.Rngs(0)))()
    tower = clip_for_inference(clip, matmul_dtype("auto")).vision
    batches = (1, 2, 4, 8, 16)
    images = np.zeros((batches[-1], 224, 224, 3), np.float32)
    seconds = [cost(tower, lambda m, x: m(x), images[:count]) for count in batches]
    yield Growth("CLIP ViT-B/32", "batch", batches, seconds)

    classes = (10, 100, 1_000, 10_000, 100_000)
    features = np.zeros((256, 1280), np.float32), np.zeros((256, 512), np.float32)
    seconds = [
        cost(
            FusionHead(FusionConfig(num_classes=count), rngs=nnx.Rngs(0)),
            lambda m, x: m(*x),
            features,
        )
        for count in classes
    ]
    yield Growth("fusion head, 256 videos", "classes", classes, seconds)


def draw(rows: Sequence[Growth], path: Path) -> None:
    """Draw a panel for each axis, both scales logarithmic."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(row.axis for row in rows))
    figure = Figure(figsize=(3.2 * len(axes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(axes))
    for axis, panel in zip(axes, panels, strict=True):
        for row in rows:
            if row.axis == axis:
                label = f"{row.work}: {row.exponent:.2f}"
                panel.loglog(row.sizes, row.seconds, "o-", markersize=3, label=label)
        panel.set_xlabel(axis)
        sizes = next(row.sizes for row in rows if row.axis == axis)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=6)
        panel.minorticks_off()
        panel.set_ylabel("processor seconds")
        panel.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Measure, prints the table and draws the figure."""
    parser = CommandParser(
        "benchmarks.growth",
        "Measure how cost grows with frames, resolution, segments, batch and classes.",
        ("--out=docs/images/growth.png",),
    )
    parser.add_argument("--out", default="runs/growth.png", metavar="FILE", help="the figure")
    arguments = parser.parse(argv)
    os.environ[FOLDER_VARIABLE] = ""
    return run(lambda: measure(Path(arguments.out)))


def measure(out: Path) -> None:
    """Print a Markdown table of costs and exponents."""
    print("| work | against | sizes | ms of processor time | exponent |\n|---|---|---|---|---|")
    rows: list[Growth] = []
    with tempfile.TemporaryDirectory() as folder:
        measured = itertools.chain(
            _networks(),
            _video(
                (75, 150, 300, 600, 1200),
                ((128, 160), (176, 240), (256, 340), (360, 480), (512, 680)),
                Path(folder),
            ),
        )
        for row in measured:
            rows.append(row)
            sizes = ", ".join(f"{size:,}" for size in row.sizes)
            costs = ", ".join(f"{1e3 * seconds:.3g}" for seconds in row.seconds)
            reported = f"| {row.work} | {row.axis} | {sizes} | {costs} | {row.exponent:.2f} |"
            print(reported, flush=True)
    draw(rows, out)


if __name__ == "__main__":
    raise SystemExit(main())
