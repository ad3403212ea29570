"""Everything side by side in one run: ours against what a user would assemble otherwise.

    make bench                      # makes the other side's environment first
    python -m benchmarks.run --quick

The other side is PyTorch with timm, transformers and mv-extractor, in a process of its own with as
many threads (`benchmarks/torch_worker.py`). Both sides of a row have the same weights and the same
data and work in turns, so that a noisy machine disturbs both. A Markdown table is printed, and
everything is written to a JSON file. Nothing here decides a test.
"""

import functools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.clips import real_video
from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.runtime.compilation_cache import FOLDER_VARIABLE, use_compilation_cache
from moclip_jax.runtime.host_memory import keep_freed_memory

__all__ = ["main", "real_video"]


def main(argv: list[str] | None = None) -> int:
    """Read the command line, measures, prints."""
    parser = CommandParser(
        "benchmarks.run",
        "Time everything against what a user would assemble otherwise, side by side in one run; "
        "print a table, write a JSON file.",
        ("--quick", "--only=clip,motion --rounds=3"),
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer passes and rows, no tables but those named"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="timed passes of each side")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help=f"of {', '.join((*GROUPS, *TABLES))}"
    )
    parser.add_argument(
        "--json", default="runs/bench.json", metavar="FILE", help="default: runs/bench.json"
    )
    arguments = parser.parse(argv)
    everything = [*GROUPS] if arguments.quick else [*GROUPS, *TABLES]
    groups = arguments.only.split(",") if arguments.only else everything
    # Every run has its own measure of what the machine can do.
    groups = list(dict.fromkeys(["sgemm", *groups]))
    if unknown := sorted(set(groups) - {*GROUPS, *TABLES}):
        parser.error(f"--only={unknown[0]}: there are {', '.join((*GROUPS, *TABLES))}")
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    if rounds < 1:
        parser.error(f"--rounds={arguments.rounds} must be at least 1")
    # Compile times are measured too.
    os.environ[FOLDER_VARIABLE] = ""
    return run(lambda: measure(groups, rounds, arguments.quick, Path(arguments.json)))


def measure(groups: list[str], rounds: int, quick: bool, file: Path) -> None:
    """Measure the groups and prints and writes what came out."""
    # As the commands that train do.
    keep_freed_memory()
    # Imported late, so that help and mistakes come at once.
    from benchmarks import networks
    from benchmarks.peer import Peer
    from benchmarks.timing import Comparison, machine, table

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    about: dict[str, Any] = {"machine": machine(), "rounds": rounds, "quick": quick}
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory() as temporary, Peer() as peer:
        about["other_side"] = peer.ask()
        say("making both sides' networks ...")
        setup = Setup(networks.make_networks(Path(temporary)), peer, rounds, quick)
        for group in [group for group in groups if group in GROUPS]:
            for row in GROUPS[group](setup):
                rows.append(row)
                ratio = f", {row.ratio:.2f} of {row.against}" if row.ratio is not None else ""
                say(f"{row.name}: {sum(row.ours) / len(row.ours):.3f} s{ratio}")
        peak = setup.peak
    about["load_after"] = round(os.getloadavg()[0], 1)
    about["peak_gflops"] = peak / 1e9
    print(f"{described(about)}\n\n{table(rows, peak)}")
    tables = {}
    for name in [group for group in groups if group in TABLES]:
        print(f"\n{name}:\n")
        sys.stdout.flush()
        tables[name] = _apart(TABLES[name], rounds, quick)
    measured = {"rows": [row.to_json() for row in rows], "tables": tables}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about | measured, indent=1) + "\n")
    say(f"everything that was measured: {file}")


def described(about: dict[str, Any]) -> str:
    """Return a sentence about the machine and the versions."""
    machine, other = about["machine"], about["other_side"]
    versions = ", ".join(
        f"{name} {version}"
        for name, version in {**machine["versions"], **other["versions"]}.items()
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores ({other['threads']} threads of torch on "
        f"{other['device']}), "
        f"{machine['memory_gib']} GiB; JAX on {machine['backend']} "
        f"({', '.join(machine['devices'])}); Python {machine['python']}, {versions}; "
        f"{about['rounds']} passes of each side in turns, load {machine['load_before']} before and "
        f"{about['load_after']} after; our sgemm at best {about['peak_gflops']:.0f} GFLOP/s. Times "
        "are medians."
    )


class Setup:
    """What all rows need.

    Args:
      networks: ours, with their weights on disk for the other side.
      peer: the other side.
      rounds: timed passes of each side.
      quick: smaller where that is not the same work anyway.
    """

    def __init__(self, networks: Any, peer: Any, rounds: int, quick: bool):
        self.networks, self.peer, self.rounds, self.quick = networks, peer, rounds, quick
        # Operations a second of the matrix product; measured by the group `sgemm`.
        self.peak = 0.0


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, for commands that do not keep freed memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _sgemm(setup: Setup) -> Iterator[Any]:
    from benchmarks import networks

    row, setup.peak = networks.sgemm(setup.peer, setup.rounds)
    yield row


def _motion(setup: Setup) -> Iterator[Any]:
    from benchmarks import networks

    rounds = setup.rounds
    yield networks.motion_inference(setup.networks, setup.peer, 32, rounds)
    yield networks.motion_inference(setup.networks.with_lite0(), setup.peer, 32, rounds)
    if not setup.quick:
        yield networks.motion_inference(setup.networks, setup.peer, 32, rounds, narrow=True)
    yield networks.motion_training(setup.networks, setup.peer, 4, rounds)


def _clip(setup: Setup) -> Iterator[Any]:
    from benchmarks import networks

    row = functools.partial(networks.clip_tower, setup.networks, setup.peer)
    yield row(1, setup.rounds, dtype="auto")
    yield row(16, setup.rounds, dtype="auto", goal=0.8)
    if not setup.quick:
        for batch in (1, 16):
            yield row(batch, setup.rounds)
            yield row(batch, setup.rounds, dtype="bfloat16", narrow=True)


def _file(setup: Setup) -> Iterator[Any]:
    yield from _apart(_file_rows, setup.rounds, setup.quick)


def _file_rows(rounds: int, quick: bool) -> list[Any]:
    with tempfile.TemporaryDirectory() as temporary:
        # Each program is compiled once, for the first row that needs it.
        os.environ[FOLDER_VARIABLE] = str(Path(temporary) / "compiled")
        use_compilation_cache()
        return _file_rows_in(Path(temporary), rounds, quick)


def _file_rows_in(folder: Path, rounds: int, quick: bool) -> list[Any]:
    from benchmarks import file_to_label, networks
    from benchmarks.peer import Peer

    with Peer() as peer:
        made = networks.make_networks(folder)
        row = functools.partial(file_to_label.one_file, peer, rounds)
        native = file_to_label.OurSide(made, "native")
        rows = [row(native, goal=1 / 3)]
        if quick:
            return rows
        rows.append(row(native, narrow=True))
        rows.append(row(native, accumulated=False))
        rows.append(row(file_to_label.OurSide(made, "native", "float32"), goal=0.30))
        lite = file_to_label.OurSide(made.with_lite0(), "native", "float32")
        rows.append(row(lite, goal=0.15))
        reencode = file_to_label.OurSide(made, "reencode")
        rows.append(row(reencode, reencoded=True, goal=1 / 3))
        rows.append(row(reencode))
        float32 = file_to_label.OurSide(made, "reencode", "float32")
        rows.append(row(float32, reencoded=True, goal=0.40))
        rows.append(file_to_label.many_files(native, 8, min(rounds, 3)))
        return rows


def _head(setup: Setup) -> Iterator[Any]:
    from benchmarks import heads

    yield heads.head_training(setup.networks.folder, setup.peer, 5 if setup.quick else 100, 1)


def _reading(rounds: int, quick: bool) -> list[dict[str, Any]]:
    from benchmarks import video
    from benchmarks.peer import PYTHON

    return video.print_table(rounds, str(PYTHON))


def _preparation(rounds: int, quick: bool) -> list[dict[str, Any]]:
    from benchmarks import preparation

    return preparation.print_rows(workers=1)


def _pipeline(rounds: int, quick: bool) -> list[dict[str, Any]]:
    from benchmarks import pipeline

    return pipeline.print_rows(rounds)


def _startup(rounds: int, quick: bool) -> list[dict[str, Any]]:
    from benchmarks import startup

    return startup.print_rows(rounds)


def _codec(rounds: int, quick: bool) -> list[dict[str, Any]]:
    from benchmarks import codec
    from benchmarks.peer import PYTHON

    return codec.print_table(1 if quick else rounds, str(PYTHON))


def _search(rounds: int, quick: bool) -> list[dict[str, Any]]:
    from benchmarks import search

    return search.print_rows(quick)


# Of one core, and with units of their own, so each prints its own table.
TABLES: dict[str, Callable[[int, bool], list[dict[str, Any]]]] = {
    "reading": _reading,
    "preparation": _preparation,
    "pipeline": _pipeline,
    "startup": _startup,
    "codec": _codec,
    "search": _search,
}

GROUPS: dict[str, Callable[[Setup], Iterator[Any]]] = {
    "sgemm": _sgemm,
    "motion": _motion,
    "clip": _clip,
    "file": _file,
    "head": _head,
}

if __name__ == "__main__":
    raise SystemExit(main())
