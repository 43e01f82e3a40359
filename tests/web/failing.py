"""Calls from the browser that cannot work, and what the page says of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, urlsplit

from livekit import api, rtc
from scripts.livekit_server import LiveKitServer
from scripts.web_page import Page, PageConfig
from tests.web.browser import Browser, Tab

NOTICE = "(n => n.hidden ? '' : n.innerText)(document.querySelector('#notice'))"
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
    """TCP to the LiveKit server's signalling, which can be cut and mended."""

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
        """Ends all that runs over it; whoever tries again is refused."""
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
    """The page's words, in the order of the tests' steps."""

    words: list[str] = field(default_factory=list)
    phase: str = ""
    errors: list[str] = field(default_factory=list)


class Failures:
    """Each method is one failure; all have one browser and one LiveKit server."""

    def __init__(self, browser: Browser, server: LiveKitServer) -> None:
        self._browser = browser
        self._config = PageConfig(server.url, server.key, server.secret)

    async def all(self) -> dict[str, Told]:
        """At the same time, each in a page of its own."""
        cases: dict[str, Callable[[], Awaitable[Told]]] = {
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
            "a lost line, and no agent": self._lost_line_and_no_agent,
            "blocked sound": self._blocked_sound,
        }
        told = await asyncio.gather(*(case() for case in cases.values()))
        return dict(zip(cases, told, strict=True))

    @asynccontextmanager
    async def _page(
        self, config: PageConfig, microphone: str = "granted", script: str = ""
    ) -> AsyncIterator[tuple[Tab, Page]]:
        async with Page(config, "127.0.0.1", 0) as page:
            tab = await self._browser.tab(microphone)
            await tab.call("Page.enable")
            await tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
            await tab.open(page.url)
            yield tab, page

    async def _told(self, tab: Tab, *words: str) -> Told:
        words = words or (await tab.until(NOTICE),)
        phase = await tab.evaluate("document.body.dataset.phase")
        return Told(list(words), phase, [c for c in tab.console if c.startswith("error: {")])

    async def _at_start(self, config: PageConfig, **how: str) -> Told:
        async with self._page(config, **how) as (tab, _):
            await tab.click("#start")
            return await self._told(tab)

    async def _too_many(self) -> Told:
        async with self._page(replace(self._config, tokens_per_minute=1)) as (tab, _):
            await tab.evaluate("fetch('token', { method: 'POST' }).then(() => true)")
            await tab.click("#start")
            return await self._told(tab)

    async def _no_page_server(self) -> Told:
        async with self._page(self._config) as (tab, page):
            await page.__aexit__()
            await tab.click("#start")
            return await self._told(tab)

    async def _lost_line_and_no_agent(self) -> Told:
        """Then an agent comes late, and leaves."""
        line = Line(self._config.livekit_url)
        await line.mend()
        async with self._page(replace(self._config, public_url=line.url)) as (tab, _):
            await tab.click("#start")
            await tab.until("document.body.dataset.phase === 'call'")
            waiting = await tab.evaluate("document.querySelector('#state').innerText")
            await line.cut()
            lost = await tab.until(NOTICE)
            await line.mend()
            absent = await tab.until(f"(n => n.includes('agent') && n)({NOTICE})")
            room = await self._agent(tab)
            await tab.until("document.querySelector('#notice').hidden")
            await room.disconnect()
            left = await tab.until(NOTICE)
            told = await self._told(tab, waiting, lost, absent, left)
        await line.cut()
        return told

    async def _blocked_sound(self) -> Told:
        async with self._page(self._config, script=NO_PLAY) as (tab, _):
            await tab.click("#start")
            await tab.until("document.body.dataset.phase === 'call'")
            room = await self._agent(tab, speaks=True)
            blocked = await tab.until(NOTICE)
            await tab.evaluate("window.mayPlay = true")
            await tab.click("#sound")
            await tab.until("document.querySelector('#sound').hidden")
            told = await self._told(tab, blocked, await tab.evaluate(NOTICE))
            await room.disconnect()
        return told

    async def _agent(self, tab: Tab, speaks: bool = False) -> rtc.Room:
        """Somebody of kind agent in the page's room; with a track when it is to be heard."""
        key, secret = self._config.livekit_key, self._config.livekit_secret
        name = api.TokenVerifier(key, secret).verify(_token_of(tab)).video.room
        grants = api.VideoGrants(room_join=True, room=name)
        token = api.AccessToken(key, secret).with_identity("agent").with_kind("agent")
        room = rtc.Room()
        url = self._config.livekit_url
        await asyncio.wait_for(room.connect(url, token.with_grants(grants).to_jwt()), 30)
        if speaks:
            track = rtc.LocalAudioTrack.create_audio_track("voice", rtc.AudioSource(24_000, 1))
            await asyncio.wait_for(room.local_participant.publish_track(track), 30)
        return room


def _token_of(tab: Tab) -> str:
    """The page's own, as it went to LiveKit."""
    queries = (parse_qs(urlsplit(url).query) for url in tab.requests if url.startswith("ws"))
    return next(query["access_token"][0] for query in queries if "access_token" in query)
