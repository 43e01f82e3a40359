"""A LiveKit worker that starts an engine and the offline models before the first call.

`run` is a complete `main` of a worker. Engine and offline models run in separate processes, so that
the jobs, one process per call, stay small.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientTimeout
from dotenv import find_dotenv
from livekit.agents import AgentServer, JobContext, JobProcess, cli, inference
from livekit.agents import telemetry as livekit_telemetry
from livekit.agents.types import NOT_GIVEN

from livekit import api

from . import telemetry
from .caller import personal
from .caller.voice import CALLER
from .config import AgentConfig, EngineConfig, ServerConfig, TelemetryConfig, load_env_file
from .engine.api import require_packages
from .errors import AuthError, ConfigError, CsmError, UnavailableError
from .offline.names import check_installed, check_names
from .offline.process import OFFLINE_LLM_URL, OFFLINE_STT_URL, OfflineProcess
from .offline.providers import make_llm
from .server.supervisor import EngineProcess
from .voices.store import VoiceStore
from .wire.load import fullness, rows
from .wire.protocol import STOCK_VOICE, VOICE_ID

logger = logging.getLogger("csm_tts_plugin.agent")

_PRELOADED = ["csm_tts_plugin.agent", "anyio._backends._asyncio"]
"""Modules imported once in the process from which all jobs are forked."""

Answer = Callable[[JobContext], Awaitable[None]]


def run(answer: Answer, env_file: Path | None = None) -> int:
    """Run a worker that answers each call with `answer`; returns the exit code.

    The mode (start, dev or console) is taken from `sys.argv`. `env_file`: file with settings; None:
    `.env` in this folder or above. The environment has precedence. Configuration errors are printed
    in one line on stderr, with exit code 1.
    """
    try:
        load_env_file(env_file or find_dotenv(usecwd=True))
        for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
            if not os.environ.get(name):
                os.environ.pop(name, None)  # OpenAI's client would use the empty address
        config = AgentConfig.from_env()
        TelemetryConfig.from_env()
        worker = Worker(config)
        worker.rtc_session(answer, agent_name=config.agent_name)
        code = _run_cli(worker)
        if worker.failure is not None:
            raise worker.failure
    except CsmError as error:
        print(f"agent: {error}", file=sys.stderr)
        return 1
    return code


def _run_cli(worker: Worker) -> int:
    try:
        cli.run_app(worker)
    except SystemExit as ended:
        return int(ended.code or 0)
    except OSError as error:
        if "PortAudio" not in str(error):
            raise
        raise ConfigError("the console needs PortAudio; install libportaudio2.") from None
    return 0


class Worker(AgentServer):
    """LiveKit's worker with `Services`, which are started before it and stopped after it."""

    def __init__(self, config: AgentConfig) -> None:
        host, port = config.health
        super().__init__(
            setup_fnc=prewarm,
            load_fnc=self._load,
            initialize_process_timeout=60.0,
            host=host,
            port=port,
            prometheus_port=config.metrics_port or None,
            preload_modules=_PRELOADED,
        )
        self.failure: CsmError | None = None
        self._services = Services()
        self._share = 0.0
        """Share of the engines that one call takes."""
        self._ran = self._stopping = False

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        personal.guard_logs()
        try:
            if not unregistered:
                await check_livekit(AgentConfig.from_env())
            await self._services.start()
            self._ran = True
            await super().run(devmode=devmode, unregistered=unregistered)
        except CsmError as error:
            self.failure = None if self._stopping else error
        except RuntimeError:
            if not self._connection_failed:
                raise
            self.failure = UnavailableError(
                "LiveKit is not reachable; start it, then the agent again."
            )
        finally:
            await self._services.stop()

    def _load(self) -> float:
        """The load that LiveKit's dispatch uses; called in a separate thread."""
        load, self._share = occupancy(len(self.active_jobs))
        return load

    def _get_effective_load(self) -> float:
        """The load with calls that were accepted and have not begun, each a row of the engines.

        LiveKit's own estimate counts a call as 1/n of an idle worker with n idle processes: of
        three calls that arrived at once on two cores, the third was never answered.
        """
        return self._worker_load + self._reserved_slots * self._share

    async def drain(self, timeout: Any = NOT_GIVEN) -> None:
        if self._ran:
            await super().drain(timeout)

    async def aclose(self) -> None:
        self._stopping = True
        if self._ran:
            await super().aclose()
        await self._services.stop()


def prewarm(process: JobProcess) -> None:
    """Load models in a job's process before a call, because loading would block its event loop."""
    personal.guard_logs()
    process.userdata["vad"] = inference.VAD(model="silero")
    process.userdata["llm"] = make_llm(AgentConfig.from_env().llm)
    if (provider := telemetry.begin("csm-agent")) is not None:
        livekit_telemetry.set_tracer_provider(provider, allow_pii=False)


class Services:
    """The services that a worker's calls share: an engine, unless CSM_ENGINE_URL is set, and the
    offline models.

    Their addresses are passed to the jobs in the environment.
    """

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        self._env = env
        self._engine: EngineProcess | None = None
        self._offline: OfflineProcess | None = None
        self._stopping = asyncio.Lock()

    async def start(self) -> None:
        """Start all services; returns when they are ready. Raises the
        CsmError of a failed start.
        """
        config = AgentConfig.from_env(self._env)
        check_names(config, self._env)
        check_installed(config)
        folder = ServerConfig.from_env(self._env).voices_dir
        await asyncio.to_thread(check_voice, config, folder)
        stt, llm = config.stt == "offline", config.llm == "offline"
        if stt or llm:
            self._offline = OfflineProcess(stt=stt, llm=llm)
        if not config.engine_urls:
            require_packages()
            server = ServerConfig(port=0, voices_dir=folder)
            self._engine = EngineProcess(EngineConfig.from_env(self._env), server)
            self._engine.start()
        try:
            await asyncio.gather(self._start_engine(), self._start_offline())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all services; may be called several times."""
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


def check_voice(config: AgentConfig, folder: Path | None) -> None:
    """Raises ConfigError for a VOICE_SOURCE that cannot be used. Reads the disk.

    Voices of a remote engine are not checked.
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
    """URL, key and secret of LiveKit. Raises ConfigError with the names of missing variables."""
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


async def check_livekit(config: AgentConfig) -> None:
    """Asks LiveKit with the key. Raises CsmError at once; LiveKit's worker would retry for minutes
    or log a traceback.
    """
    url, key, secret = check_keys(config)
    async with api.LiveKitAPI(url, key, secret, timeout=ClientTimeout(total=10)) as livekit:
        try:
            await livekit.room.list_rooms(api.ListRoomsRequest(names=["-"]))
        except api.TwirpError as error:
            if error.status == 401:
                raise AuthError(
                    f"{url} refuses the key; check LIVEKIT_API_KEY and LIVEKIT_API_SECRET."
                ) from None
            raise UnavailableError(
                f"LiveKit at {url} answers {error.status}; see its log."
            ) from None
        except (ClientError, TimeoutError):
            raise UnavailableError(
                f"No LiveKit server answers at {url}; start it, or correct LIVEKIT_URL."
            ) from None


def engine_load(calls: int = 0) -> float:
    """Occupancy of the least busy engine: 0 idle, 1 full or not ready. Blocks for 1 s at most.

    `calls`: calls of this worker, counted before they have reached an engine, so that one worker
    does not accept a whole burst of calls.
    """
    return occupancy(calls)[0]


def occupancy(calls: int = 0) -> tuple[float, float]:
    """`engine_load`, and the share of the engines that one more call takes."""
    urls = AgentConfig.from_env().engine_urls
    if not urls:
        return 0.0, 0.0
    with ThreadPoolExecutor(len(urls)) as asking:
        found = list(asking.map(_status, urls))
    share = 1.0 / (sum(rows(status) for status in found) or 1)
    least = min(fullness(status) for status in found)
    return min(1.0, max(least, calls * share)), share


def _status(url: str, timeout: float = 1.0) -> dict[str, Any]:
    """The answer of an engine's `/readyz`; empty if it does not answer or is not ready."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=timeout) as answer:
            status = json.load(answer)
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
