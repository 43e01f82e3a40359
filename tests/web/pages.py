"""Pages of our own server with a real LiveKit server; tests may simulate the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

from livekit import api, rtc
from scripts.livekit_server import LiveKitServer
from scripts.web_page import Page, PageConfig
from tests.support.waiting import LIMIT_S
from tests.web.browser import Browser, Tab

NOTICE = "(n => n.hidden ? '' : n.innerText)(document.querySelector('#notice'))"
IN_CALL = "document.body.dataset.phase === 'call'"


class Pages:
    """What cases have in common: one browser and one LiveKit server."""

    def __init__(self, browser: Browser, server: LiveKitServer) -> None:
        self._browser = browser
        self._config = PageConfig(server.url, server.key, server.secret)

    @asynccontextmanager
    async def page(
        self, config: PageConfig, microphone: str = "granted", script: str = ""
    ) -> AsyncIterator[tuple[Tab, Page]]:
        async with Page(config, "127.0.0.1", 0) as page:
            tab = await self._browser.tab(microphone)
            await tab.call("Page.enable")
            await tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
            await tab.open(page.url)
            yield tab, page

    async def agent(self, tab: Tab, speaks: bool = False) -> rtc.Room:
        """Joins the page's room as a participant of kind agent, with a track if `speaks`."""
        key, secret = self._config.livekit_key, self._config.livekit_secret
        name = api.TokenVerifier(key, secret).verify(_token_of(tab)).video.room
        grants = api.VideoGrants(room_join=True, room=name, can_update_own_metadata=True)
        token = api.AccessToken(key, secret).with_identity("agent").with_kind("agent")
        room = rtc.Room()
        url = self._config.livekit_url
        await asyncio.wait_for(room.connect(url, token.with_grants(grants).to_jwt()), LIMIT_S)
        if speaks:
            track = rtc.LocalAudioTrack.create_audio_track("voice", rtc.AudioSource(24_000, 1))
            await asyncio.wait_for(room.local_participant.publish_track(track), LIMIT_S)
        return room


def _token_of(tab: Tab) -> str:
    """The page's own token, as sent to LiveKit."""
    queries = (parse_qs(urlsplit(url).query) for url in tab.requests if url.startswith("ws"))
    return next(query["access_token"][0] for query in queries if "access_token" in query)
