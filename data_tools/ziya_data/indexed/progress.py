"""Progress: one line that says how far a long job is."""

import sys
import time


class Progress:
    """On a terminal the line is rewritten twice a second; in a log there is a new one a minute."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._every = 0.5 if self._terminal else 60.0
        self.started = self._shown = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def update(self, state: str) -> None:
        """Shows `state` if it is time to."""
        if time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._write(state, "\r" if self._terminal else "\n")

    def clear(self) -> None:
        """Takes the line away, for whoever called tells the result."""
        if self._terminal:
            print("\033[K", end="", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """A line of its own, now."""
        print(f"\033[K{line}" if self._terminal else line, file=sys.stderr, flush=True)

    def _write(self, state: str, end: str) -> None:
        clear = "\033[K" if self._terminal else ""
        print(f"{clear}{self._label}: {state}", end=end, file=sys.stderr, flush=True)
