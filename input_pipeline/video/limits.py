"""What a video file may cost, and the error for one that costs more or cannot be read."""

import dataclasses
import os
import time
from collections.abc import Callable

import av


class VideoError(ValueError):
    """A video file that cannot be used; the message names the file and the reason."""

    def __init__(self, path: str | os.PathLike, reason: str):
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self):
        # Exceptions pickle by their message alone, which is not how this one is made; it has to
        # travel back from worker processes.
        return type(self), (self.path, self.reason)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file may cost; more is a `VideoError`. None stands for no limit.

    Attributes:
      max_bytes: Size of the file.
      max_frames: Frames of the video.
      max_pixels: Width times height of the frame.
      max_seconds: Seconds that one pass over the file may take, the caller's own work on the
        frames included. Looked at between two packets: a single frame that never ends needs
        `moclip_jax.input_pipeline.video.subprocess_pool`.
    """

    max_bytes: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    max_seconds: float | None = None


NO_LIMITS = Limits()


def _ignore_progress() -> None:
    pass


report_progress: Callable[[], None] = _ignore_progress
"""Called after each packet and frame; a child process replaces it, so that its parent knows."""


class Clock:
    """Says when a file has taken too long, and tells of every step in between."""

    def __init__(self, path: str | os.PathLike, limits: Limits):
        self._path = path
        self._seconds = limits.max_seconds
        self._start = time.monotonic()

    def check(self) -> None:
        """Report progress; raise a `VideoError` if the time is over."""
        report_progress()
        if self._seconds is not None and time.monotonic() - self._start > self._seconds:
            raise VideoError(self._path, f"takes longer than max_seconds={self._seconds:g}")


def decoder_limits(limits: Limits) -> dict[str, str]:
    """Return FFmpeg's decoder options for the limits."""
    # Somewhat looser, so that what is only a little too large is rejected by `check_size`, whose
    # message says more than "invalid argument".
    return {} if limits.max_pixels is None else {"max_pixels": str(4 * limits.max_pixels)}


def check_count(path: str | os.PathLike, num_frames: int, limits: Limits) -> None:
    """Check a number of frames against the limits.

    Raises:
      VideoError: It is beyond them.
    """
    if limits.max_frames is not None and num_frames > limits.max_frames:
        raise VideoError(path, f"has more than {limits.max_frames} frames (max_frames); cut it")


def check_size(path: str | os.PathLike, width: int, height: int, limits: Limits) -> None:
    """Check a frame's size in pixels against the limits.

    Raises:
      VideoError: It is beyond them.
    """
    if limits.max_pixels is not None and width * height > limits.max_pixels:
        raise VideoError(
            path, f"its frame of {width}x{height} has more than max_pixels={limits.max_pixels}"
        )


def check_encrypted(path: str | os.PathLike, packet: av.Packet, number: int) -> None:
    """Raise a `VideoError` if a packet, the `number`th of its stream, is encrypted."""
    if packet.has_sidedata("encryption_info"):
        raise VideoError(path, f"encrypted from packet {number} of the video stream on")


def check_corrupt(path: str | os.PathLike, num_corrupt: int, num_frames: int) -> None:
    """Raise a `VideoError` if more than half of the frames are damaged."""
    if 2 * num_corrupt > num_frames:
        raise VideoError(
            path, f"damaged or encrypted: {num_corrupt} of {num_frames} frames are corrupt"
        )
