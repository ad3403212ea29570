"""Labels of one video after another: of the whole, and of windows of it in turn."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.decoding import check_video
from input_pipeline.video import PreparedVideo, VideoError, frame_positions, prepare_video
from moclip_jax.export import Recognizer
from moclip_jax.recognize import Classifier

MOST_WINDOWS = 12
# No sensible video shows more frames in a second, and each costs time.
MOST_FRAMES_PER_SECOND = 60


class VideoReader:
    """Answers what is seen in a video, as a whole and window by window.

    Args:
      recognizer: an exported model.
      max_seconds: a longer video is refused.
    """

    def __init__(self, recognizer: Recognizer, *, max_seconds: float):
        self._recognizer = recognizer
        self._max_seconds = max_seconds
        # More RGB frames than the model needs, for the windows and to show. An odd multiple of
        # equal parts has, among its centres, those of the parts themselves.
        multiple = -(-MOST_WINDOWS // recognizer.video.clip_frames) | 1
        self._spec = dataclasses.replace(
            recognizer.video,
            clip_frames=recognizer.video.clip_frames * multiple,
            max_frames=max(1, round(max_seconds * MOST_FRAMES_PER_SECOND)),
        )
        self._trained = Classifier(recognizer)

    def read(self, path: str) -> PreparedVideo:
        """Returns the video in the canonical form, with RGB frames for the windows too.

        Raises:
          VideoError: it cannot be read, or is too long; the message names it and the reason.
        """
        checked = check_video(path, self._spec.limits)
        seconds = checked.num_packets / checked.fps if checked.fps else 0.0
        if seconds > self._max_seconds:
            raise VideoError(
                path, f"it is {seconds:.0f} s long; {self._max_seconds:g} s is allowed"
            )
        return prepare_video(path, self._spec)

    def answer(self, video: PreparedVideo, words: Sequence[str] = ()) -> dict[str, Any]:
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
        kept = frame_positions(video.num_frames, self._recognizer.video.clip_frames)
        part = _with_frames(video, np.isin(video.frame_indices, kept))
        whole = classifier.probabilities(classifier.view(part))
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


def split_windows(video: PreparedVideo, most: int) -> list[tuple[int, int, PreparedVideo]]:
    """Cuts a video at I-frames, so that each part's motion is what it is in the whole.

    Args:
      video: with an RGB frame in each part; a part without one borrows the nearest.
      most: number of parts, at most.

    Returns:
      (first frame, frame after the last, the part as a video of its own), in order.
    """
    intra = np.flatnonzero(video.is_intra)
    begins = np.unique(intra[np.linspace(0, len(intra), min(most, len(intra)), False).astype(int)])
    windows = []
    for begin, end in zip(begins, [*begins[1:], video.num_frames], strict=True):
        chosen = (video.frame_indices >= begin) & (video.frame_indices < end)
        if not chosen.any():
            chosen[np.abs(video.frame_indices - (begin + end) // 2).argmin()] = True
        part = dataclasses.replace(
            _with_frames(video, chosen),
            displacements=video.displacements[begin:end],
            is_intra=video.is_intra[begin:end],
            is_bidirectional=video.is_bidirectional[begin:end],
            future=video.future[begin:end],
            num_frames=int(end - begin),
        )
        indices = np.clip(part.frame_indices - begin, 0, end - begin - 1).astype(np.int32)
        windows.append((int(begin), int(end), dataclasses.replace(part, frame_indices=indices)))
    return windows


def _with_frames(video: PreparedVideo, chosen: np.ndarray) -> PreparedVideo:
    return dataclasses.replace(
        video,
        frames=[video.frames[i] for i in np.flatnonzero(chosen)],
        frame_indices=video.frame_indices[chosen],
    )
