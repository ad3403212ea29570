"""Command line of recognition: videos in, labels out."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moclip_jax.inference import stream
from moclip_jax.runtime.cli import STATUS_ERROR, STATUS_OK, CommandParser, run

CSV_FIELDS = ("video", "start", "end", "rank", "label", "probability", "trained_as", "error")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line's values; exits with status 2 where it is not of the right form."""
    parser = CommandParser(
        "moclip_jax.predict",
        "Label videos with a trained model: files, folders, patterns, or - for a list of them on "
        "standard input, one a line. A file that cannot be used is named with the reason, and the "
        "others go on.",
        (
            "--workdir=runs/demo clip.mp4",
            "--workdir=runs/demo --csv --topk=1 videos/ > labels.csv",
            "--workdir=runs/demo --classes='a dog running, a star' *.mp4",
            "--workdir=runs/demo --timeline=2 --json long.mkv",
        ),
        usage="--workdir=DIR [OPTION ...] VIDEO ...",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="anything FFmpeg can read")
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of a finished run, or its export"
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="labels to give (5)")
    parser.add_argument(
        "--classes",
        metavar="WORDS",
        help="your own labels, separated by commas; seen in the picture, and in the motion too "
        "where they name trained classes",
    )
    parser.add_argument(
        "--timeline",
        type=float,
        default=0.0,
        metavar="S",
        help="labels of each S seconds too, to see when what happens",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a video and line")
    form.add_argument("--csv", action="store_true", help="a table with a line for each label")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    stream.add_arguments(parser)
    arguments = parser.parse(argv)
    stream.check_arguments(parser, arguments)
    arguments.words = ()
    if arguments.classes is not None:
        words = [word.strip() for word in arguments.classes.split(",") if word.strip()]
        # A word given twice would share its probability with itself.
        arguments.words = tuple(dict.fromkeys(words))
        if len(arguments.words) < 2:
            parser.error("--classes needs at least two labels, separated by commas")
    if arguments.topk < 1:
        parser.error(f"--topk={arguments.topk} must be at least 1")
    if not 0 <= arguments.timeline < float("inf"):
        parser.error(f"--timeline={arguments.timeline} must be a number of seconds above 0")
    return arguments


def names_given(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the command line's names, with those of standard input in place of '-'."""
    for name in arguments:
        if name == "-":
            yield from (line.strip() for line in sys.stdin if line.strip())
        else:
            yield name


def text_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yields what is printed of a result for people."""
    if "error" in result:
        yield f"error: {result['error']}"
        return
    yield result["video"]
    for guess in result["predictions"]:
        note = "  (trained class)" if "trained_as" in guess else ""
        yield f"  {guess['probability']:6.1%}  {guess['label']}{note}"
    for window in result.get("timeline", ()):
        guesses = [f"{g['probability']:6.1%}  {g['label']}" for g in window["predictions"]]
        yield f"  {window['start']:8.2f} s to {window['end']:8.2f} s {'  '.join(guesses)}"


def csv_rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the table's rows of a result; those of the whole video have no start and end."""
    if "error" in result:
        yield result
    parts = ({"predictions": result.get("predictions", ())}, *result.get("timeline", ()))
    for part in parts:
        place = {name: part[name] for name in ("start", "end") if name in part}
        for rank, guess in enumerate(part["predictions"], start=1):
            yield {"video": result["video"], "rank": rank} | place | guess


def make_printer(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    """Returns what prints a result in the form that was asked for."""
    if arguments.json:
        return lambda result: print(json.dumps(result), flush=True)
    if arguments.csv:
        table = csv.DictWriter(sys.stdout, CSV_FIELDS, lineterminator="\n")
        table.writeheader()

        def write(result: dict[str, Any]) -> None:
            table.writerows(csv_rows(result))
            sys.stdout.flush()

        return write
    return lambda result: print("\n".join(text_lines(result)), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a result for each video; returns the exit status, 1 if any video failed."""
    arguments = parse_arguments(argv)
    return run(lambda: _predict(arguments), traceback=arguments.traceback)


def _predict(arguments: argparse.Namespace) -> int:
    # Imported late, so that help and mistakes come at once.
    from moclip_jax.export.exporter import export_folder, load_export
    from moclip_jax.inference.recognize import Classifier, best_labels, predict_videos
    from moclip_jax.input_pipeline.video.files import find_videos
    from moclip_jax.input_pipeline.video.subprocess_pool import GRACE_S, SubprocessReader
    from moclip_jax.runtime.progress import Progress

    workdir = Path(arguments.workdir).expanduser()
    recognizer = load_export(export_folder(workdir))
    if arguments.stream:
        classifier = Classifier(recognizer, arguments.words)
        return stream.run(
            arguments,
            recognizer.video,
            lambda video: best_labels(
                classifier, classifier.probabilities(classifier.view(video)), arguments.topk
            ),
        )
    videos = list(find_videos(names_given(arguments.videos)))
    if not videos:
        raise ValueError("standard input (-) names no video")
    show = make_printer(arguments)
    progress = Progress(len(videos), "predict", "videos", file=sys.stderr)
    status = STATUS_OK
    num_workers = min(os.cpu_count() or 1, len(videos))
    with SubprocessReader(num_workers, recognizer.video.max_seconds + GRACE_S) as reader:
        for result in predict_videos(
            recognizer,
            videos,
            topk=arguments.topk,
            classes=arguments.words,
            window_s=arguments.timeline,
            num_workers=num_workers,
            read=reader,
        ):
            if "error" in result:
                status = STATUS_ERROR
            progress.clear()
            show(result)
            progress.advance()
    progress.clear()
    return status


if __name__ == "__main__":
    sys.exit(main())
