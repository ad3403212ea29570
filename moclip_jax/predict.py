"""Command line of recognition: videos in, labels out."""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moclip_jax.inference import stream
from moclip_jax.runtime.cli import STATUS_ERROR, STATUS_OK, CommandParser, run
from moclip_jax.runtime.text_io import csv_row, file_names, json_line, printable

if TYPE_CHECKING:
    from moclip_jax.inference.recognizer import Prediction

CSV_FIELDS = (
    "video", "start", "end", "rank", "label", "probability", "trained_as", "error", "warning",
    "rejected",
)  # fmt: skip


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; exits with status 2 where it is not of the right form."""
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
        help="your own labels, separated by commas; seen in the image, and in the motion too "
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
    """Yield the command line's names, with those of standard input in place of '-'."""
    for name in arguments:
        if name == "-":
            # As bytes, because names need not be UTF-8.
            yield from file_names(getattr(sys.stdin, "buffer", sys.stdin))
        else:
            yield name


def predictions(prediction: "Prediction") -> list[dict[str, Any]]:
    """Return `label`, `probability` and, for labels of the user's own, `trained_as`."""
    return [
        {"label": score.label, "probability": round(score.probability, 6)}
        | ({"trained_as": score.trained_as} if score.trained_as else {})
        for score in prediction.scores
    ]


def to_json(prediction: "Prediction", *, with_timeline: bool) -> dict[str, Any]:
    """Return what `--json` prints of a prediction."""
    if prediction.error:
        return {"video": prediction.video, "error": prediction.error}
    result = {"video": prediction.video, "predictions": predictions(prediction)}
    if prediction.warning:
        result["warning"] = prediction.warning
    if prediction.rejected:
        result["rejected"] = f"none of the classes: below {prediction.reject_below:.3g}"
    if with_timeline:
        result["timeline"] = [
            {
                "start": round(window.start_s, 3),
                "end": round(window.end_s, 3),
                "predictions": predictions(window),
            }
            for window in prediction.windows
        ]
    return result


def text_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield what is printed of a result for people."""
    if "error" in result:
        yield f"error: {result['error']}"
        return
    yield result["video"]
    if "warning" in result:
        yield f"  warning: {result['warning']}"
    if "rejected" in result:
        yield f"  probably {result['rejected']}"
    for guess in result["predictions"]:
        note = "  (trained class)" if "trained_as" in guess else ""
        yield f"  {guess['probability']:6.1%}  {guess['label']}{note}"
    for window in result.get("timeline", ()):
        guesses = [f"{g['probability']:6.1%}  {g['label']}" for g in window["predictions"]]
        yield f"  {window['start']:8.2f} s to {window['end']:8.2f} s {'  '.join(guesses)}"


def csv_rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the table's rows of a result; those of the whole video have no start and end."""
    if "error" in result:
        yield result
    parts = ({"predictions": result.get("predictions", ())}, *result.get("timeline", ()))
    notes = {name: result[name] for name in ("warning", "rejected") if name in result}
    for part in parts:
        place = {name: part[name] for name in ("start", "end") if name in part}
        for rank, guess in enumerate(part["predictions"], start=1):
            yield {"video": result["video"], "rank": rank} | place | guess | notes


def make_printer(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    """Return what prints a result in the form that was requested."""
    if arguments.json:
        return lambda result: print(json_line(result), flush=True)
    if arguments.csv:
        table = csv.DictWriter(sys.stdout, CSV_FIELDS, lineterminator="\n")
        table.writeheader()

        def write(result: dict[str, Any]) -> None:
            table.writerows(map(csv_row, csv_rows(result)))
            sys.stdout.flush()

        return write
    return lambda result: print(printable("\n".join(text_lines(result))), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a result for each video; returns the exit status, 1 if any video failed."""
    arguments = parse_arguments(argv)
    return run(lambda: _predict(arguments), traceback=arguments.traceback)


def _predict(arguments: argparse.Namespace) -> int:
    # Imported late, so that help and mistakes come at once.
    from moclip_jax.inference.recognizer import load
    from moclip_jax.input_pipeline.video.files import describe_skipped, find_videos
    from moclip_jax.runtime.progress import Progress, say

    if arguments.stream:
        model = load(arguments.workdir)

        def label(clip: Any) -> list[dict[str, Any]]:
            prediction = model.predict_clip(clip, top_k=arguments.topk, labels=arguments.words)
            return predictions(prediction)

        return stream.run(arguments, model.video, label)
    model = load(arguments.workdir)
    skipped: list[Any] = []
    videos = list(find_videos(names_given(arguments.videos), skipped))
    for line in describe_skipped(skipped):
        say(printable(line), file=sys.stderr)
    if not videos:
        raise ValueError("standard input (-) names no video")
    show = make_printer(arguments)
    progress = Progress(len(videos), "predict", "videos", file=sys.stderr)
    status = STATUS_OK
    for prediction in model.predict_batch(
        videos,
        top_k=arguments.topk,
        labels=arguments.words,
        window_s=arguments.timeline,
        num_workers=min(os.cpu_count() or 1, len(videos)),
        isolate=True,
    ):
        if prediction.error:
            status = STATUS_ERROR
        progress.clear()
        show(to_json(prediction, with_timeline=bool(arguments.timeline)))
        progress.advance()
    progress.clear()
    return status


if __name__ == "__main__":
    sys.exit(main())
