"""Everything that an accelerator can change, in one command and one table.

    make gpu-check                       # makes PyTorch's environment first
    python -m benchmarks.gpu_check --quick

Runs the device-independent tests there, motion training and feature extraction at full size, our
networks beside PyTorch's on the same card, the peak memory of the stages, and the embedded data set
in float32 and in bfloat16. Each part is a command of its own, so that one that fails is a line of
the table and the others follow. On a CPU it runs too, and compares nothing new.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.memory import STAGES
from moclip_jax.runtime.cli import STATUS_ERROR, STATUS_OK, CommandParser, run
from moclip_jax.runtime.compilation_cache import FOLDER_VARIABLE

# What computes with JAX and does not start other programs.
TESTS = (
    "tests/models", "tests/pretrained", "tests/training/test_optimizers.py",
    "tests/training/test_ridge.py", "tests/training/test_fisher.py",
    "tests/training/test_scan_epoch.py",
)  # fmt: skip
QUICK_TESTS = ("tests/models/test_moclip.py", "tests/training/test_ridge.py")
BFLOAT16 = ("motion.dtype", "features.motion_dtype", "clip.dtype")
# A line of the table: what was done, what came out.
Row = tuple[str, str]


def run_command(*command: str, **environment: str) -> str:
    """Run a command, whose messages are shown; returns what it printed.

    Raises:
      RuntimeError: it failed.
    """
    # Two of our processes and PyTorch share the card.
    variables = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"} | os.environ | environment
    done = subprocess.run(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=variables, check=False
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {done.returncode}")
    return done.stdout


def card() -> tuple[str, str]:
    """Return the platform and the name of the device that JAX finds."""
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep=chr(10))"
    platform, name = run_command("-c", code).splitlines()[-2:]
    return platform, name


def check_tests(quick: bool, platform: str) -> Iterator[Row]:
    """Run the device-independent tests on the device."""
    # Beside the accelerator, the CPU is what some tests compare with.
    names = {"gpu": "cuda,cpu", "cpu": "cpu"}.get(platform, f"{platform},cpu")
    printed = run_command(
        "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow and not run",
        *(QUICK_TESTS if quick else TESTS), MOCLIP_TEST_PLATFORM=names,
    )  # fmt: skip
    yield "device-independent tests", printed.splitlines()[-1].strip("= ")


def check_full_size(quick: bool, videos: str) -> Iterator[Row]:
    """Train B0 for two epochs and extract features, at full size."""
    copies, batch = (1, 2) if quick else (16, 16)
    with tempfile.TemporaryDirectory() as folder:
        run_command(
            "-m", "benchmarks.full_size", f"--workdir={folder}", f"--videos={videos}",
            f"--copies={copies}", f"--batch={batch}", "--epochs=2",
        )  # fmt: skip
        stages = Path(folder) / "run"
        lines = (stages / "motion" / "timing.jsonl").read_text().splitlines()
        first, second = map(json.loads, lines)
        seconds = json.loads((stages / "features" / "time.json").read_text())["seconds"]
    yield (
        f"motion epoch at full size, batches of {batch}",
        f"{second['seconds']:.2f} s, {second['data_wait']:.0%} waiting for data "
        f"(the first, which compiles, {first['seconds']:.0f} s)",
    )
    yield "feature extraction at full size, compilation included", f"{seconds:.1f} s"


def check_speed(quick: bool) -> Iterator[Row]:
    """Time our networks beside PyTorch's on the same card."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        only = "motion" if quick else "motion,clip,file,head"
        options = ["--quick", "--rounds=1"] if quick else []
        run_command("-m", "benchmarks.run", f"--only={only}", f"--json={file}", *options)
        measured = json.loads(file.read_text())
    yield "PyTorch's device", measured["other_side"]["device"]
    for row in measured["rows"]:
        ours, other = (1e3 * row[side] / row["units"] for side in ("ours_median", "other_median"))
        yield (
            f"{row['name']}, against {row['against']}",
            f"{ours:.2f} ms a {row['unit']}, {other:.2f} ms: {row['ratio']:.2f}",
        )


def check_memory(quick: bool) -> Iterator[Row]:
    """Measure the peak memory of every stage."""
    for stage in list(STAGES)[-1:] if quick else STAGES:
        reported = json.loads(run_command("-m", "benchmarks.memory", f"--stage={stage}"))
        sizes = (
            f"{key} {reported[key] / 2**20:.0f}"
            for key in ("host", "program", "device")
            if reported[key] is not None
        )
        yield f"peak memory in MiB, {stage}", ", ".join(sizes)


def check_precision(quick: bool) -> Iterator[Row]:
    """Train on the embedded data set in float32 and in bfloat16."""
    config = "testing" if quick else "demo"
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            options = (f"--config.{setting}={dtype}" for setting in BFLOAT16)
            run_command(
                "-m", "moclip_jax.main", f"--config={config}", f"--workdir={folder}", *options
            )
            results = json.loads((Path(folder) / "results.json").read_text())["rows"]
        rows = (f"{name} {100 * row['top1']:.1f}" for name, row in results.items())
        yield f"top-1 of configs/{config}.py in {dtype}", ", ".join(rows)


def check(quick: bool, videos: str) -> int:
    """Run all parts and print the table; returns the exit status."""
    platform, name = card()
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "tests": lambda: check_tests(quick, platform),
        "full size": lambda: check_full_size(quick, videos),
        "speed": lambda: check_speed(quick),
        "memory": lambda: check_memory(quick),
        "precision": lambda: check_precision(quick),
    }
    rows: list[Row] = []
    status = STATUS_OK
    for part, work in parts.items():
        start = time.monotonic()
        print(f"{part} ...", file=sys.stderr, flush=True)
        try:
            rows += work()
        except RuntimeError as error:
            rows.append((part, f"FAILED: {error}"))
            status = STATUS_ERROR
        rows.append((f"{part}, in all", f"{time.monotonic() - start:.0f} s"))
    print(f"| {name} ({platform}) | |\n|---|---|")
    print("\n".join(f"| {what} | {result} |" for what, result in rows))
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Check and print the table; returns the exit status, 1 if a part failed."""
    parser = CommandParser(
        "benchmarks.gpu_check",
        "Check everything that an accelerator can change, and print one table.",
        ("--quick", "--videos=/data/UCF-101"),
    )
    parser.add_argument("--quick", action="store_true", help="a little of each part")
    parser.add_argument(
        "--videos", default="", metavar="DIR", help="a folder for each class; else real H.264 clips"
    )
    arguments = parser.parse(argv)
    # The tests keep their programs in a folder of their own, and compile times are measured.
    os.environ[FOLDER_VARIABLE] = ""
    return run(lambda: check(arguments.quick, arguments.videos))


if __name__ == "__main__":
    raise SystemExit(main())
