"""Exported programs side by side: size on disk, time of a video, difference of the logits.

    .venv-onnx/bin/python -m benchmarks.exports [--backbone=b0]

The published model with random weights and three segments, as this package runs it, as StableHLO
and as ONNX by onnxruntime; timed in turns on the same inputs.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from benchmarks.timing import in_turns, timed
from moclip_jax.export.onnx import export_onnx
from moclip_jax.export.saved_model import export_stablehlo
from moclip_jax.inference.program import BATCH
from moclip_jax.inference.recognizer import Recognizer
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.views import MotionViews
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.moclip import MoCLIP, MoCLIPConfig
from moclip_jax.models.motion_network import MotionNetworkConfig
from moclip_jax.runtime.cli import CommandParser, run

CLASSES, ROUNDS = 101, 9


def full_size(backbone: str) -> Recognizer:
    """Return the published model with a backbone of choice and random weights."""
    motion = EfficientNetConfig.named(backbone, in_channels=2, num_classes=CLASSES)
    config = MoCLIPConfig(
        MotionNetworkConfig(motion), CLIPConfig.named("vit_b32"), FusionConfig(num_classes=CLASSES)
    )
    return Recognizer(
        lambda: nnx.jit(lambda: MoCLIP(config, rngs=nnx.Rngs(0)))(),
        [f"class {label}" for label in range(CLASSES)],
        image_size=224,
        video=VideoSpec(),
        views=MotionViews(num_segments=3),
        clip_dtype="float32",
        motion_dtype="float32",
    )


def measure(backbone: str) -> None:
    """Print a line a form."""
    import onnxruntime

    recognizer = full_size(backbone)
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.integers(0, 256, (1, *shape)).astype(np.uint8)
        for name, shape in recognizer.input_shapes.items()
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_stablehlo(recognizer, folder / "stablehlo")
        export_onnx(recognizer, folder / "onnx")
        sizes = {
            form: sum(file.stat().st_size for file in (folder / form).iterdir()) / 1e6
            for form in ("stablehlo", "onnx")
        }
        content = (folder / "stablehlo" / "model.stablehlo").read_bytes()
        program = jax.jit(jax.export.deserialize(bytearray(content)).call)
        parameters = jax.device_put(
            safetensors.numpy.load_file(folder / "stablehlo" / "parameters.safetensors")
        )
        session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
        own, labels = recognizer.probabilities, recognizer.label_set()
        together = f"moclip_jax, a video of {BATCH} together"
        forms: dict[str, Callable[[], np.ndarray]] = {
            "moclip_jax": lambda: own(inputs),
            # As `moclip-jax serve` does.
            together: lambda: labels.probabilities(
                *recognizer.programs.outputs([inputs] * BATCH)[0][:2]
            ),
            "stablehlo": lambda: np.asarray(program(parameters, inputs)["probabilities"])[0],
            "onnx": lambda: session.run(["probabilities"], inputs)[0][0],
        }
        results = {name: call() for name, call in forms.items()}
        times = in_turns([timed(call) for call in forms.values()], ROUNDS)
    by_form = dict(zip(forms, times, strict=True))
    by_form[together] = [seconds / BATCH for seconds in by_form[together]]
    ours = statistics.median(by_form["moclip_jax"])
    for name, seconds in by_form.items():
        line = {
            "form": name,
            "megabytes": round(sizes[name], 1) if name in sizes else None,
            "ms": round(1e3 * statistics.median(seconds), 1),
            "ratio": round(statistics.median(seconds) / ours, 2),
            "largest difference of a probability": float(
                f"{np.abs(results[name] - results['moclip_jax']).max():.1e}"
            ),
        }
        print(json.dumps(line), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = CommandParser(
        "benchmarks.exports",
        "Time the published model's exports against this package, with random weights.",
        ("--backbone=lite0",),
    )
    parser.add_argument("--backbone", default="b0", metavar="NAME", help="default: b0")
    arguments = parser.parse(argv)
    return run(lambda: measure(arguments.backbone))


if __name__ == "__main__":
    raise SystemExit(main())
