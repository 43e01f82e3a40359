"""What waits to be sent to one client, bounded in seconds of speech.

A reader that stalls fills its own outbox and nobody else's: putting never waits, one task sends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from aiohttp import web

from ..config import Limits
from ..errors import BusyError


@dataclass(frozen=True, slots=True)
class _Item:
    text: str
    sound: bytes | None = None
    seconds: float = 0.0
    utterance: str | None = None


class Outbox:
    """Messages to `socket` in order; a message of sound and its header stay together."""

    def __init__(self, socket: web.WebSocketResponse, limits: Limits) -> None:
        self._socket = socket
        self._limits = limits
        self._items: deque[_Item] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False
        self._seconds = 0.0
        self._texts = 0

    @property
    def seconds(self) -> float:
        """Of speech that waits here."""
        return self._seconds

    async def room(self) -> None:
        """Until few enough messages wait that answers to more may be added."""
        while self._texts >= self._limits.output_messages:
            self._room.clear()
            await self._room.wait()

    def put(self, text: str) -> None:
        self._append(_Item(text))

    def put_sound(self, text: str, sound: bytes, seconds: float, utterance: str) -> None:
        """Raises BusyError when the client reads too slowly for it to be kept."""
        if self._seconds + seconds > self._limits.output_buffer_s:
            raise BusyError(
                f"More than {self._limits.output_buffer_s:g} s of speech wait to be read; "
                "read faster."
            )
        self._append(_Item(text, sound, seconds, utterance))

    def drop_sound(self, utterance: str | None = None) -> None:
        """Forget what waits of this utterance's sound, or of all sound."""
        kept = [
            item
            for item in self._items
            if item.sound is None or utterance not in (None, item.utterance)
        ]
        self._items = deque(kept)
        self._seconds = sum(item.seconds for item in kept)

    def finish(self) -> None:
        """Let `run` return once all is sent."""
        self._closing = True
        self._filled.set()

    async def run(self) -> None:
        """Send until `finish`. Raises TimeoutError for a stalled reader, OSError for a lost one."""
        while True:
            while self._items:
                item = self._items.popleft()
                self._seconds -= item.seconds
                self._texts -= item.sound is None
                self._room.set()
                async with asyncio.timeout(self._limits.stalled_reader_s):
                    await self._send(item)
            if self._closing:
                return
            self._filled.clear()
            await self._filled.wait()

    async def _send(self, item: _Item) -> None:
        await self._socket.send_str(item.text)
        if item.sound is not None:
            await self._socket.send_bytes(item.sound)

    def _append(self, item: _Item) -> None:
        self._items.append(item)
        self._seconds += item.seconds
        self._texts += item.sound is None
        self._filled.set()
