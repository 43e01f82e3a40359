"""One browser's call for all tests that look at its result."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from scripts.livekit_server import LiveKitServer
from tests.support.processes import parents, wait_until
from tests.web.browser import Browser, find_chromium
from tests.web.calling import Seen, whole_call
from tests.web.failing import Failures, Told
from tests.web.making_web import Microphone, Web
from tests.web.played_agent import Followed, PlayedAgent


@dataclass(frozen=True)
class WebCall:
    seen: Seen
    url: str
    exit_code: int
    left: set[int]
    """Processes of `make web` that outlived it."""
    agent_log: str


@pytest.fixture(scope="session")
def chromium() -> str:
    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    return path


@pytest.fixture(scope="session")
def web_call(chromium, tmp_path_factory) -> WebCall:
    out = tmp_path_factory.mktemp("web")
    microphone = Microphone(out / "microphone.wav")
    with Web(out) as web:
        seen = asyncio.run(whole_call(chromium, web, microphone))
        family, url = web.family, web.url
        code = web.stop()
    wait_until(lambda: not family & parents().keys())
    return WebCall(seen, url, code, family & parents().keys(), (out / "agent.log").read_text())


@pytest.fixture(scope="session")
def played(chromium, tmp_path_factory) -> tuple[dict[str, Told], Followed]:
    """Calls that cannot work, and one whose agent a test simulates; all at the same time."""
    out = tmp_path_factory.mktemp("played")

    async def all_of_them(server: LiveKitServer) -> tuple[dict[str, Told], Followed]:
        microphone = Microphone(out / "microphone.wav")
        async with Browser(chromium, microphone.file) as browser:
            return await asyncio.gather(
                Failures(browser, server).all(),
                PlayedAgent(browser, server).run(),
                return_exceptions=True,
            )

    with LiveKitServer(out / "livekit-server.log") as server:
        return asyncio.run(all_of_them(server))


def whole(part):
    """Raises the failure of this part; the other part is not affected."""
    if isinstance(part, BaseException):
        raise part
    return part


@pytest.fixture(scope="session")
def failures(played) -> dict[str, Told]:
    """The page's messages for calls that cannot work, by name."""
    return whole(played[0])


@pytest.fixture(scope="session")
def followed(played) -> Followed:
    """What the page showed for an agent's messages."""
    return whole(played[1])
