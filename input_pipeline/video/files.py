"""Find the video files that a user names: files, folders, patterns."""

import glob
import os
import pathlib
from collections.abc import Iterable, Iterator

from moclip_jax.input_pipeline.video.decode import VideoError, open_video

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".divx", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on
"""Files in a folder that are taken for videos by their name alone."""


def find_videos(names: Iterable[str]) -> Iterator[str | VideoError]:
    """Find the videos behind names that a user gave.

    A folder gives every video under it, in the order of their paths: files with a suffix of
    `VIDEO_SUFFIXES`, and any other that FFmpeg opens as a video; hidden ones are left out. A
    pattern such as `clips/*.mp4` or `clips/**/*.mp4` gives what matches it, unless a file has that
    very name. Anything else is taken for a file, whether or not it is there.

    Args:
      names: Files, folders and patterns.

    Yields:
      Paths, in the order of the names; an error in place of a folder or pattern without videos.
    """
    for name in names:
        path = os.path.expanduser(name)
        if os.path.isdir(path):
            found = list(_videos_under(pathlib.Path(path)))
            yield from found
            if not found:
                yield VideoError(name, "no video in this folder")
        elif glob.has_magic(path) and not os.path.exists(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from (m for m in matches if not os.path.isdir(m))
            if not matches:
                yield VideoError(name, "no file matches this pattern")
        else:
            yield path


def _videos_under(folder: pathlib.Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and is_video(path):
            yield os.fspath(path)


def is_video(path: pathlib.Path) -> bool:
    """Tell whether a file is a video, by its suffix or by FFmpeg's opinion of its beginning."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with open_video(path):
            return True
    except VideoError:
        return False
