"""Read clips in a child process, and recognize them window by window."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moclip_jax.inference.recognizer import Prediction, Recognizer
from moclip_jax.inference.windows import group_windows
from moclip_jax.input_pipeline.video.clip import Clip, frame_positions, read_clip
from moclip_jax.input_pipeline.video.subprocess_pool import SubprocessReader

MOST_WINDOWS = 12


class ClipReader:
    """Reads one file after another for a service.

    Files are read in a child process, so that one that crashes FFmpeg, or is never done, costs its
    own answer and nothing else. Use it as a context manager, or call `close`.
    """

    def __init__(self, model: Recognizer, *, timeout_s: float = 60.0):
        """Make a reader; no process is started yet.

        Args:
          model: the model.
          timeout_s: seconds without progress after which a file is given up.
        """
        self._model = model
        self._isolated = SubprocessReader(1, timeout_s)
        # More RGB frames than the model needs, for the windows and to show. An odd multiple of
        # equal parts has, among its centres, those of the parts themselves.
        multiple = -(-MOST_WINDOWS // model.video.clip_frames) | 1
        self._spec = dataclasses.replace(
            model.video, clip_frames=model.video.clip_frames * multiple
        )

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child process."""
        self._isolated.close()

    def read(self, path: str) -> Clip:
        """Return what the model and the page show of a file, whatever its length.

        Raises:
          VideoError: it cannot be read, or reading makes no progress; the message names it and the
            reason.
        """
        wanted = functools.partial(
            _seen_or_shown, self._spec.clip_frames, self._model.motion_wanted
        )
        return self._isolated(read_clip, path, self._spec, wanted)

    def predict(self, path: str, clip: Clip, labels: Sequence[str] = ()) -> Prediction:
        """Return the prediction of a file and of at most `MOST_WINDOWS` windows of it.

        Args:
          path: the file.
          clip: from `read`.
          labels: as `Recognizer.predict`.

        Returns:
          The prediction with the scores of all labels; the times of its windows are in seconds, or
          in frames where the file declares no frame rate.

        Raises:
          VideoError: as `read`.
        """
        model = self._model
        count = len(model.label_set(labels).labels)
        wanted = frame_positions(clip.num_frames, model.video.clip_frames)
        whole = clip.with_frames(np.isin(clip.frame_indices, wanted))
        parts = group_windows(clip, MOST_WINDOWS)
        windows = model.predict_parts(
            path, clip.outline, parts, top_k=count, labels=labels, read=self._isolated
        )
        prediction = model.predict_clip(whole, top_k=count, labels=labels)
        return dataclasses.replace(prediction, windows=tuple(windows))


def _seen_or_shown(
    clip_frames: int, seen: Callable[[int], np.ndarray], num_frames: int
) -> np.ndarray:
    """Return the frames whose motion the model sees, and those whose RGB is kept."""
    return np.union1d(frame_positions(num_frames, clip_frames), seen(num_frames))
