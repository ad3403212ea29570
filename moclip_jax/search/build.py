"""Index videos or a stream for search: `moclip-jax index VIDEO ... --output=INDEX`.

A second run indexes what is new or has changed, and removes files that are gone; a run that was
killed is started again with the same command, and begins with the file that it was at.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from moclip_jax.runtime.cli import STATUS_ERROR, STATUS_OK, CommandParser, run
from moclip_jax.runtime.text_io import json_line, printable
from moclip_jax.search.indexing import DEFAULT_CLIP, LONGEST_S, Report, index_stream, index_videos


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
    parser.add_argument(
        "--retries", type=int, default=5, metavar="N", help="connections in a row that may fail (5)"
    )
    parser.add_argument(
        "--endless", action="store_true", help="connect again also where the stream ends"
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
    if arguments.retries < 0:
        parser.error(f"--retries={arguments.retries} must be at least 0")
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
        reports = index_stream(
            arguments.stream,
            arguments.output,
            timeout_s=arguments.timeout,
            retries=arguments.retries,
            endless=arguments.endless,
            **options,
        )
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
