"""The messages to be sent to one client, bounded in seconds of speech.

A stalled client only fills its own outbox: adding a message never waits, one task sends. For
conversations that can be resumed, sent messages are kept for a while, to be sent again over the
next connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from aiohttp import web

from ..config import Limits
from ..errors import BusyError, UnavailableError


@dataclass(frozen=True, slots=True)
class _Item:
    text: str
    sound: bytes | None = None
    seconds: float = 0.0
    utterance: str | None = None


class Outbox:
    """Sends messages to `socket` in order; an audio message and its header stay together."""

    def __init__(self, socket: web.WebSocketResponse, limits: Limits) -> None:
        self._socket = socket
        self._limits = limits
        self._items: deque[_Item] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False
        self._seconds = 0.0
        self._texts = 0
        self._sent: deque[tuple[float, _Item]] = deque()
        """Sent messages with their times, without those that the client has acknowledged."""
        self._count = 0
        """Number of messages sent since the beginning."""
        self._greeting: str | None = None
        self.keeps = False
        """Whether sent messages are kept."""

    @property
    def seconds(self) -> float:
        """Seconds of speech waiting to be sent."""
        return self._seconds

    async def room(self) -> None:
        """Wait until there are few enough messages that the client's next one can be answered."""
        while self._texts >= self._limits.output_messages:
            self._room.clear()
            await self._room.wait()

    def put(self, text: str) -> None:
        self._append(_Item(text))

    def put_sound(self, text: str, sound: bytes, seconds: float, utterance: str) -> None:
        """Add audio and its header `text`. Raises BusyError when the client reads too slowly."""
        if self._seconds + seconds > self._limits.output_buffer_s:
            raise BusyError(
                f"More than {self._limits.output_buffer_s:g} s of speech wait to be read; "
                "read faster."
            )
        self._append(_Item(text, sound, seconds, utterance))

    def drop_sound(self, utterance: str | None = None) -> None:
        """Drop the waiting audio of this utterance, or of all."""
        kept = [
            item
            for item in self._items
            if item.sound is None or utterance not in (None, item.utterance)
        ]
        self._items = deque(kept)
        self._seconds = sum(item.seconds for item in kept)

    def acknowledge(self, received: int) -> None:
        """The client has received this many messages: they are no longer kept."""
        first = self._count - len(self._sent)
        for _ in range(min(received, self._count) - first):
            self._sent.popleft()

    def move(self, socket: web.WebSocketResponse, received: int, greeting: str) -> None:
        """Continue on another socket: send `greeting`, then all messages after the first
        `received`.

        Raises UnavailableError, without any change, if these are no longer kept.
        """
        first = self._count - len(self._sent)
        if not first <= received <= self._count:
            raise UnavailableError("What was missed is no longer kept; open another conversation.")
        self.acknowledge(received)
        missed = [item for _, item in self._sent]
        self._sent.clear()
        self._count = received
        self._items.extendleft(reversed(missed))
        self._seconds += sum(item.seconds for item in missed)
        self._texts += sum(item.sound is None for item in missed)
        self._socket, self._greeting = socket, greeting

    def finish(self) -> None:
        """Let `run` return when everything has been sent."""
        self._closing = True
        self._filled.set()

    async def run(self) -> None:
        """Send until `finish`. Raises TimeoutError for a stalled reader, OSError for a lost one."""
        if self._greeting is not None:
            greeting, self._greeting = self._greeting, None
            async with asyncio.timeout(self._limits.stalled_reader_s):
                await self._socket.send_str(greeting)
        while True:
            while self._items:
                item = self._take()
                async with asyncio.timeout(self._limits.stalled_reader_s):
                    await self._send(item)
            if self._closing:
                return
            self._filled.clear()
            await self._filled.wait()

    def _take(self) -> _Item:
        item = self._items.popleft()
        self._seconds -= item.seconds
        self._texts -= item.sound is None
        self._room.set()
        self._count += 1
        if self.keeps:
            now = time.monotonic()
            self._sent.append((now, item))
            while self._sent[0][0] < now - self._limits.keep_s:
                self._sent.popleft()
        return item

    async def _send(self, item: _Item) -> None:
        await self._socket.send_str(item.text)
        if item.sound is not None:
            await self._socket.send_bytes(item.sound)

    def _append(self, item: _Item) -> None:
        self._items.append(item)
        self._seconds += item.seconds
        self._texts += item.sound is None
        self._filled.set()
