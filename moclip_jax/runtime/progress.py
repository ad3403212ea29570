"""What a run says on the screen: plain lines, and progress with an estimate for long work."""

import time
from typing import TextIO

_silent = False


def set_silent(silent: bool) -> None:
    """Let `say` print nothing: where several processes are one run, one of them tells its story."""
    global _silent
    _silent = silent


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line of the run's own story, at once; to standard output unless another is given."""
    if not _silent:
        print(line, flush=True, file=file)


# To the beginning of the terminal's line, and what stands there away.
_CLEAR = "\r\x1b[K"


class Progress:
    """Says at most every few seconds how far the work is and how long it will take.

    The first line comes after `interval_s`, so that short work stays silent; `done` says the total.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        *,
        done_before: int = 0,
        interval_s: float = 10.0,
        file: TextIO | None = None,
    ):
        """Start the clock.

        Args:
          total: Units of work in all.
          what: The work, for example 'prepare ucf101'.
          unit: What is counted, for example 'videos'.
          done_before: Units that an earlier run has done; they do not count for the rate.
          interval_s: Least number of seconds between two lines.
          file: Where to say it, standard output if None. If given and a terminal, there is a single
            line that is written again twice a second; `clear` makes room for other output.
        """
        self._total, self._what, self._unit, self._interval = total, what, unit, interval_s
        self._file = file
        self._rewrites = file is not None and file.isatty()
        if self._rewrites:
            self._interval = 0.5
        self._start = self._last = time.monotonic()
        self._before = self._count = done_before
        # The first unit also pays for compilation and start-up, so the rate is that of the others.
        self._first_end, self._first_count = 0.0, 0

    def advance(self, count: int = 1) -> None:
        """Count finished units, and say so if the last line is old enough."""
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
        """Take the line off a terminal; elsewhere lines stay."""
        if self._rewrites:
            print(_CLEAR, end="", flush=True, file=self._file)

    def done(self) -> None:
        """Say how much was done in what time."""
        self.clear()
        seconds = time.monotonic() - self._start
        count = self._count - self._before
        say(f"{self._what}: {count} {self._unit} in {duration(seconds)}", self._file)


def duration(seconds: float) -> str:
    """Return seconds as '1:05', or '1:01:05' from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
