"""Read videos in processes of their own, so that a file that crashes FFmpeg costs one video."""

from collections.abc import Callable
from typing import Any, TypeVar

from moclip_jax.input_pipeline.video.clip import VideoError
from moclip_jax.input_pipeline.video.subprocess_pool import WorkerError, WorkerPool, run_isolated

_T = TypeVar("_T")

# Of a reading process, in bytes; a few pictures of 4K and the motion of minutes are far less.
MOST_MEMORY = 4 * 2**30
# `VideoSpec.max_seconds` is looked at between two packets; this much later a process is ended.
GRACE_S = 5.0


class SubprocessReader:
    """Calls functions of video files in child processes.

    It may be used from several threads; as many calls run at once as there are processes. Use it as
    a context manager, or call `close`.
    """

    def __init__(self, num_workers: int, timeout_s: float):
        """Start no process yet.

        Args:
          num_workers: Processes at most.
          timeout_s: Seconds that a call may take.
        """
        self.timeout_s = timeout_s
        self._pool = WorkerPool(num_workers, max_memory=MOST_MEMORY)

    def __enter__(self) -> "SubprocessReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:  # Nobody waits any more for what is still running.
            self._pool.kill()
        self.close()

    def close(self) -> None:
        """End the processes; waits for calls that are still running."""
        self._pool.close()

    def __call__(self, function: Callable[..., _T], path: str, *arguments: Any) -> _T:
        """Return `function(path, *arguments)`.

        Args:
          function: Must pickle, with what it takes and gives.
          path: A video file.
          *arguments: What else the function takes.

        Raises:
          VideoError: As the function; or its process crashed, or took too long or too much memory.
        """
        try:
            return run_isolated(self._pool, function, (path, *arguments), self.timeout_s)
        except WorkerError as error:
            raise VideoError(path, f"reading it {error.reason}") from error
        except MemoryError as error:
            raise VideoError(path, "reading it takes too much memory") from error
