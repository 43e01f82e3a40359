"""The engine of a TTS: remote ones by URL, or a local process that TTS with equal settings share.

It is a process because torch in the agent's process would compete with the event loop for the
interpreter lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import AgentConfig, EngineConfig, ServerConfig
from ..engine.api import require_packages
from ..errors import CsmError, UnavailableError
from ..server.supervisor import EngineProcess
from .engine import EngineClient

_CONNECT_S = 2.0
_ANSWER_S = 60.0
"""The longest wait for an engine's answer in seconds; callers may wait less."""


class RemoteEngine:
    """The engines at `urls`, tried in turn."""

    def __init__(self, urls: Sequence[str], key: str | None) -> None:
        self._client = EngineClient(urls, key=key, connect_timeout=_CONNECT_S, timeout=_ANSWER_S)

    def start(self) -> None:
        """Does nothing: a remote engine is started elsewhere."""

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
    """An engine as a child process, started for the first TTS that needs it, stopped after the last
    one.
    """

    def __init__(self, config: EngineConfig, voices_dir: Path | None = None) -> None:
        self._key: _Key = (config, voices_dir)
        self._shared: _Shared | None = None
        self._client: EngineClient | None = None

    def start(self) -> None:
        """Start the engine process unless it was started; returns at once."""
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
        """Wait for the engine; returns its client. Raises the CsmError of a failed start."""
        self.start()
        shared = self._shared
        if shared is None:
            raise UnavailableError("The engine was stopped.")
        try:
            url = await shared.process.ready()
        except CsmError:
            # This start has failed for good; the next call starts another process.
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
    """The engines at `url`, else those of the environment, else a local engine process.

    Raises ConfigError for an invalid URL, and if there is no URL and an engine cannot run here.
    """
    env = AgentConfig.from_env()
    urls = [url] if isinstance(url, str) else list(url or env.engine_urls)
    if urls:
        return RemoteEngine(urls, key or env.engine_key)
    require_packages()
    return LocalEngine(config, ServerConfig.from_env().voices_dir)
