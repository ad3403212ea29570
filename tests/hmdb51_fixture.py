"""An HMDB51 of a few clips in the published format: AVI files, a list a class and split."""

from pathlib import Path

from tests.ucf101_fixture import write_avi

CLASSES = ("brush_hair", "ride_bike")
# Source of the clip, and its mark in splits 1 to 3.
CLIPS = {
    "April_09": "122",
    "April_10": "211",
    "Movie_a": "012",
    "Movie_b": "120",
    "Movie_c": "111",
    "Movie_d": "111",
}


def file_name(source: str, class_name: str) -> str:
    """Return the name of a clip, as HMDB51 builds them from source, class and properties."""
    return f"{source}_{class_name}_u_nm_np1_ba_goo_0.avi"


def write_hmdb51(root: Path) -> tuple[Path, Path]:
    """Write the data set under `root` and return the folders of the videos and of the lists."""
    videos, lists = root / "videos", root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for label, name in enumerate(CLASSES):
        (videos / name).mkdir(parents=True)
        for seed, source in enumerate(CLIPS):
            write_avi(videos / name / file_name(source, name), 10 * label + seed, num_frames=4)
        for split in range(3):
            lines = [
                f"{file_name(source, name)} {mark[split]} \n" for source, mark in CLIPS.items()
            ]
            (lists / f"{name}_test_split{split + 1}.txt").write_text("".join(lines))
    return videos, lists
