"""What `agent.py` needs and LiveKit does not give: processes to run, and what is told of them.

Knows nothing of LiveKit.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import urllib.request
from collections.abc import Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .caller_voice import CALLER
from .config import AgentConfig, EngineConfig, ServerConfig
from .errors import ConfigError, CsmError
from .load import fullness, rows_for
from .offline.process import OFFLINE_LLM_URL, OFFLINE_STT_URL, OfflineProcess
from .protocol import STOCK_VOICE, VOICE_ID
from .server.supervisor import EngineProcess
from .voices.store import VoiceStore

logger = logging.getLogger("csm_tts_plugin.agent")


class Services:
    """What the calls of a worker share: an engine unless one is named, and the offline models.

    Their addresses reach the jobs through the environment, which processes inherit.
    """

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        self._env = env
        self._engine: EngineProcess | None = None
        self._offline: OfflineProcess | None = None
        self._stopping = asyncio.Lock()

    async def start(self) -> None:
        """Returns when calls can be taken. Raises what keeps them from it, a CsmError."""
        config = AgentConfig.from_env(self._env)
        check_names(config, self._env)
        folder = ServerConfig.from_env(self._env).voices_dir
        await asyncio.to_thread(check_voice, config, folder)
        stt, llm = config.stt == "offline", config.llm == "offline"
        if stt or llm:
            self._offline = OfflineProcess(stt=stt, llm=llm)
        if not config.engine_urls:
            server = ServerConfig(port=0, voices_dir=folder)
            self._engine = EngineProcess(EngineConfig.from_env(self._env), server)
            self._engine.start()
        try:
            await asyncio.gather(self._start_engine(), self._start_offline())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Whoever asks, and however often: when it returns, nothing runs any more."""
        async with self._stopping:
            engine, self._engine = self._engine, None
            offline, self._offline = self._offline, None
            if engine is not None:
                await engine.astop()
            if offline is not None:
                await asyncio.shield(asyncio.to_thread(offline.stop))

    async def _start_engine(self) -> None:
        if self._engine is not None:
            self._env["CSM_ENGINE_URL"] = await self._engine.ready()
            self._env["CSM_ENGINE_KEY"] = self._engine.key

    async def _start_offline(self) -> None:
        if self._offline is None:
            return
        await asyncio.to_thread(self._offline.start)
        self._env.update(self._offline.addresses(OFFLINE_STT_URL, OFFLINE_LLM_URL))


def check_names(config: AgentConfig, env: Mapping[str, str]) -> None:
    """Raises ConfigError for an STT or LLM that nobody could provide."""
    for variable, name in (("AGENT_STT", config.stt), ("AGENT_LLM", config.llm)):
        endpoint = env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL")
        if name.startswith("openai:") and not endpoint:
            raise ConfigError(f"{variable}={name} needs OPENAI_API_KEY, or OPENAI_BASE_URL.")
        if name != "offline" and "/" not in name and not name.startswith("openai:"):
            raise ConfigError(
                f"{variable}={name} is unknown; take offline, a LiveKit Inference name such as"
                " openai/gpt-4.1-mini, or openai:<model> with OPENAI_BASE_URL."
            )


def check_voice(config: AgentConfig, folder: Path | None) -> None:
    """Raises ConfigError for a VOICE_SOURCE that no call could be answered in. Reads the disk.

    What an engine of somebody else's start keeps is known to that engine alone.
    """
    wanted = config.voice_source
    if not VOICE_ID.fullmatch(wanted):
        raise ConfigError(
            "VOICE_SOURCE must be caller, stock, or the id of a stored voice out of a-z, 0-9, _ and"
            " -, at most 64; `python -m csm_tts_plugin voices list` shows them."
        )
    if wanted in (CALLER, STOCK_VOICE) or config.engine_urls:
        return
    if folder is None:
        raise ConfigError(f"VOICE_SOURCE={wanted} is a stored voice; say where by CSM_VOICES_DIR.")
    try:
        VoiceStore(folder).load(wanted)
    except CsmError as error:
        raise ConfigError(f"VOICE_SOURCE={wanted} cannot be used: {error.message}") from None


def check_keys(config: AgentConfig) -> tuple[str, str, str]:
    """URL, key and secret of LiveKit. Raises ConfigError naming what is not set."""
    found = {
        "LIVEKIT_URL": config.livekit_url,
        "LIVEKIT_API_KEY": config.livekit_api_key,
        "LIVEKIT_API_SECRET": config.livekit_api_secret,
    }
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise ConfigError(f"Set {', '.join(missing)} in the environment or in .env.")
    url, key, secret = (str(value) for value in found.values())
    return url, key, secret


def turn_figures(heard: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a turn out of LiveKit's metrics of the user's message and of the reply.

    `spoke_at` is the clock's time at which the caller began, for matching by a recording.
    """
    sources = {
        "spoke_at": (heard, "started_speaking_at"),
        "endpointing": (heard, "end_of_turn_delay"),
        "stt": (heard, "transcription_delay"),
        "llm_ttft": (said, "llm_node_ttft"),
        "tts_first_audio": (said, "tts_node_ttfb"),
        "e2e": (said, "e2e_latency"),
    }
    found = {name: report.get(key) for name, (report, key) in sources.items()}
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def engine_load(calls: int = 0) -> float:
    """How full the least busy engine is: 0 idle, 1 full or not ready. Blocks for 1 s at most.

    `calls`: of this worker, counted also before they have reached an engine, so that a burst of
    them is not taken by one worker.
    """
    urls = AgentConfig.from_env().engine_urls
    if not urls:
        return 0.0
    with ThreadPoolExecutor(len(urls)) as asking:
        found = list(asking.map(_status, urls))
    rows = sum(rows_for(int(status["slots"])) for status in found if status.get("slots"))
    least = min(fullness(status) for status in found)
    return min(1.0, max(least, calls / rows if rows else 1.0))


def engine_facts() -> dict[str, str]:
    """The engine's model and device, as participant attributes. Blocks for 10 s at most."""
    urls = AgentConfig.from_env().engine_urls
    status = _status(urls[0], 10.0) if urls else {}
    return {f"csm.{name}": str(status[name]) for name in ("model", "device") if status.get(name)}


def _status(url: str, timeout: float = 1.0) -> dict[str, Any]:
    """What an engine says of itself; empty when it does not answer, or is not ready."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=timeout) as answer:
            status = json.load(answer)
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
