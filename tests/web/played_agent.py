"""A call whose agent the test plays: what the page makes of what an agent can say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from livekit import rtc
from tests.web.browser import Tab
from tests.web.calling import TURNS
from tests.web.pages import IN_CALL, Pages

CONSENT = "csm.voice_consent"
SWITCH = "document.querySelector('#consent').checked"

SEQUENTIAL = {"turn": 1, "endpointing": 0.6, "stt": 0.5, "llm_ttft": 0.8, "tts_first_audio": 0.3}
SEQUENTIAL |= {"e2e": 2.0, "voice": "stock", "interrupted": False, "spoke_at": 1.0}
BESIDE = {**SEQUENTIAL, "turn": 2, "e2e": 1.2}
"""The LLM began half a second before the turn had ended."""
BARE = {"turn": 3, "e2e": 1.0, "endpointing": None, "stt": None, "llm_ttft": None}
BROKEN = (b"\xff\xfe", b"[]", b"{}", b'{"turn": "x"}', b'{"turn": 4, "e2e": -1}', b"null")
"""Nothing of these can be a turn with times."""
MARKUP = "<img src=x onerror=alert(1)> & so on"


@dataclass
class Followed:
    """What was in the page, and the consent that the agent saw, in the order of the steps."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    voices: list[str] = field(default_factory=list)
    switch: list[bool] = field(default_factory=list)
    attribute: list[str | None] = field(default_factory=list)
    interim: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    images: int = -1


class PlayedAgent(Pages):
    async def run(self) -> Followed:
        followed = Followed()
        async with self.page(self._config) as (tab, _):
            await tab.click("#start")
            await tab.until(IN_CALL)
            room = await self.agent(tab)
            await tab.until("document.body.dataset.agent !== 'absent'")
            await self._send_turns(tab, room, followed)
            await self._say(tab, room, followed)
            await self._consent_aloud(tab, room, followed)
            await room.disconnect()
        return followed

    async def _send_turns(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        packets = [*BROKEN, *(json.dumps(turn) for turn in (SEQUENTIAL, BESIDE, BARE))]
        for packet in packets:
            await room.local_participant.publish_data(packet, topic="csm.turn")
        await tab.until("document.querySelector('[data-turn=\"3\"]') !== null")
        followed.turns = await tab.evaluate(TURNS)

    async def _say(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        """A guess of the caller's words, better ones, and what must not become part of the page."""
        caller = next(iter(room.remote_participants))
        last = (
            "(i => ({text: i.querySelector('p').textContent, busy: i.ariaBusy,"
            " who: i.querySelector('.who').textContent}))"
            "(document.querySelector('#log > li:last-child'))"
        )
        for text, final in (("I gess", "false"), (MARKUP, "true")):
            writer = await room.local_participant.stream_text(
                topic="lk.transcription",
                attributes={"lk.segment_id": "one", "lk.transcription_final": final},
                sender_identity=caller,
            )
            await writer.write(text)
            await writer.aclose()
            seen = await tab.until(f"(s => s.text === {json.dumps(text)} && s)({last})")
            if final == "true":
                followed.final = seen
            else:
                followed.interim = seen
        followed.images = await tab.evaluate("document.querySelectorAll('img').length")

    async def _consent_aloud(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        """Yes by the switch, no aloud, yes by the switch, no by the switch, yes aloud, no by it."""
        await self._speak_in(tab, room, followed, "stock")
        await self._press(tab, room, followed)
        await self._speak_in(tab, room, followed, "caller")
        await self._speak_in(tab, room, followed, "stock")
        await self._press(tab, room, followed)
        await self._press(tab, room, followed)
        await self._speak_in(tab, room, followed, "caller")
        await self._press(tab, room, followed)
        await self._speak_in(tab, room, followed, "anna")

    async def _speak_in(self, tab: Tab, room: rtc.Room, followed: Followed, voice: str) -> None:
        await room.local_participant.set_attributes({"csm.voice": voice})
        chip = "document.querySelector('#voice')"
        await tab.until(f"{chip}.dataset.voice === '{voice}'")
        followed.voices.append(await tab.evaluate(f"{chip}.innerText"))
        await self._look(tab, room, followed)

    async def _press(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        before = _consent_of(room)
        await tab.click("#consent")
        await tab.until("!document.querySelector('#consent').disabled")
        await tab.until_here(lambda: _consent_of(room) != before)
        await self._look(tab, room, followed)

    async def _look(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        followed.switch.append(await tab.evaluate(SWITCH))
        followed.attribute.append(_consent_of(room))


def _consent_of(room: rtc.Room) -> str | None:
    """As the agent sees it; None where it was never set, or was cleared."""
    caller = next(iter(room.remote_participants.values()))
    return caller.attributes.get(CONSENT) or None
