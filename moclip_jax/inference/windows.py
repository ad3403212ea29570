"""Where a video is cut into windows that are clips of their own."""

import numpy as np

from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec, frame_positions
from moclip_jax.input_pipeline.video.parts import Part
from moclip_jax.input_pipeline.video.window_cutter import MAX_LEAD

# A window of fewer frames has no motion worth the name.
_LEAST_FRAMES = 3


def equal_windows(video: Clip, seconds: float, spec: VideoSpec) -> list[Part]:
    """Cut a video into equal windows of about `seconds`, at least one.

    A window begins with the I-frame at or before its place, so that its motion is accumulated as in
    the whole video; it then overlaps the one before by less than a group of pictures (and by at
    most 600 frames, where a stream has hardly any I-frames).

    Args:
      video: The video; of its frames, types and times are enough.
      seconds: Length of a window.
      spec: Says how many RGB frames are kept of a video.

    Raises:
      ValueError: The video declares no frame rate, so that its seconds are not known.
    """
    if not video.fps:
        raise ValueError("declares no frame rate, so a timeline has no seconds")
    length = video.num_frames
    count = min(max(round(video.duration / seconds), 1), max(length // _LEAST_FRAMES, 1))
    # An odd multiple of equal parts has, among its centres, those of the parts themselves.
    multiple = -(-count // spec.clip_frames) | 1
    rgb = frame_positions(length, spec.clip_frames * multiple)
    starts = video.group_starts()
    borders = [video.frame_at(video.duration * number / count) for number in range(count)]
    windows = []
    for begin, end in zip(borders, [*borders[1:], length], strict=True):
        end = max(end, begin + 1)  # A frame may be shown for longer than a window.
        start = int(starts[np.searchsorted(starts, begin, side="right") - 1])
        windows.append(_part(max(start, begin - MAX_LEAD), end, rgb))
    return windows


def group_windows(video: Clip, most: int) -> list[Part]:
    """Cut a video at I-frames into at most `most` windows, which do not overlap.

    Args:
      video: The video, with an RGB frame in each window; one without any keeps its middle frame.
      most: Number of windows, at most.
    """
    starts = video.group_starts()
    chosen = np.linspace(0, len(starts), min(most, len(starts)), endpoint=False).astype(int)
    begins = starts[chosen].tolist()
    return [
        _part(begin, end, video.frame_indices)
        for begin, end in zip(begins, [*begins[1:], video.num_frames], strict=True)
    ]


def _part(begin: int, end: int, rgb: np.ndarray) -> Part:
    first, last = np.searchsorted(rgb, (begin, end))
    return Part(begin, end, tuple(rgb[first:last].tolist()) or ((begin + end) // 2,))


def times_of(video: Clip, part: Part) -> tuple[float, float]:
    """Return the beginning and the end of a part in seconds, or in frames where there are none."""
    if not video.fps:
        return float(part.begin), float(part.end)
    end = video.duration if part.end == video.num_frames else video.times[part.end]
    return float(video.times[part.begin]), float(end)
