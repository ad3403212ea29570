"""A UCF101 of a few clips in the published format: AVI files, three list files, and the trap.

Files are 320x240 MPEG-4 Part 2 with the FourCC of XviD, 25 frames a second, named
`v_<Class>_g<group>_c<clip>.avi`. The class is `HandstandPushups`; the lists call its files
`v_HandStandPushups_*` and its folder `HandstandPushups`, the archive `v_HandstandPushups_*`.
"""

from pathlib import Path

import av
import numpy as np

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
# Class, with the spelling that the lists use in file names.
LISTED = {"HandstandPushups": "HandStandPushups"}
GROUPS = 6


def write_avi(path: Path, seed: int, *, num_frames: int = 14) -> None:
    """Writes a textured frame that drifts in a direction of its own."""
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(0, 255, (45, 60, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    drift = rng.integers(-4, 5, size=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.codec_tag = "XVID"
        stream.codec_context.gop_size = 12
        for index in range(num_frames):
            y, x = 60 + index * drift
            pixels = np.ascontiguousarray(texture[y : y + 240, x : x + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write_ucf101(root: Path) -> tuple[Path, Path]:
    """Writes the data set under `root` and returns the folders of the videos and of the lists.

    There are 3 classes x 6 groups x 1 clip; split k tests groups 2k-1 and 2k.
    """
    videos, lists = root / "UCF-101", root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text(
        "".join(f"{number} {name}\n" for number, name in enumerate(CLASSES, start=1))
    )
    for label, name in enumerate(CLASSES, start=1):
        (videos / name).mkdir(parents=True)
        for group in range(1, GROUPS + 1):
            clip = f"g{group:02d}_c01.avi"
            write_avi(videos / name / f"v_{name}_{clip}", seed=100 * label + group)
            listed = f"{name}/v_{LISTED.get(name, name)}_{clip}"
            for split in (1, 2, 3):
                if group in (2 * split - 1, 2 * split):
                    with open(lists / f"testlist{split:02d}.txt", "a") as file:
                        file.write(f"{listed}\n")
                else:
                    with open(lists / f"trainlist{split:02d}.txt", "a") as file:
                        file.write(f"{listed} {label}\n")
    return videos, lists
