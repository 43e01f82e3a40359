"""The number of conversations that an engine has now, as far as the router can know it.

An engine's report (`/readyz`) counts all of its conversations at some moment between the request
and the answer. One that the router gives it at about that time may be in the report or not. So the
router counts its own conversations itself, and takes from the reports only how many others there
are: those that the engine keeps for clients whose connection was lost. A report in the middle of a
burst of calls then changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """The counts of an `Account` when a report was asked for."""

    given: int
    begun: int
    opened: int
    ended: int


class Account:
    """The conversations of one engine."""

    def __init__(self) -> None:
        self.given = 0
        """Current conversations through the router, from before the engine is asked to open
        them."""
        self.others = 0
        """Conversations of the engine besides those."""
        self._opened = 0
        """Those of `given` that the engine is known to have opened."""
        self._begun = 0
        self._ended = 0
        """How often `given` and `_opened` were raised and lowered, since the beginning."""

    @property
    def held(self) -> int:
        return self.given + self.others

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Counts a conversation while the context is open."""
        self.given += 1
        self._begun += 1
        try:
            yield
        finally:
            self.given -= 1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The engine has opened a conversation of `giving`, and has it until the context ends."""
        self._opened += 1
        try:
            yield
        finally:
            self._opened -= 1
            self._ended += 1

    def asked(self) -> Asked:
        """To be called before a report is asked for."""
        return Asked(self.given, self._begun, self._opened, self._ended)

    def report(self, conversations: int, asked: Asked) -> None:
        """Takes a report. It counts at most the conversations that were given at any time since
        `asked`, and at least those that were open all the time; `others` changes only if it
        contradicts that.
        """
        most = asked.given + self._begun - asked.begun
        least = max(0, asked.opened - (self._ended - asked.ended))
        self.others = min(max(self.others, conversations - most), max(0, conversations - least))
