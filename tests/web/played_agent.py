"""A call whose agent the test simulates, for every message that an agent can send."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from livekit import rtc
from tests.web.browser import PageError, Tab
from tests.web.calling import TURNS
from tests.web.pages import IN_CALL, Pages

CONSENT = "csm.voice_consent"
SWITCH = "document.querySelector('#consent').checked"

SEQUENTIAL = {"turn": 1, "endpointing": 0.6, "stt": 0.5, "llm_ttft": 0.8, "tts_first_audio": 0.3}
SEQUENTIAL |= {
    "first_sentence": 0.2,
    "e2e": 2.2,
    "voice": "stock",
    "interrupted": False,
    "spoke_at": 1.0,
}
BESIDE = {**SEQUENTIAL, "turn": 2, "e2e": 1.4}
"""The LLM began half a second before the turn had ended."""
BUSY = {**SEQUENTIAL, "turn": 5, "e2e": 0.7}
"""The agent's parts took far longer in total than the caller waited, as on a busy machine."""
BARE = {"turn": 3, "e2e": 1.0, "endpointing": None, "stt": None, "llm_ttft": None}
BROKEN = (b"\xff\xfe", b"[]", b"{}", b'{"turn": "x"}', b'{"turn": 4, "e2e": -1}', b"null")
"""None of these is a valid turn with times."""
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
    heard_as: dict[str, str] = field(default_factory=dict)
    """The voice line for an agent's attributes, written as `voice clones follows`."""
    heard_in_turn: str = ""
    """The head of a turn in the voice of a caller whose pitch and size the model follows."""


class PlayedAgent(Pages):
    async def run(self) -> Followed:
        followed = Followed()
        async with self.page(self._config) as (tab, _):
            await tab.click("#start")
            await tab.until(IN_CALL)
            room = await self.agent(tab)
            await tab.until("document.body.dataset.agent !== 'absent'")
            for step in (self._send_turns, self._say, self._consent_aloud, self._follow):
                # A failed step fails the tests of that step, not all.
                try:
                    await step(tab, room, followed)
                except PageError as error:
                    print(f"{step.__name__}: {error}")
            await room.disconnect()
        return followed

    async def _send_turns(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        packets = [*BROKEN, *(json.dumps(turn) for turn in (SEQUENTIAL, BESIDE, BARE, BUSY))]
        for packet in packets:
            await room.local_participant.publish_data(packet, topic="csm.turn")
        await tab.until("document.querySelector('[data-turn=\"5\"]') !== null")
        followed.turns = await tab.evaluate(TURNS)

    async def _say(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        """An interim transcript, then a final one whose markup must not become part of the page."""
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
            busy = json.dumps("false" if final == "true" else "true")  # set when the stream closes
            seen = await tab.until(
                f"(s => s.text === {json.dumps(text)} && s.busy === {busy} && s)({last})"
            )
            if final == "true":
                followed.final = seen
            else:
                followed.interim = seen
        followed.images = await tab.evaluate("document.querySelectorAll('img').length")

    async def _consent_aloud(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        """Yes by switch, no by voice, yes by switch, no by switch, yes by voice, no by switch."""
        await self._speak_in(tab, room, followed, "stock", None)
        await self._press(tab, room, followed, "granted")
        await self._speak_in(tab, room, followed, "caller", "granted")
        await self._speak_in(tab, room, followed, "stock", "refused")
        await self._press(tab, room, followed, "granted")
        await self._press(tab, room, followed, "refused")
        await self._speak_in(tab, room, followed, "caller", "refused")
        await self._press(tab, room, followed, None)
        await self._speak_in(tab, room, followed, "anna", None)

    async def _speak_in(
        self, tab: Tab, room: rtc.Room, followed: Followed, voice: str, consent: str | None
    ) -> None:
        """`consent`: the attribute as the page leaves it after that."""
        await room.local_participant.set_attributes({"csm.voice": voice})
        chip = "document.querySelector('#voice')"
        await tab.until(f"{chip}.dataset.voice === '{voice}'")
        followed.voices.append(await tab.evaluate(f"{chip}.innerText"))
        await self._look(tab, room, followed, consent)

    async def _follow(self, tab: Tab, room: rtc.Room, followed: Followed) -> None:
        """Models that do not clone: one that follows pitch and size, and one that does nothing."""
        chip = "document.querySelector('#voice')"
        for follows in ("pitch and size", ""):
            for voice in ("caller", "anna", "stock"):
                await room.local_participant.set_attributes(
                    {"csm.voice": voice, "csm.clones": "false", "csm.follows": follows}
                )
                await tab.until(f"{chip}.dataset.voice === '{voice}'")
                text = await tab.evaluate(f"{chip}.innerText")
                followed.heard_as[f"{voice}, {follows or 'nothing'}"] = text
                if voice == "caller" and follows:
                    packet = json.dumps({**BARE, "turn": 6, "voice": "caller"})
                    await room.local_participant.publish_data(packet, topic="csm.turn")
                    head = "document.querySelector('[data-turn=\"6\"] .times-head')"
                    await tab.until(f"{head} !== null")
                    followed.heard_in_turn = await tab.evaluate(f"{head}.textContent")

    async def _press(
        self, tab: Tab, room: rtc.Room, followed: Followed, consent: str | None
    ) -> None:
        await tab.click("#consent")
        await tab.until("!document.querySelector('#consent').disabled")
        await self._look(tab, room, followed, consent)

    async def _look(
        self, tab: Tab, room: rtc.Room, followed: Followed, consent: str | None
    ) -> None:
        """Waits for this value: page and test write it, and writes may arrive out of order."""
        await tab.until_here(lambda: _consent_of(room) == consent, f"consent is {consent}")
        followed.switch.append(await tab.evaluate(SWITCH))
        followed.attribute.append(_consent_of(room))


def _consent_of(room: rtc.Room) -> str | None:
    """Consent as the agent sees it; None where it was never set, or was cleared."""
    caller = next(iter(room.remote_participants.values()))
    return caller.attributes.get(CONSENT) or None
