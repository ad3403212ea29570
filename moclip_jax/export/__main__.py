"""Write a finished run's model for programs without this package."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from moclip_jax.export.onnx import export_onnx
from moclip_jax.export.saved_model import export_saved_model, export_stablehlo
from moclip_jax.inference.recognizer import Recognizer, load
from moclip_jax.runtime.cli import CommandParser, run

FORMATS: dict[str, Callable[[Recognizer, Path], str | None]] = {
    "stablehlo": export_stablehlo,
    "saved_model": export_saved_model,
    "onnx": export_onnx,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write both forms of a finished run's model; returns the exit status."""
    parser = CommandParser(
        "moclip_jax.export",
        "Write a finished run's model for programs without this package: DIR/stablehlo (one "
        "program for CPU, CUDA and TPU), DIR/saved_model (TensorFlow) and DIR/onnx (ONNX).",
        (
            "--workdir=runs/demo --out=runs/demo/serving",
            "--workdir=runs/demo --out=runs/demo/serving --formats=onnx",
        ),
        usage="--workdir=DIR --out=DIR [--formats=NAME,...]",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a finished run")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--formats",
        default="stablehlo,saved_model",
        metavar="NAME,...",
        help=f"of {', '.join(FORMATS)}; default: stablehlo,saved_model",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse(argv)

    def work() -> None:
        formats = arguments.formats.split(",")
        for name in formats:
            if name not in FORMATS:
                raise ValueError(f"--formats: {name!r} is unknown; use {', '.join(FORMATS)}")
        recognizer = load(arguments.workdir)
        for name in formats:
            directory = Path(arguments.out).expanduser() / name
            missing = FORMATS[name](recognizer, directory)
            print(f"written: {directory}")
            if missing:
                print(f"predict_onnx.py was left out: it does not know {missing}")

    return run(work, traceback=arguments.traceback)


if __name__ == "__main__":
    sys.exit(main())
