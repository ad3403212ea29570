"""`moclip_jax.codec.frames` beside mv-extractor and beside a loop with PyAV: equal, and how fast.

    python -m benchmarks.codec [--rounds=7] [--mv-extractor=PYTHON]

PYTHON is as for `benchmarks.video`. All sides read all vectors and frame types of a file. In rows
of their own, ours and the loop with PyAV make a motion map of every frame, and ours accumulates.
Told is the processor's time, one thread, medians in turns.
"""

import pathlib
import subprocess
import tempfile
from collections.abc import Callable

import av
import numpy as np
from av.video.frame import PictureType

from benchmarks.clips import generated_video, real_video, ucf101_like
from benchmarks.video import MvExtractor, timed
from moclip_jax import codec
from moclip_jax.runtime.cli import CommandParser, run

# Writes the vectors of a file, as mv-extractor gives them, and the frame types.
_VECTORS_OF = """
import os, sys, numpy
# One core: with more, FFmpeg's frame threads lose some of the vectors.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from mvextractor.videocap import VideoCap
capture, found, kinds = VideoCap(), [], ""
capture.open(sys.argv[1])
capture.set_decode_frames(False)
while True:
    ok, frame, vectors, kind, *_ = capture.read()
    if not ok:
        break
    found.append(vectors.reshape(len(vectors), -1) if len(vectors) else numpy.zeros((0, 10), int))
    kinds += kind
counts = [len(vectors) for vectors in found]
numpy.savez(sys.argv[2], kinds=kinds, counts=counts, vectors=numpy.concatenate(found))
"""
# Of mv-extractor, which loses vectors of H.264 with B-frames, in other frames each time.
_RUNS = 10
_COLUMNS = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y")


def loop_with_pyav(path: str) -> list[np.ndarray]:
    """Read vectors as PyAV's documentation shows it."""
    found = []
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        context.thread_count, context.options = 1, {"flags2": "+export_mvs"}
        for frame in container.decode(video=0):
            vectors = frame.side_data.get("MOTION_VECTORS")
            found.append(None if vectors is None else vectors.to_ndarray())
    return found


def painted(
    vectors: np.ndarray, kind: str, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a motion map by its definition: each vector is painted over its block.

    Args:
      vectors: of FFmpeg's `AVMotionVector`, of an upright frame.
      kind: type of the frame.
      height: of the frame in pixels.
      width: of the frame in pixels.

    Returns:
      int `[h, w, 2]`, motion (x, y) forward in time, and bool `[h, w]`, where there is a vector.
    """
    known = np.zeros((height, width), bool)
    past, coming = (np.zeros((height, width, 2), int) for _ in range(2))
    has_past, has_coming = np.zeros_like(known), np.zeros_like(known)
    for vector in vectors:
        w, h = int(vector["w"]), int(vector["h"])
        left, top = int(vector["dst_x"]) - w // 2, int(vector["dst_y"]) - h // 2
        block = np.s_[top : top + h, left : left + w]
        known[block] = True
        shift = [
            int(vector["src_x"]) - int(vector["dst_x"]),
            int(vector["src_y"]) - int(vector["dst_y"]),
        ]
        if vector["source"] < 0:
            has_past[block] = True
            if any(shift):
                past[block] = shift
        elif kind == "B":
            has_coming[block] = True
            if any(shift):
                coming[block] = shift
    ahead = has_coming & ~has_past
    return np.where(ahead[..., None], coming, -past), known


def maps_with_pyav(path: str) -> list[np.ndarray]:
    """Make the map of every frame from PyAV's vectors."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        height, width = stream.height, stream.width
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        maps = []
        for frame in container.decode(video=0):
            found = frame.side_data.get("MOTION_VECTORS")
            vectors = () if found is None else found.to_ndarray()
            maps.append(painted(vectors, PictureType(frame.pict_type).name, height, width)[0])
        return maps


def codec_vectors(path: str) -> list[np.ndarray]:
    """Read vectors by ours."""
    return [frame.vectors for frame in codec.frames(path, accumulated=False)]


def check_equal(path: str) -> None:
    """Raise an AssertionError if the loop with PyAV has other vectors or maps."""
    for frame, vectors in zip(codec.frames(path), loop_with_pyav(path), strict=True):
        assert len(frame.vectors) == (0 if vectors is None else len(vectors))
        for name in _COLUMNS if vectors is not None else ():
            np.testing.assert_array_equal(frame.vectors[name], vectors[name], name)
    for frame, expected in zip(codec.frames(path), maps_with_pyav(path), strict=True):
        np.testing.assert_array_equal(frame.raw, expected.transpose(2, 0, 1), str(frame.index))


def different_frames(path: str, python: str) -> list[int]:
    """Return the frames of which mv-extractor gives other vectors or another type."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "vectors.npz"
        subprocess.run([python, "-c", _VECTORS_OF, path, str(file)], check=True)
        found = np.load(file)
    theirs = np.split(found["vectors"], np.cumsum(found["counts"])[:-1])
    different = []
    frames = codec.frames(path, accumulated=False)
    for frame, kind, vectors in zip(frames, str(found["kinds"]), theirs, strict=True):
        ours = np.stack([frame.vectors[name] for name in _COLUMNS], axis=-1).astype(int)
        if frame.picture_type != kind or not np.array_equal(ours, vectors[:, : len(_COLUMNS)]):
            different.append(frame.index)
    return different


def print_table(rounds: int, mv_extractor: str | None = None) -> list[dict[str, object]]:
    """Compare what the sides read, and print frames a second of a core's time."""
    extractor = MvExtractor(mv_extractor) if mv_extractor else None
    found: list[dict[str, object]] = []
    print(f"{'file':<18}{'ours':<32}{'frames/s':>9}  {'against':<28}{'frames/s':>9}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for file in (generated_video(root), ucf101_like(root), pathlib.Path(real_video())):
            path = str(file)
            check_equal(path)
            count = len(codec_vectors(path))
            if mv_extractor:
                runs = [different_frames(path, mv_extractor) for _ in range(_RUNS)]
                never = set(runs[0]).intersection(*runs)
                print(
                    f"{file.name:<18}mv-extractor differs in {min(map(len, runs))} to "
                    f"{max(map(len, runs))} of {count} frames a run, in {len(never)} in all of "
                    f"{_RUNS} runs"
                )
            vectors = timed(lambda path=path: codec_vectors(path))
            raw = timed(
                lambda path=path: [
                    frame.raw[0, 0, 0] for frame in codec.frames(path, accumulated=False)
                ]
            )
            accumulated = timed(lambda path=path: [0 for _ in codec.frames(path)])
            loop = timed(lambda path=path: loop_with_pyav(path))
            sides: list[tuple[str, Callable[[], float], str, Callable[[], float]]] = [
                ("vectors and types", vectors, "a loop with PyAV", loop),
                ("and every map accumulated", accumulated, "a loop with PyAV", loop),
                (
                    "and every map",
                    raw,
                    "the same, each map painted",
                    timed(lambda path=path: maps_with_pyav(path)),
                ),
            ]
            if extractor is not None:
                their = lambda path=path: extractor.seconds(path)  # noqa: E731
                sides += [
                    ("vectors and types", vectors, "mv-extractor", their),
                    ("and every map", raw, "mv-extractor, vectors", their),
                    ("and every map accumulated", accumulated, "mv-extractor, vectors", their),
                ]
            for mine, our_seconds, other, other_seconds in sides:
                times = [(our_seconds(), other_seconds()) for _ in range(rounds + 1)][1:]
                a, b = np.median(times, axis=0)
                found.append({"file": file.name, "ours": mine, "against": other, "seconds": times})
                print(
                    f"{file.name:<18}{mine:<32}{count / a:9.0f}  {other:<28}"
                    f"{count / b:9.0f}{b / a:7.2f}",
                    flush=True,
                )
    print("a loop with PyAV: vectors and maps equal in all frames")
    if extractor is not None:
        extractor.close()
    return found


def main(argv: list[str] | None = None) -> int:
    """Read the command line and print the table."""
    parser = CommandParser(
        "benchmarks.codec",
        "Time moclip_jax.codec beside mv-extractor and a loop with PyAV; compare what they read.",
        ("--rounds=3", "--mv-extractor=.venv-parity/bin/python"),
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="timed passes of each side (7)"
    )
    parser.add_argument("--mv-extractor", metavar="PYTHON", help="interpreter that has it")
    arguments = parser.parse(argv)
    return run(lambda: print_table(arguments.rounds, arguments.mv_extractor) and None)


if __name__ == "__main__":
    raise SystemExit(main())
