"""Bring an index up to date: files that are new, changed or gone, and streams.

What is heavy is imported when it is needed, so that the command's help comes at once.
"""

import contextlib
import dataclasses
import datetime
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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
            entry, error = _index(store, encoder, Entry(number, path, size, mtime_ns), chunks)
            if error:
                # A file counts whole or not at all, as everywhere.
                store.drop_chunks(number)
                entry = dataclasses.replace(entry, num_chunks=0, duration_s=0.0, error=str(error))
            known[path] = _finish(store, entry)
            yield _report(known[path], "failed" if error else "indexed")


def index_stream(
    address: str,
    index: str | os.PathLike[str],
    *,
    clip: str = "",
    workdir: str = "",
    longest_s: float = LONGEST_S,
    timeout_s: float = 10.0,
    retries: int = 5,
    endless: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Report]:
    """Index a stream until it ends; what was indexed can be searched some seconds later.

    A lost connection to an address (`rtsp://...`) is made again after 1, 2, 4 ... 30 seconds. What
    came before is kept; each connection has an entry and times of its own.

    Args:
      address: rtsp:// or http:// address, device, FIFO, growing file, or - for standard input.
      index: As `index_videos`.
      clip: As `index_videos`.
      workdir: As `index_videos`.
      longest_s: As `index_videos`.
      timeout_s: Seconds to wait for data.
      retries: Connections in a row that may fail.
      endless: Connect again also where the stream ends.
      sleep: Waits some seconds.

    Yields:
      What was done in each connection; its `video` is the address and the time of the connection.

    Raises:
      ValueError: As `index_videos`.
      OSError: As `index_videos`.
    """
    from moclip_jax.input_pipeline.video.reconnect import Connections, StreamError
    from moclip_jax.search.chunks import read_stream_chunks
    from moclip_jax.search.encoder import chunk_form
    from moclip_jax.search.store import Entry

    connections = Connections(address, retries, endless)
    with _writing(index, clip, workdir, longest_s) as (store, encoder):
        form = chunk_form(encoder, store.longest_s)
        first = max((entry.id for entry in store.entries().values()), default=0) + 1
        for number in itertools.count(first):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            chunks = read_stream_chunks(address, form, timeout_s)
            entry, lost = _index(
                store, encoder, Entry(number, f"{address} at {now}", -1, 0), chunks
            )
            if entry.num_chunks:
                connections.received()
            again = None
            try:
                again = connections.ended(lost)
            except StreamError as error:
                entry = dataclasses.replace(entry, error=str(error))
            if again:
                warning = f"{again.reason}; connected again after {again.wait_s:g} s"
                entry = dataclasses.replace(entry, warning=warning)
            if entry.num_chunks:
                _finish(store, entry)
            else:
                store.remove(entry)
            yield _report(entry, "failed" if entry.error else "indexed")
            if again is None:
                return
            sleep(again.wait_s)


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
) -> "tuple[Entry, VideoError | None]":
    """Store the chunks of a file or stream; return its row, and why it ended too early."""
    from moclip_jax.input_pipeline.video.limits import VideoError

    live, frames, corrupt, lost = entry.size < 0, 0, 0, None
    store.drop_chunks(entry.id)
    store.put(entry)
    try:
        for batch in _batches(chunks, live):
            thumbnails = [thumbnail(chunk.jpeg) for chunk in batch]
            store.add(entry.id, batch, thumbnails, *encoder.chunks(batch))
            frames += sum(chunk.num_frames for chunk in batch)
            corrupt += sum(chunk.num_corrupt for chunk in batch)
            entry = dataclasses.replace(
                entry, num_chunks=entry.num_chunks + len(batch), duration_s=batch[-1].end_s
            )
            if live:
                store.put(entry)
    except VideoError as error:
        lost = error
    if corrupt:
        warning = f"{corrupt} of its {frames} frames are damaged"
        entry = dataclasses.replace(entry, warning=warning)
    return entry, lost


def _finish(store: "Store", entry: "Entry") -> "Entry":
    """Write a row as that of a file whose chunks are all there."""
    entry = dataclasses.replace(entry, done=True)
    store.put(entry)
    return entry


def _batches(chunks: "Iterator[Chunk]", live: bool) -> "Iterator[list[Chunk]]":
    from moclip_jax.input_pipeline.video.limits import VideoError

    batch: list[Chunk] = []
    lost = None
    since = time.monotonic()
    try:
        for chunk in chunks:
            batch.append(chunk)
            if len(batch) == _BATCH or (live and time.monotonic() - since >= _STREAM_BATCH_S):
                yield batch
                batch, since = [], time.monotonic()
    except VideoError as error:
        lost = error
    if batch:
        yield batch
    if lost is not None:
        raise lost


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
