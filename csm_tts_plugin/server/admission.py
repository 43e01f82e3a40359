"""How much of the engine one key may hold: conversations, and places (slots and queue).

The engine itself refuses whoever comes when slots and queue are full; this keeps one of several
keys from filling them alone, and everybody from opening conversations without end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..config import Limits
from ..engine.api import EngineStatus
from ..errors import BusyError

_RETRY_S = 1.0
"""A guess at when something comes free: half a sentence."""


class Admission:
    """One server's count. `keys`: how many there are; with a single one it may take all."""

    def __init__(self, keys: int, limits: Limits, status: Callable[[], EngineStatus]) -> None:
        self._share = limits.key_share if keys > 1 else 1.0
        self._per_place = limits.conversations_per_place
        self._status = status
        self._open: Counter[int] = Counter()
        self._places: Counter[int] = Counter()

    def admit(self, key: int) -> Admitted:
        """Room for a conversation of the key with this number. Raises BusyError."""
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
    """What one conversation holds; `close` gives all of it back."""

    def __init__(self, admission: Admission, key: int) -> None:
        self._admission = admission
        self._key = key
        self._speaks = False
        self._closed = False

    def speak(self) -> None:
        """It has something to say from now on. Raises BusyError."""
        if not self._speaks:
            self._admission.take_place(self._key)
            self._speaks = True

    def rest(self) -> None:
        """All that it had to say has been said."""
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
