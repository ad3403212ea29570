"""A small folder of video files to try `configs/video_folder.py` on, with flaws to be warned of.

    python -m benchmarks.draw_videos /tmp/my_videos

Three classes of 24 clips, one of 6 and one of a single clip, drawn as the demo's are and written as
MPEG-4 files: 79 clips of a second each.
"""

from pathlib import Path

import av
import numpy as np

from moclip_jax.input_pipeline.datasets.shapes import render_clip
from moclip_jax.runtime.cli import CommandParser, run

CLASSES = {
    ("star", "rising"): 24,
    ("star", "falling"): 24,
    ("ring", "rising"): 24,
    ("ring", "falling"): 6,
    ("cross", "spinning"): 1,
}


def write_clip(path: Path, frames: np.ndarray, rate: int = 24) -> None:
    """Write `frames [n, h, w, 3]` uint8 as an MPEG-4 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.bit_rate = 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def main(argv: list[str] | None = None) -> int:
    """Write the folder and prints what is in it."""
    parser = CommandParser(
        "benchmarks.draw_videos",
        "Write a small folder of video files, a folder for each class.",
        ("/tmp/my_videos",),
    )
    parser.add_argument("folder", metavar="DIR", help="made if absent")
    folder = Path(parser.parse(argv).folder).expanduser()
    return run(lambda: _draw(folder))


def _draw(folder: Path) -> None:
    clip = 0
    for (shape, motion), count in CLASSES.items():
        class_folder = folder / f"{shape}_{motion}"
        class_folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            clip += 1
            frames = render_clip(
                shape, motion, group_seed=clip, clip_seed=clip, num_frames=24, height=192, width=256
            )
            write_clip(class_folder / f"{number:02d}.mp4", frames)
        print(f"{class_folder}: {count} clips")


if __name__ == "__main__":
    raise SystemExit(main())
