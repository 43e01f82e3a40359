"""Calls from the browser that cannot work, and the page's messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from scripts.web_page import PageConfig
from tests.web.browser import Tab
from tests.web.pages import IN_CALL, NOTICE, Pages

NO_MICROPHONE = """
navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", "NotFoundError"));
"""
NO_PLAY = """
const play = HTMLMediaElement.prototype.play;
window.mayPlay = false;
HTMLMediaElement.prototype.play = function () {
  return window.mayPlay ? play.call(this) : Promise.reject(new DOMException("", "NotAllowedError"));
};
"""


class Line:
    """A TCP proxy to the LiveKit server's signalling, which can be cut and restored."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Closes all connections and refuses new ones."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        far_reader, far_writer = await asyncio.open_connection(host, port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
        self._writers -= {writer, far_writer}


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Told:
    """The page's messages, in the order of the tests' steps."""

    words: list[str] = field(default_factory=list)
    phase: str = ""
    errors: list[str] = field(default_factory=list)


class Failures(Pages):
    """Each method is one failure."""

    async def all(self) -> dict[str, Told]:
        """Runs three at a time, each in its own page."""
        cases: dict[str, Callable[[], Awaitable[Told]]] = {
            "a lost line, and no agent": self._lost_line_and_no_agent,
            "refused microphone": lambda: self._at_start(self._config, microphone="denied"),
            "no microphone": lambda: self._at_start(self._config, script=NO_MICROPHONE),
            "no livekit": lambda: self._at_start(
                replace(self._config, livekit_url="ws://127.0.0.1:9")
            ),
            "refused token": lambda: self._at_start(
                replace(self._config, livekit_secret="another-secret-of-32-characters-")
            ),
            "too many": self._too_many,
            "no page server": self._no_page_server,
            "blocked sound": self._blocked_sound,
        }
        room_for = asyncio.Semaphore(3)

        async def run(name: str, case: Callable[[], Awaitable[Told]]) -> Told:
            async with room_for:
                began = time.monotonic()
                try:
                    told = await case()
                except Exception as error:  # fails only the tests of this case
                    told = Told(errors=[f"{name}: {error}"])
                print(f"{time.monotonic() - began:6.2f} s for: {name}")
                return told

        told = await asyncio.gather(*(run(name, case) for name, case in cases.items()))
        return dict(zip(cases, told, strict=True))

    async def _told(self, tab: Tab, *words: str) -> Told:
        words = words or (await tab.until(NOTICE),)
        phase = await tab.evaluate("document.body.dataset.phase")
        return Told(list(words), phase, [c for c in tab.console if c.startswith("error: {")])

    async def _at_start(self, config: PageConfig, **how: str) -> Told:
        async with self.page(config, **how) as (tab, _):
            await tab.click("#start")
            return await self._told(tab)

    async def _too_many(self) -> Told:
        async with self.page(replace(self._config, tokens_per_minute=1)) as (tab, _):
            await tab.evaluate("fetch('token', { method: 'POST' }).then(() => true)")
            await tab.click("#start")
            return await self._told(tab)

    async def _no_page_server(self) -> Told:
        async with self.page(self._config) as (tab, page):
            await page.__aexit__()
            await tab.click("#start")
            return await self._told(tab)

    async def _lost_line_and_no_agent(self) -> Told:
        """A lost connection without an agent; then an agent joins late and leaves."""
        line = Line(self._config.livekit_url)
        await line.mend()
        async with self.page(replace(self._config, public_url=line.url)) as (tab, _):
            await tab.click("#start")
            await tab.until(IN_CALL)
            waiting = await tab.evaluate("document.querySelector('#state').innerText")
            await line.cut()
            lost = await tab.until(NOTICE)
            await line.mend()
            absent = await tab.until(f"(n => n.includes('agent') && n)({NOTICE})")
            room = await self.agent(tab)
            await tab.until("document.querySelector('#notice').hidden")
            await room.disconnect()
            left = await tab.until(NOTICE)
            told = await self._told(tab, waiting, lost, absent, left)
        await line.cut()
        return told

    async def _blocked_sound(self) -> Told:
        async with self.page(self._config, script=NO_PLAY) as (tab, _):
            await tab.click("#start")
            await tab.until(IN_CALL)
            room = await self.agent(tab, speaks=True)
            blocked = await tab.until(NOTICE)
            await tab.evaluate("window.mayPlay = true")
            await tab.click("#sound")
            await tab.until("document.querySelector('#sound').hidden")
            told = await self._told(tab, blocked, await tab.evaluate(NOTICE))
            await room.disconnect()
        return told
