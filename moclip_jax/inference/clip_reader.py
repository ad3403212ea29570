"""Read clips of limited length in a child process, and recognize them window by window."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moclip_jax.inference.recognizer import Prediction, Recognizer
from moclip_jax.inference.windows import split_at_groups, with_frames_of
from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec, read_clip
from moclip_jax.input_pipeline.video.decode import check_video
from moclip_jax.input_pipeline.video.subprocess_pool import SubprocessReader

MOST_WINDOWS = 12
# No sensible video shows more frames in a second, and each costs time.
MOST_FRAMES_PER_SECOND = 60


class ClipReader:
    """Reads one file after another for a service.

    Files are read in a child process, so that one that crashes FFmpeg, or is never done, costs its
    own answer and nothing else. Use it as a context manager, or call `close`.
    """

    def __init__(self, video: VideoSpec, *, max_seconds: float, timeout_s: float = 60.0):
        """Make a reader; no process is started yet.

        Args:
          max_seconds: a longer video is rejected.
        """
        self._max_seconds = max_seconds
        self._isolated = SubprocessReader(1, timeout_s)
        # More RGB frames than the model needs, for the windows and to show. An odd multiple of
        # equal parts has, among its centres, those of the parts themselves.
        multiple = -(-MOST_WINDOWS // video.clip_frames) | 1
        self._spec = dataclasses.replace(
            video,
            clip_frames=video.clip_frames * multiple,
            max_frames=max(1, round(max_seconds * MOST_FRAMES_PER_SECOND)),
        )

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child process."""
        self._isolated.close()

    def read(self, path: str) -> Clip:
        """Return the video in the canonical form, with RGB frames for the windows too.

        Raises:
          VideoError: it cannot be read, is too long, or takes too long; the message names it and
            the reason.
        """
        checked = self._isolated(check_video, path, self._spec.limits)
        seconds = checked.num_packets / checked.fps if checked.fps else 0.0
        if seconds > self._max_seconds:
            raise VideoError(
                path, f"it is {seconds:.0f} s long; {self._max_seconds:g} s is allowed"
            )
        return self._isolated(read_clip, path, self._spec)


def predict_with_windows(model: Recognizer, clip: Clip, labels: Sequence[str] = ()) -> Prediction:
    """Return the prediction of a clip and of at most `MOST_WINDOWS` windows of it.

    Returns:
      The prediction with the scores of all labels; the times of its windows are in seconds, or in
      frames where the file declares no frame rate.
    """
    count = len(model.label_set(labels).labels)

    def predict(part: Clip) -> Prediction:
        return model.predict_clip(part, top_k=count, labels=labels)

    times = np.append(clip.times, clip.duration) if clip.fps else np.arange(clip.num_frames + 1)
    windows = tuple(
        dataclasses.replace(predict(part), start_s=float(times[begin]), end_s=float(times[end]))
        for begin, end, part in split_at_groups(clip, MOST_WINDOWS)
    )
    return dataclasses.replace(predict(with_frames_of(clip, model.video)), windows=windows)
