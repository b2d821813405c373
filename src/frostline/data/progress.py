"""A line that says how far a long look at the data has come."""

from __future__ import annotations

import sys
import time

_QUIET = 2.0  # seconds: what is over by then says nothing
_REDRAWN, _REPEATED = 0.2, 15.0  # seconds between two states of a terminal, and between two lines of a file


class Progress:
    """Says on standard error how many of ``total`` are done: one changing line on a terminal, else a line at times.

    Args:
        what: is being done, such as ``reading pictures``.
        total: how many there are.
        before: how many of them were done at another time.
    """

    def __init__(self, what: str, total: int, *, before: int = 0) -> None:
        self._what, self._total, self._before = what, total, before
        self._started = time.monotonic()
        self._next = self._started + _QUIET
        self._shown = False

    def at(self, done: int) -> None:
        """Says that ``done`` are done, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        terminal = sys.stderr.isatty()
        self._next = now + (_REDRAWN if terminal else _REPEATED)
        rate = max(done - self._before, 1) / (now - self._started)
        left = _time((self._total - done) / rate)
        line = f"{self._what}: {done:,} of {self._total:,}, {rate:,.3g} a second, about {left} left"
        print(f"\r\x1b[K{line}" if terminal else line, file=sys.stderr, end="" if terminal else "\n", flush=True)
        self._shown = terminal

    def end(self) -> None:
        """Removes the line from a terminal."""
        if self._shown:
            print("\r\x1b[K", file=sys.stderr, end="", flush=True)
            self._shown = False


def _time(seconds: float) -> str:
    """Seconds while they are few, else hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
