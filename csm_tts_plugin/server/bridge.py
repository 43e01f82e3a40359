"""Passes events from the engine's thread to the event loop, with one wake-up per engine step."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ..engine.api import Event

Receiver = Callable[[Event], None]


class Bridge:
    """Any thread posts; the loop receives in order. A step of 512 streams wakes the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Receiver, Event]] = deque()
        self._woken = False

    def post(self, receiver: Receiver, event: Event) -> None:
        """Queue an event for `receiver`; neither blocks nor raises. Dropped
        after the loop's end.
        """
        self._events.append((receiver, event))
        # The flag is cleared before the loop empties the queue: an event appended after that wakes
        # the loop again, one appended before is delivered by this wake-up.
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        # Not until the queue is empty: an engine that is faster than the loop would block all other
        # tasks as long as it speaks.
        for _ in range(len(self._events)):
            receiver, event = self._events.popleft()
            receiver(event)
