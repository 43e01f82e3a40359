"""From the engine's thread to the event loop: one wake-up for all that a step delivers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ..engine.api import Event

Receiver = Callable[[Event], None]


class Bridge:
    """Any thread posts, the loop receives, in order. A step of 512 streams wakes the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Receiver, Event]] = deque()
        self._woken = False

    def post(self, receiver: Receiver, event: Event) -> None:
        """Hand over an event; neither blocks nor raises. After the loop's end it is dropped."""
        self._events.append((receiver, event))
        # Cleared before the loop empties the queue: what is appended later finds it cleared and
        # wakes again, what is appended earlier is emptied too.
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        # Not until it is empty: an engine that is faster than the loop would hold everybody else's
        # turn back for as long as it speaks.
        for _ in range(len(self._events)):
            receiver, event = self._events.popleft()
            receiver(event)
