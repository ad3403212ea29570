"""Index videos or a stream for search: `moclip-jax index VIDEO ... --output=INDEX`.

A second run indexes what is new or has changed, and removes files that are gone; a run that was
killed is started again with the same command, and begins with the file that it was at.
"""

import argparse
import contextlib
import dataclasses
import datetime
import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moclip_jax.runtime.cli import STATUS_ERROR, STATUS_OK, CommandParser, run
from moclip_jax.runtime.text_io import json_line, printable

if TYPE_CHECKING:
    from moclip_jax.input_pipeline.video.limits import VideoError
    from moclip_jax.search.chunks import Chunk
    from moclip_jax.search.encoder import Encoder
    from moclip_jax.search.store import Entry, Store

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
LONGEST_S = 10.0
# Chunks that become vectors together, and seconds after which those of a stream do anyway.
_BATCH, _STREAM_BATCH_S = 64, 10.0
# Sides of a thumbnail in pixels, at most.
_THUMBNAIL = 240, 160


@dataclasses.dataclass(frozen=True)
class Report:
    """What was done with a file.

    Attributes:
      video: Its path.
      action: 'indexed', 'unchanged', 'removed' or 'failed'.
      num_chunks: Its chunks.
      duration_s: Its seconds.
      error: Why it failed, or ''.
      warning: What is wrong with it although it was read, or ''.
    """

    video: str
    action: str
    num_chunks: int = 0
    duration_s: float = 0.0
    error: str = ""
    warning: str = ""


def index_videos(
    videos: "Iterable[str | os.PathLike[str] | VideoError]",
    index: str | os.PathLike[str],
    *,
    clip: str = "",
    workdir: str = "",
    longest_s: float = LONGEST_S,
    isolate: bool = False,
) -> Iterator[Report]:
    """Bring an index up to date with some files.

    Args:
      videos: The files; a `VideoError` stands for one that is already known to be bad.
      index: Folder of the index, made if absent.
      clip: CLIP as `moclip_jax.load_tower` takes it; '' for that of the index, or of a new one for
        'openai/clip-vit-base-patch32'.
      workdir: A finished run in place of `clip`: its CLIP, and its classes for `label` searches.
      longest_s: Largest length of a chunk in seconds, of a new index.
      isolate: Read files in a child process, so that one that crashes FFmpeg costs only itself.

    Yields:
      What was done with each file, in order; first files of the index that are gone.

    Raises:
      ValueError: The index was made with another model.
      OSError: LanceDB is not installed, the folder cannot be written, or another process indexes
        into it.
    """
    from moclip_jax.input_pipeline.video.limits import VideoError
    from moclip_jax.input_pipeline.video.subprocess_pool import STALL_S, SubprocessReader
    from moclip_jax.search.chunks import read_chunks
    from moclip_jax.search.encoder import chunk_form
    from moclip_jax.search.store import Entry

    with contextlib.ExitStack() as opened:
        store, encoder = opened.enter_context(_writing(index, clip, workdir, longest_s))
        read: Callable[..., Iterator[Chunk]] = lambda function, *arguments: function(*arguments)  # noqa: E731
        if isolate:
            read = opened.enter_context(SubprocessReader(1, STALL_S))
        known = store.entries()
        for entry in list(known.values()):
            if entry.size >= 0 and not os.path.exists(entry.path):
                store.remove(known.pop(entry.path))
                yield Report(entry.path, "removed")
        form = chunk_form(encoder, store.longest_s)
        numbers = itertools.count(max((entry.id for entry in known.values()), default=0) + 1)
        for video in videos:
            if isinstance(video, VideoError):
                yield Report(video.path, "failed", error=str(video))
                continue
            path = os.path.abspath(video)
            if not os.path.exists(path):
                yield Report(path, "failed", error=str(VideoError(path, "no such file")))
                continue
            stat = os.stat(path)
            size, mtime_ns, before = stat.st_size, stat.st_mtime_ns, known.get(path)
            if before and before.done and (before.size, before.mtime_ns) == (size, mtime_ns):
                action = "failed" if before.error else "unchanged"
                yield _report(before, action)
                continue
            number = before.id if before else next(numbers)
            chunks = read(read_chunks, path, form)
            known[path] = _index(store, encoder, Entry(number, path, size, mtime_ns), chunks)
            yield _report(known[path], "failed" if known[path].error else "indexed")


def index_stream(
    address: str,
    index: str | os.PathLike[str],
    *,
    clip: str = "",
    workdir: str = "",
    longest_s: float = LONGEST_S,
    timeout_s: float = 10.0,
) -> Report:
    """Index a stream until it ends; what was indexed can be searched some seconds later.

    Args:
      address: rtsp:// or http:// address, device, FIFO, growing file, or - for standard input.
      index: As `index_videos`.
      clip: As `index_videos`.
      workdir: As `index_videos`.
      longest_s: As `index_videos`.
      timeout_s: Seconds to wait for data.

    Returns:
      What was done; its `video` is the address and the time of the connection.

    Raises:
      ValueError: As `index_videos`.
      OSError: As `index_videos`.
    """
    from moclip_jax.search.chunks import read_stream_chunks
    from moclip_jax.search.encoder import chunk_form
    from moclip_jax.search.store import Entry

    with _writing(index, clip, workdir, longest_s) as (store, encoder):
        number = max((entry.id for entry in store.entries().values()), default=0) + 1
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        chunks = read_stream_chunks(address, chunk_form(encoder, store.longest_s), timeout_s)
        entry = _index(store, encoder, Entry(number, f"{address} at {now}", -1, 0), chunks)
        return _report(entry, "failed" if entry.error else "indexed")


@contextlib.contextmanager
def _writing(
    index: str | os.PathLike[str], clip: str, workdir: str, longest_s: float
) -> "Iterator[tuple[Store, Encoder]]":
    """Open or make an index and its encoder; no other process writes it meanwhile."""
    from moclip_jax.runtime.files import exclusive_lock
    from moclip_jax.search.encoder import absolute, open_encoder
    from moclip_jax.search.store import Store, lancedb

    if clip and workdir:
        raise ValueError("--clip and --workdir: give one of them; a run has its own CLIP")
    lancedb()
    folder = Path(index).expanduser()
    with exclusive_lock(folder, "--output"):
        try:
            store: Store | None = Store(folder)
        except FileNotFoundError:
            store = None
        given = {"workdir": workdir} if workdir else {"clip": clip} if clip else {}
        identity = absolute(given) or (store.identity if store else {"clip": DEFAULT_CLIP})
        if store is not None and store.identity != identity:
            ((kind, name),) = store.identity.items()
            raise ValueError(
                f"{folder} was made with --{kind}={name}; index with that, or into another --output"
            )
        encoder = open_encoder(identity)
        if store is None:
            dimensions = len(encoder.text("a"))
            store = Store.create(folder, identity, encoder.class_names, dimensions, longest_s)
        try:
            yield store, encoder
        finally:
            store.finish()


def _index(
    store: "Store", encoder: "Encoder", entry: "Entry", chunks: "Iterator[Chunk]"
) -> "Entry":
    """Index a file from its beginning; return its row, which is written last."""
    from moclip_jax.input_pipeline.video.limits import VideoError

    store.drop_chunks(entry.id)
    store.put(entry)
    frames = corrupt = 0
    try:
        for batch in _batches(chunks, live=entry.size < 0):
            vectors, probabilities = encoder.chunks(batch)
            thumbnails = [thumbnail(chunk.jpeg) for chunk in batch]
            store.add(entry.id, batch, thumbnails, vectors, probabilities)
            frames += sum(chunk.num_frames for chunk in batch)
            corrupt += sum(chunk.num_corrupt for chunk in batch)
            entry = dataclasses.replace(
                entry, num_chunks=entry.num_chunks + len(batch), duration_s=batch[-1].end_s
            )
            if entry.size < 0:
                store.put(entry)
    except VideoError as error:
        if entry.size >= 0:
            # A file counts whole or not at all, as everywhere.
            store.drop_chunks(entry.id)
            entry = dataclasses.replace(entry, num_chunks=0, duration_s=0.0)
        entry = dataclasses.replace(entry, error=str(error))
    if corrupt:
        warning = f"{corrupt} of its {frames} frames are damaged"
        entry = dataclasses.replace(entry, warning=warning)
    entry = dataclasses.replace(entry, done=True)
    store.put(entry)
    return entry


def _batches(chunks: "Iterator[Chunk]", live: bool) -> "Iterator[list[Chunk]]":
    batch: list[Chunk] = []
    since = time.monotonic()
    for chunk in chunks:
        batch.append(chunk)
        if len(batch) == _BATCH or (live and time.monotonic() - since >= _STREAM_BATCH_S):
            yield batch
            batch, since = [], time.monotonic()
    if batch:
        yield batch


def thumbnail(jpeg: bytes) -> bytes:
    """Return a JPEG in the size of a thumbnail."""
    from PIL import Image

    image = Image.open(io.BytesIO(jpeg))
    image.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _report(entry: "Entry", action: str) -> Report:
    return Report(
        entry.path, action, entry.num_chunks, entry.duration_s, entry.error, entry.warning
    )


def to_json(report: Report) -> dict[str, Any]:
    """Return what `--json` prints of a report."""
    result: dict[str, Any] = {"video": report.video}
    if report.error:
        return result | {"error": report.error}
    result["action"] = report.action
    if report.action != "removed":
        result |= {"chunks": report.num_chunks, "seconds": round(report.duration_s, 3)}
    return result | ({"warning": report.warning} if report.warning else {})


def text_line(report: Report) -> str:
    """Return what is printed of a report for people."""
    if report.error:
        return f"error: {report.error}"
    if report.action == "removed":
        return f"{report.video}: removed, it is gone"
    line = f"{report.video}: {report.action}, {report.num_chunks} chunks"
    line += f", {report.duration_s:.1f} s"
    return line + (f"; warning: {report.warning}" if report.warning else "")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; exits with status 2 where it is not of the right form."""
    parser = CommandParser(
        "moclip_jax.search.build",
        "Index videos for search: files, folders, patterns, or - for a list of them on standard "
        "input, one a line. A file that cannot be used is named with the reason, and the others go "
        "on. A second run indexes what is new or changed, and removes what is gone.",
        (
            "videos/ --output=videos.index",
            "videos/ --output=videos.index --workdir=runs/demo",
            "--stream=rtsp://camera/1 --output=camera.index",
        ),
        usage="VIDEO ... --output=INDEX [OPTION ...]",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="anything FFmpeg can read")
    parser.add_argument(
        "-o", "--output", required=True, metavar="INDEX", help="folder of the index"
    )
    parser.add_argument(
        "--clip",
        default="",
        metavar="SOURCE",
        help=f"CLIP: a folder, a hub id, or tiny ({DEFAULT_CLIP}, or that of the index)",
    )
    parser.add_argument(
        "--workdir", default="", metavar="DIR", help="a finished run: its CLIP and its classes"
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=LONGEST_S,
        metavar="S",
        help=f"largest length of a chunk in seconds, of a new index ({LONGEST_S:g})",
    )
    parser.add_argument(
        "--stream",
        default="",
        metavar="ADDRESS",
        help="rtsp:// or http:// address, device, FIFO, growing file, or - for standard input",
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds to wait for a stream (10)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a video and line")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse(argv)
    if bool(arguments.stream) == bool(arguments.videos):
        parser.error("name at least one VIDEO, or a --stream, but not both")
    if not 2 <= arguments.longest < float("inf"):
        parser.error(f"--longest={arguments.longest} must be at least 2 seconds")
    if not 0 < arguments.timeout < float("inf"):
        parser.error(f"--timeout={arguments.timeout} must be above 0")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each video; returns the exit status, 1 if any video failed."""
    arguments = parse_arguments(argv)
    return run(
        lambda: _build(arguments),
        stopped="stopped; the same command resumes from here",
        traceback=arguments.traceback,
    )


def _build(arguments: argparse.Namespace) -> int:
    # Imported late, so that help and mistakes come at once.
    from moclip_jax.input_pipeline.video.files import describe_skipped, find_videos
    from moclip_jax.predict import names_given
    from moclip_jax.runtime.progress import say

    options = {
        "clip": arguments.clip, "workdir": arguments.workdir, "longest_s": arguments.longest
    }  # fmt: skip
    reports: Iterable[Report]
    if arguments.stream:
        reports = [
            index_stream(arguments.stream, arguments.output, timeout_s=arguments.timeout, **options)
        ]
    else:
        skipped: list[Any] = []
        videos = list(find_videos(names_given(arguments.videos), skipped))
        for line in describe_skipped(skipped):
            say(printable(line), file=sys.stderr)
        if not videos:
            raise ValueError("standard input (-) names no video")
        reports = index_videos(videos, arguments.output, isolate=True, **options)
    status = STATUS_OK
    for report in reports:
        if report.error:
            status = STATUS_ERROR
        print(
            json_line(to_json(report)) if arguments.json else printable(text_line(report)),
            flush=True,
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
