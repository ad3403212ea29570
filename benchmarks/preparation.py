"""Time the preparation of clips like UCF101's, and extrapolate to all of UCF101.

    python -m benchmarks.preparation [--workers=1]

Real clips are written in UCF101's form (MPEG-4 in AVI, 320x240) and prepared as in training. UCF101
has 13,320 clips of 186 frames on average; motion is extrapolated by frames, RGB frames by their
number. "s" is the wall-clock time of a clip in its worker, "of core" the processor time of the same
work in this process, which a busy machine disturbs less.
"""

import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.clips import ucf101_like
from moclip_jax.input_pipeline.datasets.preparation import MANIFEST
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset, prepare_dataset
from moclip_jax.input_pipeline.datasets.records import pack_displacements
from moclip_jax.input_pipeline.datasets.worker import num_cores
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.runtime.cli import CommandParser, run

CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
UCF101_CLIPS, UCF101_FRAMES = 13_320, 186
ROUNDS = 3


def write_clips(folder: pathlib.Path, copies: int = 1) -> None:
    """Write a folder of videos: two classes, each clip `copies` times (with other last bytes)."""
    for clip in CLIPS:
        path = ucf101_like(folder, clip)
        for number in range(2 * copies):
            target = folder / "videos" / ("one", "two")[number % 2] / f"{clip}_{number:03d}.avi"
            target.parent.mkdir(parents=True, exist_ok=True)
            # Copies would be kept on one side of the split; what follows the container is not read.
            target.write_bytes(path.read_bytes() + bytes([number // 256, number % 256]))
        path.unlink()


def prepare(folder: pathlib.Path, workers: int) -> PreparedDataset:
    """Prepare what `write_clips` wrote, with the published settings."""
    return prepare_dataset(
        "video_folder",
        data_dir=folder / f"data{workers}",
        spec=VideoSpec(),
        videos=str(folder / "videos"),
        num_workers=workers,
    )


def rows(workers: int) -> list[dict[str, Any]]:
    """Return a row for each clip, and one for the whole of UCF101.

    Args:
      workers: Processes that prepare.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_clips(folder, copies=4)
        dataset = prepare(folder, workers)
        lines = (pathlib.Path(dataset.builder.data_dir) / MANIFEST).read_text().splitlines()
        found = []
        for clip in CLIPS:
            same = [json.loads(line) for line in lines if f"/{clip}_" in line]
            path = next((folder / "videos").rglob(f"{clip}_*"))
            begin = time.process_time()
            for _ in range(ROUNDS):
                video = read_clip(path, dataset.spec)
            processor = (time.process_time() - begin) / ROUNDS
            motion = sum(map(len, pack_displacements(video.displacements, video.is_intra)))
            found.append(
                {
                    "clip": clip,
                    "frames": video.num_frames,
                    "file": path.stat().st_size,
                    "record": same[0]["bytes"],
                    "motion": motion,
                    "images": sum(map(len, video.frames)),
                    "count": len(video.frames),
                    "seconds": float(np.median([line["seconds"] for line in same])),
                    "processor": processor,
                }
            )
    frames = sum(row["frames"] for row in found)
    motion = sum(row["motion"] for row in found) / frames * UCF101_FRAMES
    images = sum(row["images"] for row in found) / len(found)
    seconds = sum(row["seconds"] for row in found) / frames * UCF101_FRAMES
    processor = sum(row["processor"] for row in found) / frames * UCF101_FRAMES
    found.append(
        {
            "clip": "UCF101, extrapolated",
            "frames": UCF101_CLIPS * UCF101_FRAMES,
            "file": 0,
            "record": round(UCF101_CLIPS * (motion + images)),
            "motion": round(UCF101_CLIPS * motion),
            "images": round(UCF101_CLIPS * images),
            "count": UCF101_CLIPS * found[0]["count"],
            "seconds": UCF101_CLIPS * seconds,
            "processor": UCF101_CLIPS * processor,
        }
    )
    return found


def print_rows(workers: int) -> list[dict[str, Any]]:
    """Print the rows as a table, and return them."""
    table = rows(workers)
    names = ("file", "record", "motion", "images")
    print(
        f"{'clip':<22}{'frames':>9}"
        + "".join(f"{n + ', kB':>13}" for n in names)
        + f"{'s':>10}{'of core':>10}"
    )
    for row in table:
        sizes = "".join(f"{row[name] / 1e3:>13,.1f}" for name in names)
        print(
            f"{row['clip']:<22}{row['frames']:>9}{sizes}{row['seconds']:>10,.2f}{row['processor']:>10,.2f}"
        )
    whole = table[-1]
    rate = whole["frames"] / whole["processor"]
    print(f"decoded, encoded, read, and kept: {rate:.0f} frames a second of a core's time")
    print(
        f"UCF101: {whole['record'] / 1e9:.2f} GB and {whole['seconds'] / 3600:.2f} hours of one "
        f"worker, from clips prepared by {workers} of {num_cores()} cores"
    )
    return table


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and print the table."""
    parser = CommandParser("benchmarks.preparation", "Time the preparation of clips.", ("",))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    arguments = parser.parse(argv)
    return run(lambda: print_rows(arguments.workers) and None)


if __name__ == "__main__":
    raise SystemExit(main())
