"""Find the video files that a user names: files, folders, patterns.

One rule for prediction and training: a file in a folder is used if FFmpeg can demux it as a video.
Still images, text, audio and hidden files are skipped, and returned with the reason.
"""

import collections
import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from moclip_jax.input_pipeline.video.decode import VideoError, open_video

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mxf", ".ogv", ".qt", ".rm", ".rmvb", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
"""Suffixes of nothing but videos. Such a file is meant as one, so it is used without opening it: if
it is damaged, reading it names the reason. `.gif` (stills) and `.ts` (TypeScript) are not among
them."""

# Files named by each line of `describe_skipped`.
_NUM_EXAMPLES = 3


def find_videos(
    names: Iterable[str], skipped: list[VideoError] | None = None
) -> Iterator[str | VideoError]:
    """Find the videos behind names that a user gave.

    A folder gives every video under it (`videos_under`). A pattern such as `clips/*.mp4` or
    `clips/**/*.mp4` gives the files that match it, unless a file has that very name. Anything else
    is taken for a file, whether or not it exists.

    Args:
      skipped: Gets what was left out of the folders, as from `videos_under`.

    Yields:
      Paths, in the order of the names; an error in place of a folder or pattern without videos.
    """
    for name in names:
        path = os.path.expanduser(name)
        if os.path.isdir(path):
            found, left_out = videos_under(path)
            if skipped is not None:
                skipped.extend(left_out)
            yield from found
            if not found:
                yield VideoError(name, "no video in this folder")
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = [m for m in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(m)]
            yield from matches
            if not matches:
                yield VideoError(name, "no file matches this pattern")
        else:
            yield path


def videos_under(folder: str | os.PathLike[str]) -> tuple[list[str], list[VideoError]]:
    """Find the videos in a folder and the folders below it.

    A file with one of `VIDEO_SUFFIXES` is used as it is. Any other is opened once, without decoding
    it, and used if `open_video` takes it. Links to folders are followed.

    Returns:
      The paths of the videos, in the order of their parts; and what was left out, each with the
      reason: hidden files and folders (their name begins with a dot), folders that cannot be read,
      and files that are no videos.
    """
    videos: list[str] = []
    skipped: list[VideoError] = []
    _scan(os.fspath(folder), videos, skipped, ())
    return videos, skipped


def _scan(
    folder: str, videos: list[str], skipped: list[VideoError], parents: tuple[str, ...]
) -> None:
    real = os.path.realpath(folder)
    if real in parents:
        skipped.append(VideoError(folder, "a link to a folder that it lies in"))
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        skipped.append(VideoError(folder, f"cannot be read ({error.strerror})"))
        return
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            skipped.append(VideoError(path, "hidden"))
        elif os.path.isdir(path):
            _scan(path, videos, skipped, (*parents, real))
        elif reason := _why_no_video(path):
            skipped.append(reason)
        else:
            videos.append(path)


def _why_no_video(path: str) -> VideoError | None:
    if os.path.isfile(path) and os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES:
        return None
    try:
        with open_video(path):
            return None
    except VideoError as error:
        return error


def describe_skipped(skipped: Sequence[VideoError]) -> list[str]:
    """Return a line for each reason to skip files: their number and the first few names."""
    by_reason: dict[str, list[str]] = collections.defaultdict(list)
    for error in skipped:
        by_reason[error.reason].append(error.path)
    lines = []
    for reason, paths in by_reason.items():
        more = ", ..." if len(paths) > _NUM_EXAMPLES else ""
        some = ", ".join(paths[:_NUM_EXAMPLES])
        lines.append(f"skipped {len(paths)} ({reason}): {some}{more}")
    return lines
