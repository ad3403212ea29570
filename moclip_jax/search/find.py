"""Command line of search, words in, moments out: `moclip-jax search INDEX "text"`."""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moclip_jax.runtime.cli import STATUS_OK, CommandParser, run
from moclip_jax.runtime.text_io import csv_row, json_line, printable

if TYPE_CHECKING:
    from moclip_jax.search.query import Moment

CSV_FIELDS = ("rank", "video", "start", "end", "score", "picture", "thumbnail")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; exits with status 2 where it is not of the right form."""
    parser = CommandParser(
        "moclip_jax.search.find",
        "Find moments of indexed videos in words, or by a trained class.",
        (
            'videos.index "a person falls"',
            "videos.index dog --topk=20 --csv > dogs.csv",
            "videos.index --label=HighJump --thumbnails=found --json",
        ),
        usage='INDEX ["TEXT"] [OPTION ...]',
    )
    parser.add_argument("index", metavar="INDEX", help="folder of the index")
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="a word or a sentence")
    parser.add_argument(
        "--label", default="", metavar="CLASS", help="a trained class, seen in the motion too"
    )
    parser.add_argument("--topk", type=int, default=10, metavar="K", help="moments to give (10)")
    parser.add_argument(
        "--thumbnails", default="", metavar="DIR", help="write a JPEG of each moment there"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a moment and line")
    form.add_argument("--csv", action="store_true", help="a table with a line for each moment")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse(argv)
    if not (arguments.text.strip() or arguments.label):
        parser.error("nothing to look for: give a text, or a trained class by --label")
    if arguments.topk < 1:
        parser.error(f"--topk={arguments.topk} must be at least 1")
    return arguments


def to_json(rank: int, moment: "Moment", thumbnail: Path | None) -> dict[str, Any]:
    """Return what `--json` prints of a moment."""
    result = {
        "rank": rank,
        "video": moment.video,
        "start": round(moment.start_s, 3),
        "end": round(moment.end_s, 3),
        "score": round(moment.score, 6),
        "picture": round(moment.picture_s, 3),
    }
    return result | ({"thumbnail": str(thumbnail)} if thumbnail else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Print the moments; returns the exit status."""
    arguments = parse_arguments(argv)
    return run(lambda: _find(arguments), traceback=arguments.traceback)


def _find(arguments: argparse.Namespace) -> int:
    from moclip_jax.search.query import Searcher

    moments = Searcher(arguments.index).search(
        arguments.text, label=arguments.label, top_k=arguments.topk
    )
    folder = Path(arguments.thumbnails).expanduser() if arguments.thumbnails else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    table = csv.DictWriter(sys.stdout, CSV_FIELDS, lineterminator="\n")
    if arguments.csv:
        table.writeheader()
    for rank, moment in enumerate(moments, start=1):
        path = None
        if folder is not None:
            path = folder / f"{rank:03d}.jpg"
            path.write_bytes(moment.thumbnail)
        result = to_json(rank, moment, path)
        if arguments.json:
            print(json_line(result))
        elif arguments.csv:
            table.writerow(csv_row(result))
        else:
            place = f"{moment.start_s:9.2f} s to {moment.end_s:9.2f} s"
            print(printable(f"{moment.score:7.3f}  {place}  {moment.video}"))
    return STATUS_OK


if __name__ == "__main__":
    sys.exit(main())
