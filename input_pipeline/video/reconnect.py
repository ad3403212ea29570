"""Connections to a stream that are made again after a loss, with pauses that double."""

import dataclasses

from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.input_pipeline.video.motion_vectors import NoVectorsError

_LONGEST_WAIT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Reconnection:
    """A lost connection that is made again after a wait.

    Attributes:
      connection: Number of the lost connection, from 1.
      reason: Why it was lost.
      wait_s: Seconds until the next.
    """

    connection: int
    reason: str
    wait_s: float


class StreamError(VideoError):
    """A stream that cannot be read, also not by connecting again.

    Attributes:
      connection: Number of the last connection, from 1.
    """

    def __init__(self, address: str, reason: str, connection: int):
        super().__init__(address, reason)
        self.connection = connection

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.connection)


class Connections:
    """Counts the connections to a stream, and says whether there is another.

    Attributes:
      number: Of the present connection, from 1.
    """

    def __init__(self, address: str, retries: int, endless: bool):
        """Start with the first.

        Args:
          address: As `read_stream`.
          retries: Connections in a row that may fail (addresses).
          endless: Connect again also where the stream ends.
        """
        self._address, self._retries, self._endless = address, retries, endless
        self.number, self._failures = 1, 0

    def received(self) -> None:
        """Take note that something came: failures in a row are counted anew."""
        self._failures = 0

    def ended(self, error: VideoError | None) -> Reconnection | None:
        """Count the next connection after the present one has ended.

        Args:
          error: Why it was lost; None if the stream ended.

        Returns:
          How long to wait for the next; None if there is none.

        Raises:
          StreamError: It was lost, and connecting again is of no use or failed `retries` times.
        """
        if error is None and not self._endless:
            return None
        # A file or a pipe does not come back, and another try finds no other codec.
        if error and ("://" not in self._address or isinstance(error, NoVectorsError)):
            raise StreamError(self._address, error.reason, self.number) from error
        reason = error.reason if error else "the stream ended"
        if self._failures >= self._retries:
            reason = f"{reason}; gave up after {self._failures} more connections"
            raise StreamError(self._address, reason, self.number) from error
        again = Reconnection(self.number, reason, min(2.0**self._failures, _LONGEST_WAIT_S))
        self._failures += 1
        self.number += 1
        return again
