"""Search in long video: how well moments are found, how fast files are indexed, what it takes.

    python -m benchmarks.search [--only=events,speed,query,memory] [--folder=DIR]

`events` draws an hour with known events (`benchmarks/long_video.py`), and compares our chunks with
windows of one length, as many and so with as many images for CLIP; the neighbours of both are
joined by the same rule. `speed` indexes 640x360 H.264 as the command does. `query` searches 100,000
chunks. `memory` indexes ten minutes and ten hours, each in a process of its own.
"""

import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.localization import Span, mean_average_precision, recall_at_1
from benchmarks.long_video import draw_events, draw_moving, repeat
from moclip_jax.codec.activity import Activity, ChunkCutter
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.motion_vectors import EXPORT_VECTORS
from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.search.chunks import Chunk, read_chunks
from moclip_jax.search.encoder import ClipEncoder, chunk_form
from moclip_jax.search.indexing import LONGEST_S, index_videos
from moclip_jax.search.query import Searcher, merge_neighbours
from moclip_jax.search.store import Entry, Store

SECTIONS = ("events", "speed", "query", "memory")
_MEMORY = "--memory-of"


class FixedCutter(ChunkCutter):
    """Cuts windows of one length, wherever they fall."""

    def __init__(self, window_s: float):
        super().__init__()
        self._length, self._number = window_s, 1

    def add(self, activity: Activity) -> Iterator[tuple[int, float]]:
        """See `ChunkCutter.add`."""
        if activity.time_s >= self._number * self._length - 1e-6:
            self._number += 1
            yield activity.index, activity.time_s


def ranked(chunks: list[Chunk], encoder: ClipEncoder, texts: list[str]) -> dict[str, list[Span]]:
    """Return the spans of the moments that each text finds, the best first."""
    vectors = np.concatenate(
        [encoder.chunks(chunks[i : i + 64])[0] for i in range(0, len(chunks), 64)]
    )
    found = {}
    for text in texts:
        vector = encoder.text(text)
        hits = [
            {
                "file": 0,
                "start_s": chunk.start_s,
                "end_s": chunk.end_s,
                "activity": chunk.activity,
                "score": float(score),
            }
            for chunk, score in zip(chunks, vectors @ vector, strict=True)
        ]
        moments = merge_neighbours(hits, float(vector @ vectors.mean(axis=0)))
        found[text] = [
            (min(hit["start_s"] for hit in part), max(hit["end_s"] for hit in part))
            for _, part in moments
        ]
    return found


def events(folder: pathlib.Path, minutes: float) -> dict[str, dict[str, float]]:
    """Print recall and precision of our chunks and of fixed windows."""
    path = folder / f"events_{minutes:g}.mp4"
    truth = draw_events(path, minutes)
    encoder = ClipEncoder("tiny")
    form = chunk_form(encoder, LONGEST_S)
    ours = list(read_chunks(path, form))
    length = ours[-1].end_s / len(ours)
    fixed = list(read_chunks(path, form, FixedCutter(length)))
    number = sum(map(len, truth.values()))
    print(
        f"{minutes:g} minutes, {number} events, {len(truth)} queries; "
        f"fixed windows of {length:.2f} s"
    )
    print(f"{'chunks':<16}{'CLIP calls':>11}{'recall@1':>10}{'mAP':>7}   (IoU 0.5)")
    rows = {}
    for name, chunks in (("ours", ours), ("fixed windows", fixed)):
        found = ranked(chunks, encoder, list(truth))
        rows[name] = {
            "calls": len(chunks),
            "recall": recall_at_1(found, truth),
            "map": mean_average_precision(found, truth),
        }
        row = rows[name]
        print(f"{name:<16}{len(chunks):11}{100 * row['recall']:10.1f}{100 * row['map']:7.1f}")
    return rows


def speed(folder: pathlib.Path, seconds: float) -> dict[str, float]:
    """Print how many times faster than it plays a file is indexed, and the share of decoding."""
    path = repeat(
        draw_moving(folder / "moving.mp4", 32, height=360, width=640),
        folder / "speed.mp4",
        seconds,
    )
    with tempfile.TemporaryDirectory() as index:
        # The encoder is compiled with the first file.
        list(index_videos([folder / "moving.mp4"], index, clip="tiny", isolate=True))
        before, start = _processor_s(), time.perf_counter()
        (report,) = index_videos([path], index, isolate=True)
        wall_s, processor_s = time.perf_counter() - start, _processor_s() - before
    start = time.process_time()
    frames = sum(1 for _ in decode_frames(path, EXPORT_VECTORS))
    decoding_s = time.process_time() - start
    played = report.duration_s
    print(
        f"640x360 H.264, {played:.0f} s, {frames} frames, {report.num_chunks} chunks: "
        f"{wall_s:.1f} s by the clock ({played / wall_s:.0f} times real time), "
        f"{processor_s:.1f} s of a core ({played / processor_s:.0f} times real time on one core); "
        f"decoding alone {decoding_s:.1f} s, {100 * decoding_s / processor_s:.0f}% of it"
    )
    return {"wall": played / wall_s, "core": played / processor_s, "decoding": decoding_s}


def _processor_s() -> float:
    own, ended = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def query(folder: pathlib.Path, rows: int, dimensions: int = 512) -> dict[str, float]:
    """Print how long a search takes, without the text tower and with it."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder) as index:
        store = Store.create(pathlib.Path(index), {"clip": "tiny"}, (), dimensions, LONGEST_S)
        for number, begin in enumerate(range(0, rows, 10_000)):
            vectors = rng.normal(size=(min(10_000, rows - begin), dimensions)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            chunks = [
                Chunk(5.0 * i, 5.0 * i + 5, 5.0 * i, b"", 0.0, 125, 0, None)
                for i in range(len(vectors))
            ]
            thumbnails = [bytes(3000)] * len(chunks)
            store.put(Entry(number, f"{number}.mp4", 1, 1, True))
            nothing = np.zeros((len(chunks), 0))
            store.add(number, chunks, thumbnails, vectors, nothing, nothing)
        store.finish()
        targets = rng.normal(size=(21, dimensions)).astype(np.float32)
        targets /= np.linalg.norm(targets, axis=1, keepdims=True)
        remaining = itertools.cycle(targets)

        class Drawn:
            """An encoder whose texts are random vectors."""

            def text(self, text: str) -> np.ndarray:
                return next(remaining)

        searcher = Searcher(index, Drawn())  # type: ignore[arg-type]
        times, cores = [], []
        for _ in range(len(targets)):
            start, core = time.perf_counter(), time.process_time()
            searcher.search("anything", top_k=10)
            times.append(time.perf_counter() - start)
            cores.append(time.process_time() - core)
    encoder = ClipEncoder("tiny")
    encoder.text("a star")
    start = time.perf_counter()
    encoder.text("a ring")
    text_s = time.perf_counter() - start
    middle, longest = float(np.median(times[1:])), max(times[1:])
    print(
        f"{rows} chunks of {dimensions} numbers: a search takes {1000 * middle:.0f} ms (median of "
        f"20; longest {1000 * longest:.0f}, the first {1000 * times[0]:.0f}), "
        f"{1000 * np.median(cores[1:]):.0f} ms of a core; the tiny CLIP's text {1000 * text_s:.0f} "
        "ms more"
    )
    return {"median": middle, "longest": longest, "first": times[0], "text": text_s}


def memory(folder: pathlib.Path, hours: float) -> dict[str, float]:
    """Print the peak memory of indexing ten minutes and many hours of the same frames."""
    piece = (
        draw_events(folder / "piece.mp4", 2, height=96, width=160, seed=1) and folder / "piece.mp4"
    )
    found = {}
    for name, seconds in (("10 minutes", 600.0), (f"{hours:g} hours", 3600 * hours)):
        path = repeat(piece, folder / f"long_{seconds:.0f}.mp4", seconds)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.search", f"{_MEMORY}={path}"],
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout)
        row = found[name]
        print(
            f"{name}: {row['chunks']} chunks; the process that indexes holds at most "
            f"{row['parent']:.0f} MiB, the one that reads {row['child']:.0f} MiB",
            flush=True,
        )
        path.unlink()
    first, last = found.values()
    total = [row["parent"] + row["child"] for row in (first, last)]
    print(f"together {100 * (total[1] / total[0] - 1):+.1f}%")
    return {name: row["parent"] + row["child"] for name, row in found.items()}


def _memory_of(path: str) -> None:
    """Index a file and print the peak memory of this process and of the one that reads."""
    with tempfile.TemporaryDirectory() as index:
        (report,) = index_videos([path], index, clip="tiny", isolate=True)
    peak = {
        name: resource.getrusage(who).ru_maxrss / 1024
        for name, who in (("parent", resource.RUSAGE_SELF), ("child", resource.RUSAGE_CHILDREN))
    }
    print(json.dumps(peak | {"chunks": report.num_chunks}))


def main(argv: list[str] | None = None) -> int:
    """Read the command line and print what is measured."""
    parser = CommandParser(
        "benchmarks.search",
        "Measure search in long video: moments found, speed, queries, memory.",
        ("--only=events", "--only=memory --hours=1"),
    )
    parser.add_argument(
        "--only", default=",".join(SECTIONS), metavar="NAMES", help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument(
        "--folder", default="build/long_video", metavar="DIR", help="where videos are drawn"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of the file with events (60)")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the file for speed (300)")
    parser.add_argument("--hours", type=float, default=10.0, help="of the file for memory (10)")
    parser.add_argument(_MEMORY, default="", metavar="FILE", help="for `memory` itself")
    arguments = parser.parse(argv)
    if arguments.memory_of:
        return run(lambda: _memory_of(arguments.memory_of))
    sections = arguments.only.split(",")
    if unknown := sorted(set(sections) - set(SECTIONS)):
        parser.error(f"--only={unknown[0]}: there are {', '.join(SECTIONS)}")
    lengths = arguments.minutes, arguments.seconds, arguments.hours
    return run(lambda: measure(sections, arguments.folder, *lengths) and None)


def measure(
    sections: Sequence[str],
    folder: str,
    minutes: float,
    seconds: float,
    hours: float,
    rows: int = 100_000,
) -> dict[str, Any]:
    """Measure some sections, and print each as it is done."""
    root = pathlib.Path(folder)
    os.makedirs(root, exist_ok=True)
    measured: dict[str, Callable[[], Any]] = {
        "events": lambda: events(root, minutes),
        "speed": lambda: speed(root, seconds),
        "query": lambda: query(root, rows),
        "memory": lambda: memory(root, hours),
    }
    return {name: measured[name]() for name in sections}


def print_rows(quick: bool) -> list[dict[str, Any]]:
    """Measure all sections in a folder of their own, of short files if `quick`."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            found = measure(SECTIONS[:3], folder, 2.0, 60.0, 0.0, 10_000)
        else:
            found = measure(SECTIONS, folder, 60.0, 300.0, 10.0)
    return [{"section": name, "measured": values} for name, values in found.items()]


if __name__ == "__main__":
    raise SystemExit(main())
