"""What all handlers of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from ..config import ServerConfig
from ..engine.api import SpeechEngine
from ..errors import CsmError, UnavailableError
from .admission import Admission
from .bridge import Bridge
from .metrics import Metrics


class Speaker(Protocol):
    """A session, as the server sees it when it has to stop."""

    @property
    def speaking(self) -> bool: ...

    def fail(self, error: CsmError) -> None: ...


@dataclass(slots=True)
class ServerState:
    engine: SpeechEngine
    config: ServerConfig
    bridge: Bridge
    metrics: Metrics = field(init=False)
    admission: Admission = field(init=False)
    sessions: set[Speaker] = field(default_factory=set)
    draining: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever an utterance or a session has ended."""

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.config.restarts)
        keys = len(self.config.keys)
        self.admission = Admission(keys, self.config.limits, self.engine.status)

    def check_open(self) -> None:
        """Raises UnavailableError while the server is on its way out."""
        if self.draining:
            raise UnavailableError("The engine is shutting down; try another.", retry_after=1.0)

    async def drain(self, seconds: float) -> None:
        """Take nothing new; let what speaks finish, for at most so long; then end every session."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until(lambda: not any(one.speaking for one in self.sessions))
        self.end_sessions()
        await self._until(lambda: not self.sessions)

    def end_sessions(self) -> None:
        for session in list(self.sessions):
            session.fail(UnavailableError("The engine was shut down; try another."))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


STATE = web.AppKey("state", ServerState)
