"""The engine behind a TTS: one named by URL, or a process that all who want the same engine share.

A process, for torch in the agent's own would fight its event loop for the interpreter lock. Knows
nothing of conversations.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .client import EngineClient
from .config import AgentConfig, EngineConfig, ServerConfig
from .errors import CsmError, UnavailableError
from .server.supervisor import EngineProcess

_CONNECT_S = 2.0
_ANSWER_S = 60.0
"""Longest wait for an engine's answer; whoever asks may wait less."""


class RemoteEngine:
    """The engines at `urls`, tried in turn."""

    def __init__(self, urls: Sequence[str], key: str | None) -> None:
        self._client = EngineClient(urls, key=key, connect_timeout=_CONNECT_S, timeout=_ANSWER_S)

    def start(self) -> None:
        """Nothing to start: it runs already, or somebody else starts it."""

    async def client(self) -> EngineClient:
        return self._client

    async def aclose(self) -> None:
        await self._client.aclose()


@dataclass(eq=False, slots=True)
class _Shared:
    process: EngineProcess
    users: int = 0


_Key = tuple[EngineConfig, Path | None]
_running: dict[_Key, _Shared] = {}
_lock = threading.Lock()


class LocalEngine:
    """An engine process of this one, started by the first who needs it, stopped by the last."""

    def __init__(self, config: EngineConfig, voices_dir: Path | None = None) -> None:
        self._key: _Key = (config, voices_dir)
        self._shared: _Shared | None = None
        self._client: EngineClient | None = None

    def start(self) -> None:
        """Begin to load the model, unless that has begun; returns at once."""
        if self._shared is not None:
            return
        with _lock:
            shared = _running.get(self._key)
            if shared is None:
                config, voices_dir = self._key
                server = ServerConfig(port=0, voices_dir=voices_dir)
                shared = _running[self._key] = _Shared(EngineProcess(config, server))
                shared.process.start()
            shared.users += 1
        self._shared = shared

    async def client(self) -> EngineClient:
        """A client of it once it is ready. Raises what kept it from that: CsmError."""
        self.start()
        shared = self._shared
        if shared is None:
            raise UnavailableError("The engine was stopped.")
        try:
            url = await shared.process.ready()
        except CsmError:
            # This start has failed for good; whoever comes next may have better luck.
            await self._leave()
            raise
        if self._client is None:
            self._client = EngineClient(
                url, key=shared.process.key, connect_timeout=_CONNECT_S, timeout=_ANSWER_S
            )
        return self._client

    async def aclose(self) -> None:
        await self._leave()

    async def _leave(self) -> None:
        shared, self._shared = self._shared, None
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
        if shared is None:
            return
        with _lock:
            shared.users -= 1
            unused = shared.users == 0
            if _running.get(self._key) is shared and unused:
                del _running[self._key]
        if unused:
            await shared.process.astop()


Engine = RemoteEngine | LocalEngine


def engine_for(config: EngineConfig, url: str | Sequence[str] | None, key: str | None) -> Engine:
    """The engines named here, else those that the environment names, else one of our own.

    Raises ConfigError for what is no URL.
    """
    env = AgentConfig.from_env()
    urls = [url] if isinstance(url, str) else list(url or env.engine_urls)
    if urls:
        return RemoteEngine(urls, key or env.engine_key)
    return LocalEngine(config, ServerConfig.from_env().voices_dir)
