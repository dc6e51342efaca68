"""Stops a worker whose release is broken before it drains its topic into the dead letters.

Judged is the share of dead letters among the newest rows, whatever their reason, and high enough that a flood of bad
input passes: half of a topic may be bad, but when nearly everything fails it is not the rows. The worker then waits and
tries a few rows now and then; once they go through it goes on. What was counted is committed: nothing is worked twice.
"""

import sys
from collections import Counter, deque
from collections.abc import Mapping

TRIED_ROWS = 100
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0


class Breaker:
    """Opens when more than ``limit`` of the newest ``window_rows`` rows (or a batch more) are dead letters; a limit of
    0 is none."""

    def __init__(self, limit: float = 0.0, window_rows: int = 1) -> None:
        self._limit, self._window_rows = limit or 1.0, window_rows
        self._seen: deque[tuple[int, Mapping[str, int]]] = deque()
        self._rows = self._dead = 0
        self._found: str | None = None
        self._pause_s = FIRST_PAUSE_S
        self._until = 0.0

    @property
    def why(self) -> str | None:
        """What a person is told while it is open; None when all is well."""
        if self._found is None:
            return None
        return (
            f"{self._found}. Mend or roll back what fails (`penstock dead stats` shows it); until then {TRIED_ROWS}"
            f" rows are tried every {self._pause_s:.0f} s. PENSTOCK_DEAD_LETTER_LIMIT=0 lets all of them go"
        )

    def most_rows(self, now: float) -> int:
        """How many rows may be worked now: none while it is open, a few when it is time for a try."""
        if self._found is None:
            return sys.maxsize
        if self._rows or 0 < self._until - now <= self._pause_s:  # a try is judged before the next one begins
            return 0
        return TRIED_ROWS

    def refused(self, reason: str, letters: int, of: int, now: float) -> None:
        """``letters`` of the last ``of`` rows, counted as good before, became dead letters in the end. Which of them
        are among the newest is not known: their share is."""
        self.count(0, {reason: letters * min(self._rows, of) // of}, now)

    def count(self, rows: int, dead: Mapping[str, int], now: float) -> None:
        """``rows`` more were worked, and ``dead`` (reason → how many) of them are dead letters."""
        self._seen.append((rows, dead))
        self._rows += rows
        self._dead += sum(dead.values())
        if self._found is not None:
            return
        while self._rows - self._seen[0][0] >= self._window_rows:
            gone, letters = self._seen.popleft()
            self._rows -= gone
            self._dead -= sum(letters.values())
        if self._rows < self._window_rows:
            return
        if self._dead > self._limit * self._rows:
            self._found = self._finding()
            self._wait(self._pause_s, now)
        else:
            self._pause_s = FIRST_PAUSE_S

    def settled(self, now: float) -> None:
        """All that was counted is committed or another's now: a try is judged."""
        if self._found is None:
            return
        if not self._rows:
            self._forget()
        elif self._dead > self._limit * self._rows:
            self._wait(min(2 * self._pause_s, LONGEST_PAUSE_S), now)
        else:
            self._found = None
            self._forget()

    def _finding(self) -> str:
        reasons: Counter[str] = Counter()
        for _, letters in self._seen:
            reasons.update(letters)
        ((most, _),) = reasons.most_common(1)
        share = 100 * self._dead // self._rows
        return f"{share} % of the last {self._rows:,} rows became dead letters, most of them {most!r}"

    def _wait(self, pause_s: float, now: float) -> None:
        self._pause_s, self._until = pause_s, now + pause_s
        self._forget()

    def _forget(self) -> None:
        self._seen.clear()
        self._rows = self._dead = 0
