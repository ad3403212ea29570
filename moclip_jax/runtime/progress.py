"""Print log lines, and the progress of long work with an estimate of the remaining time."""

import time
from typing import TextIO

_silent = False


def set_silent(silent: bool) -> None:
    """Silence `say`, for all processes of a run but the main one."""
    global _silent
    _silent = silent


def say(line: str, file: TextIO | None = None) -> None:
    """Print a log line and flush it, to standard output unless another file is given."""
    if not _silent:
        print(line, flush=True, file=file)


# Moves to the start of the terminal's line and erases it.
_CLEAR = "\r\x1b[K"


class Progress:
    """Prints progress and the remaining time, at most once in ten seconds.

    The first line comes after ten seconds, so that short work prints only the total, in `done`.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        *,
        done_before: int = 0,
        file: TextIO | None = None,
    ):
        """Start the clock.

        Args:
          unit: Name of the units, for example 'videos'.
          done_before: Units that an earlier run has done, which do not count for the rate.
          file: Where to print; None means standard output. On a terminal that is given, a single
            line is rewritten twice a second; `clear` makes room for other output.
        """
        self._total, self._what, self._unit = total, what, unit
        self._file = file
        self._rewrites = file is not None and file.isatty()
        self._interval = 0.5 if self._rewrites else 10.0
        self._start = self._last = time.monotonic()
        self._before = self._count = done_before
        # The first unit includes compilation and start-up, so the rate is that of the others.
        self._first_end, self._first_count = 0.0, 0

    def advance(self, count: int = 1) -> None:
        """Count finished units, and print a line if the last one is old enough."""
        now = time.monotonic()
        if not self._first_end:
            self._first_end, self._first_count = now, self._count + count
        self._count += count
        if now - self._last >= self._interval and self._count > self._first_count:
            self._last = now
            rate = (self._count - self._first_count) / (now - self._first_end)
            remaining = (self._total - self._count) / rate
            line = (
                f"{self._what}: {self._count}/{self._total} {self._unit}, "
                f"{rate:.1f} {self._unit}/s, {duration(remaining)} left"
            )
            if self._rewrites:
                print(f"{_CLEAR}{line}", end="", flush=True, file=self._file)
            else:
                say(line, self._file)

    def clear(self) -> None:
        """Erase the line on a terminal; elsewhere lines stay."""
        if self._rewrites:
            print(_CLEAR, end="", flush=True, file=self._file)

    def done(self) -> None:
        """Print the number of units and the time they took."""
        self.clear()
        seconds = time.monotonic() - self._start
        count = self._count - self._before
        say(f"{self._what}: {count} {self._unit} in {duration(seconds)}", self._file)


def duration(seconds: float) -> str:
    """Return seconds as '1:05', or '1:01:05' from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
