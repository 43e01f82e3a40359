"""`make web`: runs a LiveKit server, the agent's worker and the web page until Ctrl-C.

If LIVEKIT_URL is set, that server is used and none is started. Each process has a log in
`out/web/`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from csm_tts_plugin.config import load_env_file
from csm_tts_plugin.errors import ConfigError, CsmError

from .livekit_server import LiveKitServer, ServerError
from .setup_tools import ROOT
from .web_page import DEFAULT_PORT, Page, PageConfig, local_names
from .worker import Progress, Worker, WorkerError


def chosen_address(env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the page. Raises ConfigError if they cannot work."""
    host, port = env.get("WEB_HOST") or "127.0.0.1", env.get("PORT") or str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"PORT must be a number up to 65535, got {port!r}.")
    if local_names(host) is None and not env.get("LIVEKIT_URL"):
        raise ConfigError(
            f"WEB_HOST={host} serves other machines, but they cannot reach the LiveKit server that"
            " `make web` starts on loopback; set LIVEKIT_URL to a server that they can reach."
        )
    return host, int(port)


@contextmanager
def livekit(
    env: Mapping[str, str], log: Path, progress: Progress
) -> Iterator[LiveKitServer | None]:
    """A server on loopback; None if LIVEKIT_URL names one. Raises ServerError."""
    if env.get("LIVEKIT_URL"):
        yield None
        return
    progress.say("starting a LiveKit server on loopback")
    with LiveKitServer(log) as server:
        yield server


def page_config(env: Mapping[str, str], server: LiveKitServer | None, host: str) -> PageConfig:
    """On a shared LiveKit server the agent gets a name, so that it takes only calls of the page."""
    config = PageConfig.from_env({**env, **(server.keys if server else {})})
    if server is None and not config.agent_name:
        config = replace(config, agent_name=f"web-{secrets.token_hex(4)}")
    return replace(config, hosts=local_names(host))


async def run(env: Mapping[str, str], out: Path, progress: Progress) -> None:
    """Until it is cancelled. Raises CsmError, ServerError or WorkerError when a part ends."""
    host, port = chosen_address(env)
    with livekit(env, out / "livekit-server.log", progress) as server:
        config = page_config(env, server, host)
        async with Page(config, host, port) as page:
            progress.say(f"starting the agent, model {env.get('CSM_MODEL') or 'tiny'}")
            keys = {
                "LIVEKIT_URL": config.livekit_url,
                "LIVEKIT_API_KEY": config.livekit_key,
                "LIVEKIT_API_SECRET": config.livekit_secret,
            }
            worker = Worker(keys, out / "agent.log", progress, config.agent_name)
            with worker.child:
                await asyncio.to_thread(worker.wait_ready)
                progress.say(f"ready: open {page.url} and start a call; Ctrl-C stops everything")
                await _watch(worker, server)


async def _watch(worker: Worker, server: LiveKitServer | None) -> None:
    while True:
        await asyncio.sleep(0.5)
        if (code := worker.child.code) is not None:
            word = worker.last_word()
            raise WorkerError(f"The agent ended with code {code}; last log line: {word}")
        if server is not None and server.last_word is not None:
            raise ServerError(f"the LiveKit server ended: {server.last_word}")


def main() -> int:
    # Both signals raise, so that every `finally` runs. SIGINT is set explicitly because a shell
    # starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = Path(os.environ.get("OUT") or ROOT / "out" / "web")
    out.mkdir(parents=True, exist_ok=True)
    try:
        load_env_file(ROOT / ".env")
        asyncio.run(run(os.environ, out, Progress()))
    except (CsmError, ServerError, WorkerError) as error:
        print(f"web: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; all processes are stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
