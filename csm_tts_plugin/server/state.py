"""The state that all handlers of one server share."""

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
from .detections import Detections
from .metrics import Metrics


class Speaker(Protocol):
    """A session that the server ends when it stops."""

    @property
    def speaking(self) -> bool: ...

    def fail(self, error: CsmError) -> None: ...


class Keeper(Protocol):
    """A session that can be resumed over another socket."""

    def take_over(
        self, socket: web.WebSocketResponse, key: int, received: int
    ) -> asyncio.Future[None]:
        """Continue on `socket`; the future is done when the session no longer uses it. Raises
        UnavailableError, also through the future.
        """


@dataclass(slots=True)
class ServerState:
    engine: SpeechEngine
    config: ServerConfig
    bridge: Bridge
    metrics: Metrics = field(init=False)
    admission: Admission = field(init=False)
    detections: Detections = field(init=False)
    sessions: set[Speaker] = field(default_factory=set)
    kept: dict[str, Keeper] = field(default_factory=dict)
    """Sessions that survive a lost socket, by their clients' secrets."""
    voice_keys: dict[str, set[str]] = field(default_factory=dict)
    """The engine's keys of stored voices that it may have in its cache, by voice id."""
    draining: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever an utterance or a session has ended."""

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.config.restarts)
        self.detections = Detections(self.config.limits.detections)
        keys = len(self.config.keys)
        self.admission = Admission(keys, self.config.limits, self.engine.status)

    def check_open(self) -> None:
        """Raises UnavailableError while the server is shutting down."""
        if self.draining:
            raise UnavailableError("The engine is shutting down; try another.", retry_after=1.0)

    async def drain(self, seconds: float) -> None:
        """Accept nothing new, let utterances finish for at most `seconds`,
        then end all sessions.
        """
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
