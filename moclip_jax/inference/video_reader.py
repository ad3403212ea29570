"""Labels of one video after another: of the whole, and of windows of it in turn."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moclip_jax.export.exporter import Recognizer
from moclip_jax.inference.recognize import Classifier, with_frames_of
from moclip_jax.input_pipeline.video.clip import Clip, VideoError, read_clip
from moclip_jax.input_pipeline.video.decode import check_video
from moclip_jax.input_pipeline.video.subprocess_pool import SubprocessReader

MOST_WINDOWS = 12
# No sensible video shows more frames in a second, and each costs time.
MOST_FRAMES_PER_SECOND = 60


class VideoReader:
    """Answers what is seen in a video, as a whole and window by window.

    Files are read in a process of their own, so that one that crashes FFmpeg, or is never done,
    costs its own answer and nothing else. Use it as a context manager, or call `close`.

    Args:
      recognizer: an exported model.
      max_seconds: a longer video is refused.
      timeout_s: seconds that reading a video may take.
    """

    def __init__(self, recognizer: Recognizer, *, max_seconds: float, timeout_s: float = 60.0):
        self._recognizer = recognizer
        self._max_seconds = max_seconds
        self._isolated = SubprocessReader(1, timeout_s)
        # More RGB frames than the model needs, for the windows and to show. An odd multiple of
        # equal parts has, among its centres, those of the parts themselves.
        multiple = -(-MOST_WINDOWS // recognizer.video.clip_frames) | 1
        self._spec = dataclasses.replace(
            recognizer.video,
            clip_frames=recognizer.video.clip_frames * multiple,
            max_frames=max(1, round(max_seconds * MOST_FRAMES_PER_SECOND)),
        )
        self._trained = Classifier(recognizer)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading process."""
        self._isolated.close()

    def read(self, path: str) -> Clip:
        """Returns the video in the canonical form, with RGB frames for the windows too.

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

    def answer(self, video: Clip, words: Sequence[str] = ()) -> dict[str, Any]:
        """Returns labels of the whole video and of its windows.

        Args:
          video: from `read`.
          words: labels of the user's own, as in `predict --classes`; none means the classes the
            model was trained on.

        Returns:
          `labels`, most likely first; `probabilities` of the whole, float `[labels]`; and
          `timeline`, a list of (start, end, probabilities), in seconds, or in frames where the file
          declares no frame rate.
        """
        classifier = Classifier(self._recognizer, words) if words else self._trained
        whole = classifier.probabilities(
            classifier.view(with_frames_of(video, self._recognizer.video))
        )
        order = np.argsort(-whole, kind="stable")
        rate = video.fps or 1.0
        return {
            "labels": [classifier.labels[i] for i in order],
            "probabilities": whole[order],
            "timeline": [
                (begin / rate, end / rate, classifier.probabilities(classifier.view(part))[order])
                for begin, end, part in split_windows(video, MOST_WINDOWS)
            ],
        }


def split_windows(video: Clip, most: int) -> list[tuple[int, int, Clip]]:
    """Cuts a video at I-frames, so that each part's motion is what it is in the whole.

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
