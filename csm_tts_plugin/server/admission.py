"""How much of the engine one key may use: open conversations, and places in slots and queue.

The engine itself refuses utterances when slots and queue are full. This module keeps one of several
keys from occupying all of them, and bounds the number of open conversations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..config import Limits
from ..engine.api import EngineStatus
from ..errors import BusyError

_RETRY_S = 1.0
"""Estimated seconds until a place is free: half a sentence."""


class Admission:
    """Counts conversations and places of one server. `keys`: number of keys; a single key may use
    all.
    """

    def __init__(self, keys: int, limits: Limits, status: Callable[[], EngineStatus]) -> None:
        self._share = limits.key_share if keys > 1 else 1.0
        self._per_place = limits.conversations_per_place
        self._status = status
        self._open: Counter[int] = Counter()
        self._places: Counter[int] = Counter()

    def admit(self, key: int) -> Admitted:
        """Admit a conversation of the key with this index. Raises BusyError."""
        most = self._per_place * self._all_places()
        if self._open.total() >= most:
            raise _busy(f"All {most} conversations of this engine are open")
        share = self._part(most)
        if self._open[key] >= share:
            raise _busy(f"This key has all of its {share} conversations open")
        self._open[key] += 1
        return Admitted(self, key)

    def take_place(self, key: int) -> None:
        share = self._part(self._all_places())
        if self._share < 1.0 and self._places[key] >= share:
            raise _busy(f"This key speaks and waits in all of its {share} places")
        self._places[key] += 1

    def give_place(self, key: int) -> None:
        self._places[key] -= 1

    def leave(self, key: int) -> None:
        self._open[key] -= 1

    def _all_places(self) -> int:
        status = self._status()
        return status.slots + status.queue

    def _part(self, whole: int) -> int:
        return max(1, int(self._share * whole))


class Admitted:
    """The share of one conversation; `close` returns all of it."""

    def __init__(self, admission: Admission, key: int) -> None:
        self._admission = admission
        self._key = key
        self._speaks = False
        self._closed = False

    def speak(self) -> None:
        """Take a place, because the conversation has something to say. Raises BusyError."""
        if not self._speaks:
            self._admission.take_place(self._key)
            self._speaks = True

    def rest(self) -> None:
        """Return the place, because everything was said."""
        if self._speaks:
            self._speaks = False
            self._admission.give_place(self._key)

    def close(self) -> None:
        if not self._closed:
            self.rest()
            self._closed = True
            self._admission.leave(self._key)


def _busy(why: str) -> BusyError:
    return BusyError(f"{why}; try again soon.", retry_after=_RETRY_S)
