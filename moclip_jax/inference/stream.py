"""`predict --stream`: labels of a stream that is still growing, one JSON line a window."""

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec
from moclip_jax.input_pipeline.video.motion_vectors import NoVectorsError
from moclip_jax.input_pipeline.video.stream import read_stream

_LONGEST_WAIT_S = 30.0

Label = Callable[[Clip], list[dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `predict --stream`."""
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
    group.add_argument("--stream-format", help="FFmpeg's name of the format, if it must be told")


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exits with status 2 where the flags do not go together."""
    if bool(arguments.stream) == bool(arguments.videos):
        parser.error("name at least one VIDEO, or a --stream, but not both")
    for name in ("window", "hop", "timeout"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name}={getattr(arguments, name)} must be above 0")
    if arguments.retries < 0:
        parser.error(f"--retries={arguments.retries} must be at least 0")


def run(arguments: argparse.Namespace, spec: VideoSpec, label: Label) -> int:
    """Prints a JSON line a window; returns 1 if the stream ended with an error."""
    failed = False
    for line in stream_lines(arguments, spec, label):
        failed = "error" in line
        print(json.dumps(line), flush=True)
    return int(failed)


def stream_lines(
    arguments: argparse.Namespace,
    spec: VideoSpec,
    label: Label,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Yields what is to be printed.

    Every line has `stream`, `connection` (from 1) and `time` (now, UTC). A result has `start_s` and
    `end_s` (seconds since the connection's first frame), `num_frames` and `predictions`; a lost
    connection `reconnect`, why, and `wait_s`; the last line of a failed stream `error`.

    Args:
      arguments: the flags of `add_arguments`.
      spec: how the model wants its videos.
      label: from a window to its predictions.
      sleep: waits some seconds.
    """
    address = arguments.stream
    connection = failures = 0

    def line(**values: Any) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return {"stream": address, "connection": connection, "time": now, **values}

    while True:
        connection += 1
        try:
            for window in read_stream(
                address,
                spec,
                length_s=arguments.window,
                hop_s=arguments.hop,
                timeout_s=arguments.timeout,
                container_format=arguments.stream_format,
            ):
                failures = 0
                yield line(
                    start_s=round(window.start_s, 3),
                    end_s=round(window.end_s, 3),
                    num_frames=window.video.num_frames,
                    predictions=label(window.video),
                )
            if not arguments.endless:
                return
            reason = "the stream ended"
        except VideoError as error:
            # A file or a pipe does not come back, and another try finds no other codec.
            if "://" not in address or isinstance(error, NoVectorsError):
                yield line(error=str(error))
                return
            reason = error.reason
        if failures >= arguments.retries:
            yield line(error=f"{address}: {reason}; gave up after {failures} more connections")
            return
        wait = min(2.0**failures, _LONGEST_WAIT_S)
        failures += 1
        yield line(reconnect=reason, wait_s=wait)
        sleep(wait)
