"""Cut a clip into windows that are clips of their own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec, frame_positions, read_clip
from moclip_jax.input_pipeline.video.decode import check_video

# A window of fewer frames has no motion worth the name.
_LEAST_FRAMES = 3
# RGB frames kept of one video at most, for all its windows.
_MOST_CLIP_FRAMES = 1000


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a clip.

    Attributes:
      start_s: its beginning in seconds.
      end_s: its end in seconds.
      clip: its frames, as a clip of their own.
    """

    start_s: float
    end_s: float
    clip: Clip


def split_windows(video: Clip, seconds: float, spec: VideoSpec) -> list[Window]:
    """Cut a video into equal windows of about `seconds`, at least one.

    A window begins with the I-frame at or before its place, so that its motion is accumulated as in
    the whole video; it then overlaps the one before by less than `spec.gop_size` frames.

    Raises:
      ValueError: the video declares no frame rate, so that its seconds are not known.
    """
    if not video.fps:
        raise ValueError("declares no frame rate, so a timeline has no seconds")
    length = video.num_frames
    count = round(video.duration / seconds)
    count = min(max(count, 1), max(length // _LEAST_FRAMES, 1))
    starts = video.group_starts()
    windows = []
    borders = [video.frame_at(video.duration * number / count) for number in range(count)]
    times = np.append(video.times, video.duration)
    for begin, end in zip(borders, [*borders[1:], length], strict=True):
        end = max(end, begin + 1)  # A frame may be shown for longer than a window.
        begin = int(starts[np.searchsorted(starts, begin, side="right") - 1])
        # At least one RGB frame: the last before the window's end.
        chosen = (video.frame_indices >= begin) & (video.frame_indices < end)
        if not chosen.any():
            chosen[max(int(np.searchsorted(video.frame_indices, end)) - 1, 0)] = True
        part = video.part(begin, end, chosen)
        windows.append(Window(float(times[begin]), float(times[end]), part))
    return windows


def read_here(function: Callable[..., Any], path: str, *arguments: Any) -> Any:
    """Call `function(path, *arguments)`; stands where an `SubprocessReader` may be."""
    return function(path, *arguments)


def decode_for_windows(
    path: str, seconds: float, spec: VideoSpec, read: Callable[..., Any] = read_here
) -> Clip:
    """Prepare a video with an RGB frame for each of its windows, besides those of `spec`."""
    checked = read(check_video, path, spec.limits)
    windows = round(checked.num_packets / checked.fps / seconds) if checked.fps else 1
    # An odd multiple of equal parts has, among its centres, those of the parts themselves.
    multiple = -(-windows // spec.clip_frames) | 1
    most = (_MOST_CLIP_FRAMES // spec.clip_frames - 1) | 1
    frames = spec.clip_frames * min(multiple, most)
    return read(read_clip, path, dataclasses.replace(spec, clip_frames=frames))


def with_frames_of(video: Clip, spec: VideoSpec) -> Clip:
    """Return the video with the RGB frames alone that `spec` keeps."""
    wanted = frame_positions(video.num_frames, spec.clip_frames)
    return video.with_frames(np.isin(video.frame_indices, wanted))


def split_at_groups(video: Clip, most: int) -> list[tuple[int, int, Clip]]:
    """Cut a video at I-frames, so that each part's motion is what it is in the whole.

    Args:
      video: with an RGB frame in each part; a part without one borrows the nearest.
      most: number of parts, at most.

    Returns:
      (first frame, frame after the last, the part as a video of its own), in order.
    """
    starts = video.group_starts()
    chosen = np.linspace(0, len(starts), min(most, len(starts)), endpoint=False).astype(int)
    begins = starts[chosen].tolist()
    windows = []
    for begin, end in zip(begins, [*begins[1:], video.num_frames], strict=True):
        shown = (video.frame_indices >= begin) & (video.frame_indices < end)
        if not shown.any():
            shown[np.abs(video.frame_indices - (begin + end) // 2).argmin()] = True
        windows.append((begin, end, video.part(begin, end, shown)))
    return windows
