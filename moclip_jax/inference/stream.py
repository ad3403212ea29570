"""Windows of a stream that is still growing, reconnections, and the lines of `predict --stream`."""

import argparse
import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec
from moclip_jax.input_pipeline.video.reconnect import Connections, Reconnection, StreamError
from moclip_jax.input_pipeline.video.stream import read_stream
from moclip_jax.runtime.text_io import json_line

Label = Callable[[Clip], list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """How a stream is cut into windows and reconnected.

    Attributes:
      window_s: seconds that one label is of.
      hop_s: seconds from one window to the next.
      timeout_s: seconds to wait for data.
      retries: connections in a row that may fail (addresses).
      endless: connect again also where the stream ends.
      container_format: FFmpeg's name of the format, if it cannot be detected.
    """

    window_s: float = 4.0
    hop_s: float = 1.0
    timeout_s: float = 10.0
    retries: int = 5
    endless: bool = False
    container_format: str | None = None


@dataclasses.dataclass(frozen=True)
class StreamWindow:
    """A window of a stream.

    Attributes:
      connection: number of the connection, from 1.
      start_s: seconds since the connection's first frame.
      end_s: likewise.
      clip: its frames.
    """

    connection: int
    start_s: float
    end_s: float
    clip: Clip


def events(
    address: str,
    spec: VideoSpec,
    options: StreamOptions,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[StreamWindow | Reconnection]:
    """Yield the windows of a stream and the reconnections in between.

    Args:
      address: as `read_stream`.
      spec: form of videos that the model takes.
      options: windows and reconnection.
      sleep: waits some seconds.

    Raises:
      StreamError: the stream cannot be opened or read; addresses after `options.retries` more
        connections.
    """
    connections = Connections(address, options.retries, options.endless)
    while True:
        lost = None
        try:
            for window in read_stream(
                address,
                spec,
                length_s=options.window_s,
                hop_s=options.hop_s,
                timeout_s=options.timeout_s,
                container_format=options.container_format,
            ):
                connections.received()
                yield StreamWindow(connections.number, window.start_s, window.end_s, window.video)
        except VideoError as error:
            lost = error
        again = connections.ended(lost)
        if again is None:
            return
        yield again
        sleep(again.wait_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `predict --stream`."""
    group = parser.add_argument_group("streams (one JSON line a window)")
    group.add_argument(
        "--stream",
        metavar="ADDRESS",
        help="rtsp:// or http:// address, device, FIFO, growing file, or - for standard input",
    )
    group.add_argument("--window", type=float, default=4.0, help="seconds that one label is of")
    group.add_argument("--hop", type=float, default=1.0, help="seconds from one window to the next")
    group.add_argument(
        "--timeout", type=float, default=10.0, help="seconds to wait for data before giving up"
    )
    group.add_argument(
        "--retries", type=int, default=5, help="connections in a row that may fail (addresses)"
    )
    group.add_argument(
        "--endless", action="store_true", help="connect again also where the stream ends"
    )
    group.add_argument("--stream-format", help="FFmpeg's format, if not detected")


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with status 2 where the flags do not go together."""
    if bool(arguments.stream) == bool(arguments.videos):
        parser.error("name at least one VIDEO, or a --stream, but not both")
    for name in ("window", "hop", "timeout"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name}={getattr(arguments, name)} must be above 0")
    if arguments.retries < 0:
        parser.error(f"--retries={arguments.retries} must be at least 0")


def run(arguments: argparse.Namespace, spec: VideoSpec, label: Label) -> int:
    """Print a JSON line a window; return 1 if the stream ended with an error."""
    failed = False
    for line in stream_lines(arguments, spec, label):
        failed = "error" in line
        print(json_line(line), flush=True)
    return int(failed)


def stream_lines(
    arguments: argparse.Namespace,
    spec: VideoSpec,
    label: Label,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Yield what is to be printed.

    Every line has `stream`, `connection` (from 1) and `time` (now, UTC). A result has `start_s` and
    `end_s` (seconds since the connection's first frame), `num_frames`, `predictions`, and `warning`
    where some frames are damaged; a lost connection `reconnect`, why, and `wait_s`; the last line
    of a failed stream `error`.

    Args:
      arguments: the flags of `add_arguments`.
      spec: form of videos that the model takes.
      label: from a window to its predictions.
      sleep: waits some seconds.
    """
    address, connection = arguments.stream, 1
    options = StreamOptions(
        window_s=arguments.window,
        hop_s=arguments.hop,
        timeout_s=arguments.timeout,
        retries=arguments.retries,
        endless=arguments.endless,
        container_format=arguments.stream_format,
    )

    def line(**values: Any) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return {"stream": address, "connection": connection, "time": now, **values}

    try:
        for event in events(address, spec, options, sleep):
            connection = event.connection
            if isinstance(event, Reconnection):
                yield line(reconnect=event.reason, wait_s=event.wait_s)
                continue
            yield line(
                start_s=round(event.start_s, 3),
                end_s=round(event.end_s, 3),
                num_frames=event.clip.num_frames,
                predictions=label(event.clip),
                **({"warning": event.clip.warning} if event.clip.warning else {}),
            )
    except StreamError as error:
        connection = error.connection
        yield line(error=str(error))
